"""What long jobs show: a bar on a terminal, plain lines elsewhere, nothing on ranks other than the first."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_EVERY_SECONDS = 10.0


class Meter(Protocol):
    """Takes what a job has done."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count `amount` more units; `note` replaces the text beside the bar unless empty."""

    def say(self, message: str) -> None:
        """Print a line that stays."""


class _Silent:
    def advance(self, amount: int = 1, note: str = "") -> None:
        pass

    def say(self, message: str) -> None:
        pass


class _Bar:
    def __init__(self, progress: Progress, description: str, total: int, done: int) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, completed=done, note="")

    def advance(self, amount: int = 1, note: str = "") -> None:
        if note:
            self._progress.update(self._task, note=note)
        self._progress.advance(self._task, amount)

    def say(self, message: str) -> None:
        self._progress.console.print(message, highlight=False, markup=False)


class _Lines:
    def __init__(self, description: str, total: int, done: int) -> None:
        self._description, self._total, self._done = description, total, done
        self._first, self._began = done, time.monotonic()
        self._last_line = self._began
        self._note = ""

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._done += amount
        self._note = note or self._note
        now = time.monotonic()
        is_end = amount > 0 and self._done >= self._total
        if not is_end and now - self._last_line < _LINE_EVERY_SECONDS:
            return
        self._last_line = now
        seconds = (now - self._began) / max(1, self._done - self._first) * (self._total - self._done)
        left = f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"
        self.say(f"{self._description} {self._done}/{self._total}, {left}  {self._note}".rstrip())

    def say(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)


@contextmanager
def progress(description: str, total: int, *, done: int = 0, show: bool = True) -> Iterator[Meter]:
    """Show the progress of a job on stderr.

    Args:
        description: what is being done.
        total: units in all.
        done: units that an earlier run has done.
        show: False shows nothing (another rank does, or the user asked for quiet).
    """
    if not show:
        yield _Silent()
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(description, total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as bar:
        yield _Bar(bar, description, total, done)
