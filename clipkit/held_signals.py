"""Signals that wait until a delicate moment is over."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType


@contextlib.contextmanager
def signals_held_back(numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """Signals that arrive meanwhile are delivered at the end, each once.

    A process that is started meanwhile hears none before it unblocks them. In this one the mask is that of
    the thread: where there are others, the system gives a signal to one of them and Python still runs the
    handler in the main thread, so for that time handlers only note that there was a signal.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    is_main = threading.current_thread() is threading.main_thread()
    own = {number: signal.getsignal(number) for number in numbers if is_main}
    replaced = {number: handler for number, handler in own.items() if callable(handler)}
    can_block = hasattr(signal, "pthread_sigmask")  # not on Windows
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ()) if can_block else set()
    try:
        if can_block:
            signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        for number in replaced:
            signal.signal(number, note)
        yield
    finally:
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in replaced.items():
            signal.signal(number, handler)
        for arrived in dict.fromkeys(noted):
            signal.raise_signal(arrived)
