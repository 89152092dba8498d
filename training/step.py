"""One optimiser step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipkit import gradcache
from clipkit.devices import autocast_of, trained_attention
from clipkit.distributed import all_reduce_mean
from clipkit.model import DualEncoder
from clipkit.regions.phrases import prepare_texts
from clipkit.text_towers import needed_columns

from . import optim
from .config import TrainConfig
from .objective import Objective
from .parallel import Parallel
from .region_objective import IN_NATS, LossTerms, RegionObjective

Batch = Mapping[str, Any]


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is not finite; weights, buffers and optimiser are those before the step."""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """What a step works on. The model's weights are fp32; towers run in the autocast type."""

    config: TrainConfig
    num_steps: int
    device: torch.device
    model: DualEncoder
    parallel: Parallel
    objective: Objective
    region_objective: RegionObjective | None
    """In its place where regions are trained."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: optim.WeightAverage | None


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Figures of one step, means over ranks."""

    loss: float
    """Nats."""
    grad_norm: float
    """Norm of the whole gradient before clipping."""
    logit_scale: float
    """Exponentiated."""
    lr: float
    """Of the deepest layer."""
    figures: dict[str, float]
    """With regions: each loss, with its unit where it has one, and `regions_per_image`."""


def train_step(trainer: Trainer, batch: Batch, step: int) -> StepResult:
    """Forward, loss, backward and update on this rank's part of the global batch.

    Args:
        trainer: model, optimiser and settings.
        batch: `image` (b, 3, h, w) uint8 and `text` (b, L) int64; with regions `boxes`, `box_index` and
            `region_text`.
        step: zero-based, for the schedule.

    Raises:
        NonFiniteLossError: before anything was updated.
    """
    config = trainer.config
    lr = config.optim.lr * optim.lr_factor(step, trainer.num_steps, config.optim)
    optim.set_lr(trainer.optimizer, lr)
    trainer.optimizer.zero_grad(set_to_none=True)
    buffers = {name: buffer.clone() for name, buffer in trainer.model.named_buffers()}
    terms: list[LossTerms] = []
    # Backward too: blocks may be recomputed there.
    with trained_attention(config.precision, trainer.device):
        loss, features = gradcache.backward(
            lambda chunk: encode(trainer, chunk),
            micro_batches(batch, config.data.micro_batch_size_per_rank),
            lambda features: _total_loss(trainer, features, batch, terms),
            scale_loss=trainer.scaler.scale,
            no_sync=trainer.parallel.no_sync,
        )
    mean_loss, figures = _means(loss, terms)
    trainer.parallel.sync_replicated()
    trainer.scaler.unscale_(trainer.optimizer)
    grad_norm = float(optim.clip_grad_norm(trainer.model.parameters(), config.optim.grad_clip_norm))
    is_overflow = trainer.scaler.is_enabled() and not math.isfinite(grad_norm)
    if not math.isfinite(mean_loss) or not (math.isfinite(grad_norm) or is_overflow):
        _restore_buffers(trainer.model, buffers)
        raise NonFiniteLossError(f"at step {step + 1} the loss is {mean_loss}, its gradient norm {grad_norm}")
    update(trainer, is_overflow=is_overflow)
    return StepResult(
        loss=mean_loss,
        grad_norm=grad_norm,
        logit_scale=float(features["logit_scale"]),
        lr=lr,
        figures=figures,
    )


def _total_loss(
    trainer: Trainer, features: Mapping[str, Tensor], batch: Batch, terms: list[LossTerms]
) -> Tensor:
    """The loss of this rank; with regions its terms are left in `terms`."""
    if trainer.region_objective is None:
        return trainer.objective(features, batch["text"])
    assert trainer.model.region_head is not None
    terms.append(trainer.region_objective(features, batch, trainer.model.region_head))
    return terms[-1].total()


def _means(loss: Tensor, terms: list[LossTerms]) -> tuple[float, dict[str, float]]:
    """The loss and the figures of its terms, averaged over ranks."""
    if not terms:
        return float(all_reduce_mean(loss)), {}
    (found,) = terms
    named = {
        f"loss_{name}_nats" if name in IN_NATS else f"loss_{name}": value
        for name, value in found.losses.items()
    }
    named |= found.figures
    values = all_reduce_mean(torch.stack([loss, *(value.detach().float() for value in named.values())]))
    mean_loss, *means = values.tolist()
    return mean_loss, dict(zip(named, means, strict=True))


def update(trainer: Trainer, *, is_overflow: bool) -> None:
    """Apply the gradients; after an overflow of fp16 only its loss scale changes."""
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    with torch.no_grad():
        trainer.model.logit_scale.clamp_(0, optim.MAX_LOGIT_SCALE)
    if trainer.average is not None and not is_overflow:
        trainer.average.update()
    trainer.parallel.sync_buffers()


@torch.no_grad()
def _restore_buffers(model: DualEncoder, buffers: Mapping[str, Tensor]) -> None:
    """Undo what the forward pass has done to running statistics."""
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def encode(trainer: Trainer, chunk: Batch) -> dict[str, Tensor]:
    """Named features of a micro-batch: L2-normalised, with the scalars of the loss."""
    # Convolutions are up to 1.5 x as fast on channels-last images; the layout carries through the tower.
    image = chunk["image"].to(trainer.device, non_blocking=True, memory_format=torch.channels_last)
    inputs: dict[str, Any] = {"image": image}
    # Cut or packed on the CPU: wrappers move their inputs to the device, where looking at them would wait.
    if trainer.region_objective is None:
        num_columns = needed_columns(trainer.model.model, chunk["text"])
        inputs["text"] = chunk["text"][:, :num_columns].to(trainer.device, non_blocking=True)
    else:
        inputs |= {name: chunk[name].to(trainer.device, non_blocking=True) for name in ("boxes", "box_index")}
        texts = prepare_texts(trainer.model.model, chunk["text"], chunk["region_text"])
        inputs["text"] = texts.to(trainer.device)
    with autocast(trainer):
        return trainer.parallel.forward(**inputs)


def autocast(trainer: Trainer) -> torch.autocast:
    """The precision of the towers."""
    return autocast_of(trainer.config.precision, trainer.device)


_OF_REGIONS = ("boxes", "box_index", "region_text")


def micro_batches(batch: Batch, size: int | None) -> list[Batch]:
    """A batch in consecutive parts of `size` images, each with its own regions."""
    num_rows = batch["image"].shape[0]
    if size is None or size == num_rows:
        return [batch]
    parts: list[Batch] = []
    for start in range(0, num_rows, size):
        part: dict[str, Any] = {
            name: rows[start : start + size] for name, rows in batch.items() if name not in _OF_REGIONS
        }
        if "box_index" in batch:
            first, last = torch.searchsorted(batch["box_index"], torch.tensor([start, start + size])).tolist()
            part |= {name: batch[name][first:last] for name in _OF_REGIONS}
            part["box_index"] = part["box_index"] - start
        parts.append(part)
    return parts
