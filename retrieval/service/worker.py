"""One thread that owns what can do one thing at a time, and does what waits for it in batches."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

BatchFunction = Callable[[Sequence[Any]], Sequence[Any]]
"""Jobs -> for each its result, or an exception that is its alone."""


@dataclass(frozen=True, kw_only=True)
class Lane:
    """Jobs of one kind, which can be done together."""

    run: BatchFunction
    max_batch: int


class Observer(Protocol):
    """Is told what the worker does; called from its thread and from those that submit."""

    def waiting(self, lane: str, count: int) -> None:
        """So many jobs wait."""

    def batch(self, lane: str, size: int, waited_seconds: float) -> None:
        """A batch begins; its first job has waited so long."""


class Worker:
    """Takes what waits the moment it is free, without waiting for more: batches grow with the load.

    In each round every lane gets one batch, so that none starves and long ones do not hold up short ones for
    more than a batch.
    """

    def __init__(
        self,
        name: str,
        lanes: Mapping[str, Lane],
        observer: Observer,
        set_up: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the thread.

        Args:
            name: of the thread.
            lanes: in the order they are served in.
            observer: is told of queues and batches.
            set_up: what the thread does first.
        """
        self._lanes = dict(lanes)
        self._set_up = set_up
        self._observer = observer
        self._queues: dict[str, deque[tuple[float, Any, Future[Any]]]] = {lane: deque() for lane in lanes}
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether jobs are still being done."""
        return self._thread.is_alive() and not self._closing

    def submit(self, lane: str, job: Any) -> Future[Any]:
        """Queue a job.

        Raises:
            RuntimeError: the worker was closed.
        """
        future: Future[Any] = Future()
        with self._wake:
            if self._closing:
                raise RuntimeError("the service is shutting down")
            queue = self._queues[lane]
            queue.append((time.perf_counter(), job, future))
            self._observer.waiting(lane, len(queue))
            self._wake.notify()
        return future

    def close(self) -> None:
        """Do what waits, then end."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _loop(self) -> None:
        self._set_up()
        while True:
            with self._wake:
                while not any(self._queues.values()):
                    if self._closing:
                        return
                    self._wake.wait()
            for name, lane in self._lanes.items():
                self._do(name, lane)

    def _do(self, name: str, lane: Lane) -> None:
        with self._wake:
            queue = self._queues[name]
            taken = [queue.popleft() for _ in range(min(len(queue), lane.max_batch))]
            self._observer.waiting(name, len(queue))
        # A cancelled future takes no result; a running one can no longer be cancelled.
        taken = [entry for entry in taken if entry[2].set_running_or_notify_cancel()]
        if not taken:
            return
        self._observer.batch(name, len(taken), time.perf_counter() - taken[0][0])
        futures = [future for _, _, future in taken]
        for future, result in zip(futures, _results(lane.run, [job for _, job, _ in taken]), strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


def _results(run: BatchFunction, jobs: list[Any]) -> Sequence[Any]:
    """What `run` gives; jobs that fail together are tried alone, so that one cannot spoil others."""
    try:
        results = run(jobs)
        if len(results) != len(jobs):
            raise RuntimeError(f"{len(results)} results for {len(jobs)} jobs")
        return results
    except Exception as error:
        if len(jobs) == 1:
            return [error]
        return [result for job in jobs for result in _results(run, [job])]
