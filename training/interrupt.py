"""Stopping when asked: SIGTERM and SIGINT end the run after a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

EXIT_INTERRUPTED = 75
"""EX_TEMPFAIL: the run was asked to stop, has saved its state, and can be resumed."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """Notes SIGTERM and SIGINT while it is entered; a second Ctrl-C acts at once.

    A second SIGTERM does not: cluster managers send it to a whole job, and torchrun passes it on once more.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._previous[signal.SIGINT])

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)
