"""From a model in training, sharded or averaged, to a model directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from clipkit import distributed

from .config import to_dict
from .step import Trainer


@contextmanager
def averaged_weights(trainer: Trainer) -> Iterator[None]:
    """The weight average in place of the weights, where the run keeps one."""
    if trainer.average is None:
        yield
        return
    trainer.average.swap()
    try:
        yield
    finally:
        trainer.average.swap()


def save_model(trainer: Trainer, path: Path, *, step: int, metrics: Mapping[str, float]) -> None:
    """Write a model directory from rank 0; every rank takes part in gathering the weights."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    with averaged_weights(trainer):
        weights: dict[str, Any] = dict(get_model_state_dict(trainer.model, options=options))
        if distributed.rank() == 0:
            provenance = {"made_by": "clipkit train", "step": step, "config": to_dict(trainer.config)}
            trainer.model.save(path, state_dict=weights, metrics=dict(metrics), provenance=provenance)
    distributed.barrier()
