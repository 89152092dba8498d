from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from typing import Any

import pytest
from clipkit.retrieval.service.worker import Lane, Worker


class Log:
    def __init__(self) -> None:
        self.batches: list[tuple[str, int]] = []
        self.lengths: list[tuple[str, int]] = []

    def waiting(self, lane: str, count: int) -> None:
        self.lengths.append((lane, count))

    def batch(self, lane: str, size: int, waited_seconds: float) -> None:
        assert waited_seconds >= 0
        self.batches.append((lane, size))


class Gate:
    """A function of batches that waits until it is let through."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self, jobs: Any) -> Any:
        self.entered.set()
        assert self.open.wait(20)
        return [job * 10 for job in jobs]


def test_what_waits_is_done_together_up_to_the_limit_and_in_order() -> None:
    log, gate = Log(), Gate()
    worker = Worker("w", {"a": Lane(run=gate, max_batch=4)}, log)
    first = worker.submit("a", 0)
    assert gate.entered.wait(20)
    rest = [worker.submit("a", number) for number in range(1, 8)]
    gate.open.set()
    assert [future.result(20) for future in [first, *rest]] == [0, 10, 20, 30, 40, 50, 60, 70]
    worker.close()
    assert log.batches == [("a", 1), ("a", 4), ("a", 3)]
    assert max(count for _, count in log.lengths) == 7
    assert log.lengths[-1] == ("a", 0)


def test_each_lane_has_a_batch_in_each_round() -> None:
    log, gate = Log(), Gate()
    lanes = {"slow": Lane(run=gate, max_batch=2), "fast": Lane(run=lambda jobs: list(jobs), max_batch=8)}
    worker = Worker("w", lanes, log)
    futures = [worker.submit("slow", 1)]
    assert gate.entered.wait(20)
    futures += [worker.submit("slow", number) for number in range(5)]
    futures += [worker.submit("fast", number) for number in range(3)]
    gate.open.set()
    wait(futures, 20)
    worker.close()
    assert log.batches == [("slow", 1), ("fast", 3), ("slow", 2), ("slow", 2), ("slow", 1)]


def test_a_bad_job_fails_alone() -> None:
    def run(jobs: Any) -> Any:
        if 3 in jobs:
            raise ValueError("three")
        return [KeyError("four") if job == 4 else job for job in jobs]

    gate = Gate()
    worker = Worker("w", {"gate": Lane(run=gate, max_batch=1), "a": Lane(run=run, max_batch=8)}, Log())
    worker.submit("gate", 0)
    assert gate.entered.wait(20)
    futures: list[Future[Any]] = [worker.submit("a", number) for number in range(6)]
    gate.open.set()
    wait(futures, 20)
    worker.close()
    assert [type(future.exception()) for future in futures] == [type(None)] * 3 + [
        ValueError,
        KeyError,
        type(None),
    ]
    assert futures[5].result() == 5


def test_a_wrong_number_of_results_is_an_error_of_each_job() -> None:
    worker = Worker("w", {"a": Lane(run=lambda jobs: [], max_batch=8)}, Log())
    with pytest.raises(RuntimeError, match="0 results for 1 jobs"):
        worker.submit("a", 1).result(20)
    worker.close()


def test_cancelled_jobs_are_left_out() -> None:
    seen: list[Any] = []
    gate = Gate()
    lanes = {
        "gate": Lane(run=gate, max_batch=1),
        "a": Lane(run=lambda jobs: seen.extend(jobs) or list(jobs), max_batch=8),
    }
    worker = Worker("w", lanes, Log())
    worker.submit("gate", 0)
    assert gate.entered.wait(20)
    futures = [worker.submit("a", number) for number in range(3)]
    assert futures[1].cancel()
    gate.open.set()
    assert futures[2].result(20) == 2
    worker.close()
    assert seen == [0, 2]


def test_closing_does_what_waits_and_takes_no_more() -> None:
    gate = Gate()
    worker = Worker("w", {"a": Lane(run=gate, max_batch=1)}, Log())
    futures = [worker.submit("a", number) for number in range(3)]
    assert gate.entered.wait(20)
    closing = threading.Thread(target=worker.close)
    closing.start()
    while worker.is_alive:
        pass
    with pytest.raises(RuntimeError, match="shutting down"):
        worker.submit("a", 9)
    gate.open.set()
    closing.join(20)
    assert [future.result(0) for future in futures] == [0, 10, 20]
