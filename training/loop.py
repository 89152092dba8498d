"""The training run, from configuration to model directory."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from clipkit import distributed
from clipkit.console import Meter, progress
from clipkit.data.skips import SkipReport
from clipkit.devices import process_group
from clipkit.gradcache import RngState

from . import checkpoint, run_dir
from .build import build_model, build_trainer
from .checkpointer import Checkpointer
from .config import TrainConfig, to_dict
from .data.loader import TrainLoader, build_train_loader
from .evaluate import Evaluations, evaluate, open_evaluations
from .export import save_model
from .interrupt import EXIT_INTERRUPTED, Interrupt
from .plan import plan_loss
from .runlog import RunLog
from .step import Batch, NonFiniteLossError, StepResult, Trainer, train_step
from .stopwatch import Stopwatch, verdict

logger = logging.getLogger(__name__)

MODEL_NAME = "model"
BEST_NAME = "best"
LAST_GOOD_NAME = "last_good"
SKIPPED_NAME = "skipped.json"


class TrainingStoppedError(RuntimeError):
    """The run cannot go on; the message says where its last good state is."""


@dataclass(kw_only=True)
class Run:
    """A run under way."""

    trainer: Trainer
    loader: TrainLoader
    evaluations: Evaluations
    checkpointer: Checkpointer
    log: RunLog
    watch: Stopwatch
    step: int = 0
    """Completed optimiser steps."""
    best: float | None = None
    """Best value of `eval.best_metric` so far."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the latest evaluation."""

    @property
    def config(self) -> TrainConfig:
        """The settings."""
        return self.trainer.config

    @property
    def samples_seen(self) -> int:
        """Pairs trained on so far, over all ranks."""
        return self.step * self.loader.batch_size_total

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides tensors; all ranks together."""
        self.loader.gather_skips()
        return {
            "config": to_dict(self.config),
            "grad_scaler": self.trainer.scaler.state_dict(),
            "best": {"metric": self.config.eval.best_metric, "value": self.best},
            "metrics": self.metrics,
            "samples_seen": self.samples_seen,
            "skipped": self.loader.skip_state(),
            "lost_regions": self.loader.lost_regions_state(),
            "data": self.loader.fingerprint,
        }


def train(config: TrainConfig) -> int:
    """Run to the end, or until a signal asks to stop.

    Returns:
        0 at the end or after a plan, 75 when interrupted after saving a checkpoint.

    Raises:
        ValueError: the configuration, the model or the data cannot be used.
        TrainingStoppedError: the loss is not finite.
        OSError: the disk refuses a checkpoint or the model directory.
    """
    with process_group() as device, Interrupt() as interrupt:
        torch.manual_seed(config.seed)
        if config.loss.plan:
            plan_loss(config, device)
            return 0
        latest = run_dir.find_checkpoint(config)
        run, rng = start(config, device, latest, interrupt)
        try:
            is_finished = fit(run, rng)
            if is_finished:
                finish(run)
        finally:
            run.log.close()
    return 0 if is_finished else EXIT_INTERRUPTED


def start(
    config: TrainConfig, device: torch.device, latest: Path | None, interrupt: Interrupt
) -> tuple[Run, RngState]:
    """Build everything and, after a checkpoint, put it in the state of its step."""
    model = build_model(config)
    state: dict[str, Any] = checkpoint.read_state(latest) if latest else {"step": 0}
    loader = build_train_loader(
        config.data, model=model, regions=config.trained_regions, seed=config.seed, start_step=state["step"]
    )
    trainer = build_trainer(config, model, device, num_steps(config, loader))
    trained = checkpoint.Trained(model=model, optimizer=trainer.optimizer, average=trainer.average)
    rng = RngState()
    if latest:
        rng = checkpoint.load(latest, trained)
        trainer.scaler.load_state_dict(state["grad_scaler"])
        loader.load_skip_state(state["skipped"])
        loader.load_lost_regions_state(state.get("lost_regions", {}))
        run_dir.check_same_data(loader.fingerprint, state["data"], latest)
    best = state.get("best", {})
    evaluations = open_evaluations(config)
    run_dir.create(config)
    run = Run(
        trainer=trainer,
        loader=loader,
        evaluations=evaluations,
        checkpointer=Checkpointer(
            config.output / run_dir.CHECKPOINTS_NAME,
            config.checkpoint,
            trained,
            interrupt,
            saved_step=state["step"] if latest else None,
        ),
        log=RunLog.open(config, is_main=distributed.rank() == 0, resume_step=state["step"]),
        watch=Stopwatch(loader.batch_size_total),
        step=state["step"],
        best=best.get("value") if best.get("metric") == config.eval.best_metric else None,
        metrics=state.get("metrics", {}),
    )
    return run, rng


def num_steps(config: TrainConfig, loader: TrainLoader) -> int:
    """Optimiser steps of the whole run."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return max(1, round(config.epochs * loader.num_batches_per_epoch))


def fit(run: Run, rng: RngState) -> bool:
    """Train from the present step; True at the end of the run, False when asked to stop before."""
    batches: Iterator[Batch] = run.watch.timed(iter(run.loader))
    with progress("train", run.trainer.num_steps, done=run.step, show=distributed.rank() == 0) as meter:
        if run.step:
            meter.say(f"resumed after step {run.step} of {run.trainer.num_steps}")
        # After the loader has started, which may draw from the generators itself.
        rng.restore()
        while run.step < run.trainer.num_steps:
            batch = next(batches)
            before = RngState()
            try:
                result = train_step(run.trainer, batch, run.step)
            except NonFiniteLossError as error:
                raise stop_at(run, before, batch, error) from error
            run.step += 1
            report(run, result, meter)
            evaluate_if_due(run, meter)
            if run.checkpointer.after_step(run.step, run.state):
                meter.say(f"interrupted: saved step {run.step}; continue with --resume auto")
                return False
    run.checkpointer.save(run.step, RngState(), run.state())
    return True


def report(run: Run, result: StepResult, meter: Meter) -> None:
    """Log the step if it is due, and move the bar."""
    note = ""
    if run.step % run.config.log.every_steps == 0 or run.step == run.trainer.num_steps:
        rates = run.watch.lap()
        values = {
            "epoch": run.step / run.loader.num_batches_per_epoch,
            "samples_seen": run.samples_seen,
            "loss_nats": result.loss,
            "logit_scale": result.logit_scale,
            "grad_norm": result.grad_norm,
            "lr": result.lr,
            **result.figures,
            **rates,
        }
        run.log.log(run.step, values)
        note = (
            f"loss {result.loss:.3f}  scale {result.logit_scale:.1f}  "
            f"{rates['images_per_second']:.0f} images/s  {verdict(rates['data_wait_fraction'])}"
        )
    meter.advance(1, note)


def evaluate_if_due(run: Run, meter: Meter) -> None:
    """Evaluate at the set interval and at the end; keep the model if it is the best so far."""
    every = run.config.eval.every_steps or run.loader.num_batches_per_epoch
    if not run.evaluations or (run.step % every and run.step != run.trainer.num_steps):
        return
    run.metrics = evaluate(run.trainer, run.evaluations)
    run.log.log(run.step, {"samples_seen": run.samples_seen, **run.metrics})
    meter.say(f"step {run.step}: " + "  ".join(f"{name} {value:.4g}" for name, value in run.metrics.items()))
    keep_if_best(run)
    run.watch.pause()


def keep_if_best(run: Run) -> None:
    """Save the model as `best/` when the named metric has not been better before."""
    name = run.config.eval.best_metric
    if name is None:
        return
    value = -run.metrics[name] if name.endswith("mean_rank") else run.metrics[name]
    if run.best is None or value > run.best:
        run.best = value
        save_model(run.trainer, run.config.output / BEST_NAME, step=run.step, metrics=run.metrics)


def stop_at(run: Run, before: RngState, batch: Batch, error: NonFiniteLossError) -> TrainingStoppedError:
    """Save the state before a failed step and say what was in its batch."""
    run.checkpointer.save(run.step, before, run.state())
    last_good = run.config.output / LAST_GOOD_NAME
    save_model(run.trainer, last_good, step=run.step, metrics=run.metrics)
    keys = run.config.output / f"nonfinite_step_{run.step + 1}_rank_{distributed.rank()}.json"
    keys.write_text(json.dumps({"step": run.step + 1, "keys": batch["key"]}, indent=2), encoding="utf-8")
    return TrainingStoppedError(
        f"{error}; the keys of the batch are in {keys} (first: {', '.join(batch['key'][:3])}); the state "
        f"before is saved as checkpoint step_{run.step} and as a model: go on with --model.source "
        f"{last_good}, a lower optim.lr or optim.grad_clip_norm, and another --output"
    )


def finish(run: Run) -> None:
    """Save the model directory and say how the run went."""
    path = run.config.output / MODEL_NAME
    save_model(run.trainer, path, step=run.step, metrics=run.metrics)
    run.loader.gather_skips()
    if distributed.rank() == 0:
        reports = [run.loader.skip_report(), *run.evaluations.skip_reports.values()]
        counts = {name: found for report in reports for name, found in report.counts.items()}
        lost = run.loader.lost_regions().counts.items()
        counts |= {f"regions of {name}": found for name, found in lost if found}
        skipped = json.dumps(counts, indent=2)
        (run.config.output / SKIPPED_NAME).write_text(skipped, encoding="utf-8")
        print(SkipReport(counts, {}).summary())
        print(f"{verdict(run.watch.data_wait_fraction)}; model directory: {path}")
