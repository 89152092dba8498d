"""Checkpoints of the whole training state, from which a run continues bit for bit.

A checkpoint is a folder `step_N` that torch.distributed.checkpoint writes, every rank its part, plus
`state.json`. It is written under a hidden name and renamed when complete: a visible folder is whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException

from clipkit import distributed
from clipkit.gradcache import RngState

from .optim import WeightAverage

STATE_NAME = "state.json"
FORMAT = 1

_STEP_NAME = re.compile(r"^step_(\d+)$")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The objects whose tensors make up a checkpoint."""

    model: nn.Module
    """Not wrapped for data parallelism, so its names are the same on one rank and on many."""
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None


def save(
    directory: Path, step: int, trained: Trained, *, rng: RngState, state: dict[str, Any], keep: int
) -> Path:
    """Write `directory/step_N` on all ranks together and drop all but the last `keep` checkpoints.

    Args:
        directory: the run's checkpoint folder.
        step: completed optimiser steps.
        trained: model, optimiser and weight average.
        rng: this rank's random state as the next step is to find it.
        state: JSON-ready facts for the next run: configuration, grad scaler, best metric.
        keep: at least 1.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: the disk is full or not writable; earlier checkpoints are untouched.
    """
    final = directory / f"step_{step}"
    temporary = directory / f".step_{step}.new.tmp"
    if distributed.rank() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    distributed.barrier()
    try:
        with _no_word_about_one_process():
            state_dict_saver.save(
                _tensors(trained, rng), checkpoint_id=temporary, no_dist=not distributed.is_distributed()
            )
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"checkpoint {final} could not be written: {_reason(error)}") from error
    distributed.barrier()
    if distributed.rank() == 0:
        _publish(temporary, final, {"format": FORMAT, "step": step, **state})
        for old in all_checkpoints(directory)[:-keep]:
            _remove(old)
    distributed.barrier()
    return final


@contextmanager
def _no_word_about_one_process() -> Iterator[None]:
    """Torch warns that it assumes a single process although `no_dist` has said so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _publish(temporary: Path, final: Path, state: dict[str, Any]) -> None:
    with (temporary / STATE_NAME).open("w", encoding="utf-8") as file:
        json.dump({**state, "world_size": distributed.world_size()}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    if final.exists():
        _remove(final)
    os.rename(temporary, final)


def _remove(path: Path) -> None:
    """Delete a checkpoint by way of a hidden name, so that none is ever seen half-deleted."""
    hidden = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Delete what a killed run was writing or deleting."""
    for path in directory.glob(".step_*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _reason(error: BaseException) -> str:
    """The innermost OSError of a chain, which names the disk's own complaint."""
    reason: BaseException = error
    cause: BaseException | None = error
    failures = getattr(error, "failures", None)
    if failures:
        cause = next(iter(failures.values()))[0]
    while cause is not None:
        reason = cause
        if isinstance(cause, OSError):
            break
        cause = cause.__cause__ or cause.__context__
    return str(reason).splitlines()[0] if str(reason) else type(reason).__name__


def load(path: Path, trained: Trained) -> RngState:
    """Restore model, optimiser and weight average, whose tensors are written in place.

    Returns:
        This rank's random state, to be restored right before the next step.

    Raises:
        ValueError: the checkpoint does not fit the model.
    """
    rng = RngState()
    tensors = _tensors(trained, rng)
    try:
        with _no_word_about_one_process():
            state_dict_loader.load(tensors, checkpoint_id=path, no_dist=not distributed.is_distributed())
    except (Exception, CheckpointException) as error:
        raise ValueError(f"checkpoint {path} does not fit this run: {_reason(error)}") from error
    return RngState.from_tensors(tensors["rng"][_rank_name()])


def read_state(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint."""
    try:
        state: dict[str, Any] = json.loads((path / STATE_NAME).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path / STATE_NAME} is damaged ({error}); remove {path} to resume earlier"
        ) from None
    return state


def all_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = []
    for path in directory.glob("step_*"):
        match = _STEP_NAME.match(path.name)
        if match and (path / STATE_NAME).exists():
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def _rank_name() -> str:
    return f"rank_{distributed.rank()}"


def _tensors(trained: Trained, rng: RngState) -> dict[str, Any]:
    """References to every tensor of the state, by names that do not depend on the parallel layout."""
    tensors: dict[str, Any] = {
        "model": trained.model.state_dict(),
        "optimizer": _optimizer_tensors(trained),
        "rng": {_rank_name(): rng.tensors()},
    }
    if trained.average is not None:
        tensors["average"] = trained.average.average
    return tensors


def _optimizer_tensors(trained: Trained) -> dict[str, dict[str, Tensor]]:
    """AdamW's moments by parameter name, allocated where no step was taken yet."""
    names = {parameter: name for name, parameter in trained.model.named_parameters()}
    tensors: dict[str, dict[str, Tensor]] = {}
    for group in trained.optimizer.param_groups:
        for parameter in group["params"]:
            moments = trained.optimizer.state[parameter]
            if not moments:
                moments["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments["exp_avg"] = torch.zeros_like(parameter)
                moments["exp_avg_sq"] = torch.zeros_like(parameter)
            tensors[names[parameter]] = moments
    return tensors
