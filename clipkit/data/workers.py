"""Processes that prepare batches ahead of the one that uses them."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader

from clipkit.held_signals import signals_held_back

Item = TypeVar("Item")
ItemOut = TypeVar("ItemOut", covariant=True)
PREFETCH_FACTOR = 2

_LEFT_TO_MAIN = (signal.SIGINT, signal.SIGTERM)


class Producer(Protocol[ItemOut]):
    """Number -> item, always the same one; called in the workers."""

    def __getitem__(self, number: int) -> ItemOut: ...


class _Error:
    """An error for the user, carried out of a worker without its traceback."""

    def __init__(self, error: ValueError | OSError) -> None:
        self.message = str(error)
        self.is_os_error = isinstance(error, OSError)

    def throw(self) -> NoReturn:
        raise (OSError if self.is_os_error else ValueError)(self.message)


class _Guarded(Generic[Item]):
    """A producer that returns the errors meant for the user instead of raising them in a worker."""

    def __init__(self, producer: Producer[Item]) -> None:
        self._producer = producer

    def __getitem__(self, number: int) -> Item | _Error:
        try:
            return self._producer[number]
        except (ValueError, OSError) as error:
            return _Error(error)


def produce(producer: Producer[Item], numbers: Iterable[int], num_workers: int) -> Iterator[Item]:
    """Items of `numbers` in order, made by `num_workers` processes, or here if there are none.

    Workers live until the iterator is closed, dropped or at its end. They are forked where the system can
    (they share the index, and start at once), take one thread each, and leave SIGINT and SIGTERM to the main
    process, which may want to save before it stops.

    Raises:
        ValueError, OSError: as the producer raised them, without a worker's traceback.
    """
    with contextlib.ExitStack() as stack:
        with warnings.catch_warnings(), signals_held_back(_LEFT_TO_MAIN):
            warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)  # Python >= 3.12, of any thread
            warnings.filterwarnings("ignore", ".*worker processes in total")  # as many as the user wants
            items = iter(_data_loader(producer, numbers, num_workers))
            if num_workers:
                stack.enter_context(_ended_workers(items))
        for item in items:
            if isinstance(item, _Error):
                item.throw()
            yield item


@contextlib.contextmanager
def _ended_workers(items: Any) -> Iterator[None]:
    """Ends the workers of a loader's iterator after the block, or when the process ends in it."""
    close = items._shutdown_workers
    # Before Python's own clean-up, which would wait for workers that do not hear its SIGTERM.
    atexit.register(close)
    try:
        yield
    finally:
        atexit.unregister(close)
        close()


def _data_loader(producer: Producer[Item], numbers: Iterable[int], num_workers: int) -> DataLoader[Any]:
    return DataLoader(
        _Guarded(producer),  # type: ignore[arg-type]
        batch_size=None,
        sampler=numbers,
        num_workers=num_workers,
        collate_fn=_same,
        worker_init_fn=_init_worker,
        prefetch_factor=PREFETCH_FACTOR if num_workers else None,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context=_start_method() if num_workers else None,
        generator=torch.Generator(),  # or starting it would draw from the generator of the run
    )


def _same(item: Item) -> Item:
    return item


def _start_method() -> str:
    return "fork" if sys.platform == "linux" else "spawn"


def _init_worker(_number: int) -> None:
    for number in _LEFT_TO_MAIN:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEFT_TO_MAIN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # transformers' tokenizers warn after a fork
