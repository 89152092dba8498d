"""Signals that wait, with and without other threads, and what is left afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from types import FrameType

import pytest

from clipkit.held_signals import signals_held_back

HELD = (signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The signals that arrive at handlers of the test."""
    found: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        found.append(number)

    previous = {number: signal.signal(number, hear) for number in HELD}
    yield found
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("num_threads", [0, 1])
def test_signals_wait_and_are_delivered_once(heard: list[int], num_threads: int) -> None:
    is_over = threading.Event()
    threads = [threading.Thread(target=is_over.wait, daemon=True) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    handlers = [signal.getsignal(number) for number in HELD]
    with signals_held_back(HELD):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.1)  # for the other thread to hear it
        assert heard == []
    assert heard == [signal.SIGUSR1]
    assert [signal.getsignal(number) for number in HELD] == handlers
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(HELD)
    is_over.set()
    for thread in threads:
        thread.join()


def test_an_error_leaves_handlers_and_mask_as_they_were(heard: list[int]) -> None:
    def fail() -> None:
        with signals_held_back(HELD):
            signal.raise_signal(signal.SIGUSR1)
            raise ZeroDivisionError

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        with pytest.raises(ZeroDivisionError):
            fail()
        assert heard == [signal.SIGUSR1]
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(HELD) == {signal.SIGUSR2}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_in_another_thread_handlers_are_left_alone(heard: list[int]) -> None:
    def hold() -> None:
        with signals_held_back(HELD):
            pass
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    masks: list[set[int]] = []
    handler = signal.getsignal(signal.SIGUSR1)
    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert not masks[0] & set(HELD)
    assert signal.getsignal(signal.SIGUSR1) is handler


INTERRUPTED = """
    import os, signal, sys, threading, time
    from multiprocessing.context import ForkProcess
    from clipkit.data.workers import produce

    start, started = ForkProcess.start, []

    def start_and_interrupt(self):
        start(self)
        started.append(self)
        if len(started) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    ForkProcess.start = start_and_interrupt
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    try:
        next(produce(range(100), range(100), num_workers=2))
    except KeyboardInterrupt:
        print(len(started), sum(process.is_alive() for process in started))
"""


def test_ctrl_c_while_workers_start_ends_them_all() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(INTERRUPTED)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 0\n", "")
