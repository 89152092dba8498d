"""When to save: every so many steps or minutes, on a signal, and after the last good step."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from clipkit import distributed
from clipkit.gradcache import RngState

from . import checkpoint
from .config import CheckpointConfig
from .interrupt import Interrupt


class Checkpointer:
    """Saves checkpoints of one run, all ranks at the same step."""

    def __init__(
        self,
        directory: Path,
        config: CheckpointConfig,
        trained: checkpoint.Trained,
        interrupt: Interrupt,
        *,
        saved_step: int | None = None,
    ) -> None:
        self.directory = directory
        self._config = config
        self._trained = trained
        self._interrupt = interrupt
        self._last_save_seconds = time.monotonic()
        self._last_step = saved_step

    def after_step(self, step: int, state: Callable[[], dict[str, Any]]) -> bool:
        """Save if it is due at `step` completed steps; True if the run is to stop."""
        stop, is_time = self._agree()
        every = self._config.every_steps
        if stop or is_time or (every is not None and step % every == 0):
            self.save(step, RngState(), state())
        return stop

    def save(self, step: int, rng: RngState, state: dict[str, Any]) -> None:
        """Save now, unless this step is saved already."""
        if step == self._last_step:
            return
        checkpoint.save(self.directory, step, self._trained, rng=rng, state=state, keep=self._config.keep)
        self._last_step = step
        self._last_save_seconds = time.monotonic()

    def _agree(self) -> tuple[bool, bool]:
        """Whether any rank was told to stop, and whether the minutes are up on any rank's clock.

        Signals and clocks differ between ranks, and a checkpoint is written by all of them together.
        """
        minutes = self._config.every_minutes
        is_time = minutes is not None and time.monotonic() - self._last_save_seconds >= 60 * minutes
        wishes = torch.tensor([self._interrupt.requested, is_time], dtype=torch.int32)
        if distributed.is_distributed():
            dist.all_reduce(wishes, op=dist.ReduceOp.MAX)
        return bool(wishes[0]), bool(wishes[1])
