"""Where the time of an embedding run goes, over all ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from clipkit.distributed import Group, gather_counts, gather_rows, is_distributed

STAGES = ("data", "tower", "writing")
_ADVICE = {
    "data": "waiting for data, try a larger --num-workers",
    "tower": "the towers",
    "writing": "writing, the disk is slow",
}


class Clock:
    """Seconds that the main loop spends in each stage; what another thread does meanwhile is free."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self.num_samples = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the duration of a block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - began

    def note(self) -> str:
        """Rate so far, and how much of the time went to waiting for data."""
        seconds = max(time.perf_counter() - self._began, 1e-9)
        return f"{self.num_samples / seconds:,.1f} samples/s, data {self._seconds['data'] / seconds:.0%}"

    def facts(self) -> Tensor:
        """(1, 2 + stages) fp64: samples, seconds in all, seconds in each stage."""
        total = time.perf_counter() - self._began
        return torch.tensor([[self.num_samples, total, *self._seconds.values()]], dtype=torch.float64)


def rates(facts: Tensor) -> dict[str, float]:
    """Samples per second of all ranks together, and the share of their time in each stage.

    Args:
        facts: (ranks, 2 + stages), `Clock.facts` of each rank.
    """
    longest = max(float(facts[:, 1].max()), 1e-9)
    shares = facts[:, 2:].sum(0) / facts[:, 1].sum().clamp(min=1e-9)
    named = {f"{name}_fraction": float(share) for name, share in zip(STAGES, shares, strict=True)}
    return {"seconds": longest, "samples_per_second": float(facts[:, 0].sum()) / longest, **named}


def bottleneck(rates: dict[str, float]) -> str:
    """In words, what the run waited for most."""
    shares = {name: rates[f"{name}_fraction"] for name in STAGES}
    most = max(STAGES, key=lambda name: shares[name])
    listed = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return f"the bottleneck was {_ADVICE[most]} ({listed} of the time)"


class Together:
    """All ranks of the job, which may wait for each other for days.

    The collectives of the default group give up after minutes; here, one rank may have much more to do than
    another.
    """

    def __init__(self) -> None:
        """On all ranks together."""
        self._group: Group = None
        if is_distributed():
            group = dist.new_group(backend="gloo", timeout=timedelta(days=100))
            assert isinstance(group, dist.ProcessGroup)
            self._group = group

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all ranks in rank order; all of them call it together."""
        return gather_rows(rows, gather_counts(len(rows), rows.device, self._group), self._group)
