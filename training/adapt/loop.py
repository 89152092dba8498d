"""Train a head beside a frozen model; any rank count, resumable at any moment with the same result."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import clipkit
from clipkit import distributed
from clipkit.augment import AugmentConfig
from clipkit.console import progress
from clipkit.data.class_splits import (
    ClassSplits,
    base_classes,
    few_shot,
    open_class_splits,
    validation_shots,
)
from clipkit.devices import autocast_of, process_group, trained_attention, warn_if_emulated
from clipkit.heads.base import Head
from clipkit.heads.files import check_head_name, head_names, write_head
from clipkit.heads.methods import build_head, checked_settings, method_class
from clipkit.heads.teacher import Teacher
from clipkit.model_dir import CONFIG_NAME
from clipkit.prompts.class_texts import ClassTexts

from ..interrupt import Interrupt
from .accuracy import before_and_after
from .pictures import FrozenFeatures, RandomViews, frozen_features, readable_shots
from .recipe import Recipe
from .schedule import learning_rate
from .seeds import seed_of
from .state import Snapshot, TrainState, load_optimizer_tensors, optimizer_tensors

SECONDS_BETWEEN_STATES = 30.0


@dataclass(frozen=True, kw_only=True)
class AdaptJob:
    """All that an adaptation depends on."""

    model: Path
    data: str
    name: str
    recipe: Recipe
    recipe_name: str
    split: str = "all"
    """Trained classes: `all`, or `base` for the first half."""
    seed: int = 1
    precision: str = "fp32"
    teacher: str | None = None
    teacher_head: str | None = None
    overwrite: bool = False
    quiet: bool = False


class AdaptInterruptedError(Exception):
    """The training was asked to stop, and has saved its state."""


def adapt(job: AdaptJob) -> dict[str, Any]:
    """Train and store a head; the facts of its file, with the accuracies before and after.

    Raises:
        ValueError: a mistake in the request, in one line.
        OSError: something cannot be read or written.
        RuntimeError: the loss is not finite; nothing is stored.
        AdaptInterruptedError: by SIGINT or SIGTERM; the same call goes on.
    """
    check_head_name(job.name)
    if not (job.model / CONFIG_NAME).is_file():
        raise FileNotFoundError(
            f"{job.model} is no model directory, where a head has to be: save the model to one "
            "(clipkit.load(...).save(DIR))"
        )
    if job.name in head_names(job.model) and not job.overwrite:
        raise ValueError(f"{job.model} has a head {job.name!r}: give another --name, or --overwrite")
    method = method_class(job.recipe.method)
    settings = checked_settings(method, job.recipe.settings)
    if method.needs_teacher != (job.teacher is not None):
        need = "needs --teacher DIR" if method.needs_teacher else "takes no --teacher"
        raise ValueError(f"{method.method} {need}")
    splits = open_class_splits(job.data)
    with process_group() as device:
        warn_if_emulated(job.precision, device)
        model = clipkit.load(job.model, device=device).requires_grad_(False).eval()
        return _Training(job, model, settings, splits).run()


class _Training:
    """One adaptation, on one rank."""

    def __init__(
        self, job: AdaptJob, model: clipkit.DualEncoder, settings: dict[str, Any], splits: ClassSplits
    ) -> None:
        self.job, self.model, self.splits = job, model, splits
        self.recipe = job.recipe
        self.model_id = model.model_id
        device = model.logit_scale.device
        self.precision = autocast_of(job.precision, device)
        wanted = base_classes(splits.names) if job.split == "base" else list(range(len(splits.names)))
        of_wanted = splits.of_classes(wanted)
        train, self.val = of_wanted.train, of_wanted.val
        found = readable_shots(train, self.recipe.shots, job.seed)
        self.files, self.unreadable = found.files, found.unreadable
        self.names = self.files.classnames or ()
        torch.manual_seed(job.seed)
        self.head: Head = build_head(self.recipe.method, model, settings)
        self.views = self._views()
        known = self.views.known if isinstance(self.views, FrozenFeatures) else None
        self.head.prepare(model, self.names, self._teacher(), known)
        self.head.to(device)
        self._check_ranks()
        self.batch_size = min(self.recipe.batch_size, len(self.files))
        learns = any(parameter.requires_grad for parameter in self.head.parameters())
        self.num_epochs = self.recipe.num_epochs(self.recipe.shots) if learns else 0
        self.steps_per_epoch = len(self.files) // self.batch_size
        self.optimizer = _optimizer(self.head, self.recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=job.precision == "fp16")
        self.state = TrainState(job.model, job.name)
        self.seconds, self.loss = 0.0, float("nan")

    def run(self) -> dict[str, Any]:
        """Train from where the state says, store the head, forget the state."""
        if self.job.overwrite and distributed.rank() == 0:
            # An own unfinished training goes on; that of other settings is what may be overwritten.
            try:
                self.state.read(self._key())
            except ValueError:
                self.state.remove()
        distributed.barrier()
        step = self._resume()
        texts = self.head.class_texts(self.model, self.names)
        self.head.train()
        total, is_main = self.num_epochs * self.steps_per_epoch, distributed.rank() == 0
        began = saved = time.monotonic()
        with (
            Interrupt() as interrupt,
            progress(
                f"adapt {self.job.name}", total, done=step, show=is_main and not self.job.quiet
            ) as meter,
        ):
            for epoch, rows in self._batches(step):
                self._set_rate(epoch)
                self._step(epoch, rows, texts)
                step += 1
                if step % self.steps_per_epoch == 0:
                    self.head.end_epoch(epoch + 1, self.num_epochs)
                meter.advance(note=f"loss {self.loss:.3f}")
                now = time.monotonic()
                stop = _any_rank(interrupt.requested)
                due = step % self.steps_per_epoch == 0 or now - saved > SECONDS_BETWEEN_STATES
                if (stop or due) and step < total:
                    self.seconds, began, saved = self.seconds + now - began, now, now
                    if is_main:
                        self._save(step)
                if stop and step < total:
                    raise AdaptInterruptedError(
                        f"stopped at step {step} of {total}; the same command goes on"
                    )
        self.seconds += time.monotonic() - began
        self.head.finish()
        self._tune(texts)
        return self._store(step)

    def _tune(self, texts: ClassTexts) -> None:
        """Let the head choose settings on validation images, where there are any."""
        shots = validation_shots(self.recipe.shots)
        files = self.val.rows(few_shot(self.val.labels, shots, self.job.seed))
        if self.head.is_tuned and len(files):
            self.head.tune(self.model, frozen_features(self.model, files, self.precision), texts)

    def _step(self, epoch: int, rows: list[int], texts: ClassTexts) -> None:
        """One step on this rank's share of a batch; gradients are means over the whole batch."""
        own = rows[distributed.rank() :: distributed.world_size()]
        self.optimizer.zero_grad(set_to_none=False)
        if own:
            # Backward too: some methods recompute blocks there.
            with trained_attention(self.job.precision, self.model.logit_scale.device):
                self._backward(epoch, own, texts, share=len(own) / len(rows))
        if distributed.is_distributed():
            for parameter in self.head.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _backward(self, epoch: int, rows: list[int], texts: ClassTexts, *, share: float) -> None:
        """Gradients of the loss on this rank's rows, `share` of the batch."""
        with self.precision:
            loss = self.head.loss(self.model, self.views.batch(epoch, rows), texts)
        if not bool(loss.isfinite()):
            found = f"the loss is {float(loss.detach())} in epoch {epoch + 1}"
            raise RuntimeError(f"{found}: lower --lr, or take --precision fp32")
        scaled: Any = self.scaler.scale(loss * share)
        scaled.backward()
        self.loss = float(loss.detach())

    def _batches(self, first_step: int) -> Iterator[tuple[int, list[int]]]:
        """(epoch, rows) of each step from `first_step` on; rows that fill no batch are left out."""
        for epoch in range(first_step // self.steps_per_epoch, self.num_epochs):
            generator = torch.Generator().manual_seed(seed_of(self.job.seed, epoch))
            order = torch.split(torch.randperm(len(self.files), generator=generator), self.batch_size)
            begin = max(0, first_step - epoch * self.steps_per_epoch)
            for number in range(begin, self.steps_per_epoch):
                # Methods that draw in their loss draw the same whether or not the training was cut.
                torch.manual_seed(seed_of(self.job.seed, epoch, number, distributed.rank()))
                yield epoch, order[number].tolist()

    def _views(self) -> RandomViews | FrozenFeatures:
        if not self.head.changes_image:
            return FrozenFeatures(self.model, self.files, self.precision)
        augment = AugmentConfig(scale=(self.recipe.min_scale, 1.0), horizontal_flip=self.recipe.flip)
        return RandomViews(self.model, self.files, augment, self.job.seed)

    def _set_rate(self, epoch: int) -> None:
        rate = learning_rate(epoch, self.num_epochs, self.recipe.lr, warmup_epochs=self.recipe.warmup_epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _teacher(self) -> Teacher | None:
        if self.job.teacher is None:
            return None
        device = self.model.logit_scale.device
        model = clipkit.load(self.job.teacher, device=device).requires_grad_(False).eval()
        name = self.job.teacher_head
        return Teacher(model, None if name is None else model.with_head(name).head)

    def _check_ranks(self) -> None:
        has_statistics = any(isinstance(part, torch.nn.BatchNorm1d) for part in self.head.modules())
        if has_statistics and distributed.world_size() > 1:
            raise ValueError(
                f"{self.head.method} has batch statistics and trains on one process: leave out torchrun"
            )

    def _key(self) -> dict[str, Any]:
        """What must be equal for an unfinished training to go on."""
        job = self.job
        images = [self.files.where(row) for row in range(len(self.files))]
        return {
            **dataclasses.asdict(self.recipe),
            "model id": self.model_id,
            "data": job.data,
            "classes": list(self.names),
            "seed": job.seed,
            "split": job.split,
            "precision": job.precision,
            "teacher": [job.teacher, job.teacher_head],
            "ranks": distributed.world_size(),
            "images (hash)": hashlib.sha256("\n".join(images).encode()).hexdigest()[:16],
        }

    def _save(self, step: int) -> None:
        self.state.write(
            Snapshot(
                key=self._key(),
                step=step,
                seconds=self.seconds,
                loss=self.loss,
                head=self.head.state_dict(),
                training=self.head.training_tensors(),
                optimizer=optimizer_tensors(self.optimizer),
                scaler=self.scaler.state_dict(),
            )
        )

    def _resume(self) -> int:
        """Take over a state that is there; the steps that it has behind it."""
        state = self.state.read(self._key())
        if state is None:
            return 0
        device = self.model.logit_scale.device
        self.head.load_state_dict(state.head)
        self.head.load_training_tensors({name: value.to(device) for name, value in state.training.items()})
        load_optimizer_tensors(self.optimizer, state.optimizer)
        self.scaler.load_state_dict(dict(state.scaler))
        self.seconds, self.loss = state.seconds, state.loss
        return state.step

    def _store(self, step: int) -> dict[str, Any]:
        accuracies = before_and_after(self.model, self.head, self.splits, self.job.split, self.precision)
        facts: dict[str, Any] = {
            "class_names": list(self.names),
            "seed": self.job.seed,
            "shots": self.recipe.shots,
            "split": self.job.split,
            "data": self.job.data,
            "recipe": self.job.recipe_name,
            "training": {
                "epochs": self.num_epochs,
                "steps": step,
                "seconds": round(self.seconds, 3),
                "images": len(self.files),
                "fewest_images_of_a_class": int(self.files.labels.bincount().min()),
                "unreadable": len(self.unreadable),
                "loss": self.loss if step else None,
                "precision": self.job.precision,
                "parameters": sum(parameter.numel() for parameter in self.head.parameters()),
                **{name: getattr(self.recipe, name) for name in ("optimizer", "lr", "batch_size")},
            },
            "accuracy": accuracies,
        }
        if distributed.rank() == 0:
            facts = write_head(self.job.model, self.job.name, self.head, facts, model_id=self.model_id)
            self.state.remove()
        distributed.barrier()
        return {**facts, "unreadable": self.unreadable}


def _optimizer(head: Head, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    if not parameters:  # a head that learns nothing takes no step, and an optimizer refuses an empty list
        parameters = [torch.nn.Parameter(torch.zeros(0))]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)


def _any_rank(flag: bool) -> bool:
    if not distributed.is_distributed():
        return flag
    return bool(distributed.all_reduce_max(torch.tensor(float(flag))).item())
