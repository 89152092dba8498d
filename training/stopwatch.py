"""Where the time of a run goes: waiting for data, or computing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeVar

_LOADER_BOUND = 0.2

Item = TypeVar("Item")


class Stopwatch:
    """Splits wall time into the wait for batches and everything else."""

    def __init__(self, images_per_step: int) -> None:
        self._images_per_step = images_per_step
        self._total_seconds = self._total_waited_seconds = 0.0
        self.pause()

    def pause(self) -> None:
        """Forget the time since the last lap (an evaluation, say) and start a new one."""
        self._began = time.perf_counter()
        self._waited_seconds = 0.0
        self._steps = 0

    def timed(self, batches: Iterator[Item]) -> Iterator[Item]:
        """The same batches, with the wait for each one counted."""
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited_seconds += time.perf_counter() - asked
            self._steps += 1
            yield batch

    def lap(self) -> dict[str, float]:
        """Rates since the last lap, by names with units; starts the next one."""
        seconds = max(time.perf_counter() - self._began, 1e-9)
        rates = {
            "images_per_second": self._steps * self._images_per_step / seconds,
            "data_wait_fraction": self._waited_seconds / seconds,
        }
        self._total_seconds += seconds
        self._total_waited_seconds += self._waited_seconds
        self.pause()
        return rates

    @property
    def data_wait_fraction(self) -> float:
        """Share of the time of all laps that was spent waiting for batches."""
        return self._total_waited_seconds / max(self._total_seconds, 1e-9)


def verdict(data_wait_fraction: float) -> str:
    """In words, whether decoding keeps up with the model."""
    share = f"{data_wait_fraction:.0%} of the time waiting for data"
    if data_wait_fraction > _LOADER_BOUND:
        return f"loader-bound ({share}; raise data.num_workers or use smaller images)"
    return f"compute-bound ({share})"
