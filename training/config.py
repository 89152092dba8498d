"""One tree of settings: it is the YAML file, the flags and `clipkit train --help`.

Nothing here imports torch, so help and mistakes in a configuration are answered at once.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clipkit.augment import AugmentConfig
from clipkit.suggestions import did_you_mean

from .regions_config import LOSSES, RegionsConfig

RETRIEVAL_METRICS = tuple(
    f"{direction}_{metric}"
    for direction in ("text_to_image", "image_to_text")
    for metric in ("R@1", "R@5", "R@10", "mean_rank")
)
ZERO_SHOT_METRICS = ("top1", "top5")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained and where it starts."""

    name: str | None = None
    """Architecture to train from scratch: an open_clip name, `tiny-vit`, `tiny-conv`, or a JSON file."""
    source: str | None = None
    """Weights to start from: a model directory, `NAME/TAG`, `hf-hub:ORG/REPO`, or a checkpoint of `name`."""
    image_size: int | None = None
    """Pixels; position embeddings are interpolated when it differs from the source's."""
    resize_mode: Literal["shortest", "longest", "squash"] | None = None
    """How images are resized: by the `shortest` side and cut, by the `longest` and padded, or `squash`."""
    context_length: int | None = None
    """Tokens a text is cut or padded to."""
    patch_dropout: float | None = None
    """Fraction of image patches left out of each training step (FLIP)."""
    lock_image: bool = False
    """Freeze the image tower."""
    lock_image_unlocked_groups: int = 0
    """Of a locked image tower, train the last so many groups of layers."""
    lock_text: bool = False
    """Freeze the text tower."""
    lock_text_unlocked_groups: int = 0
    """Of a locked text tower, train the last so many groups of layers."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""

    def __post_init__(self) -> None:
        _require(
            bool(self.name or self.source),
            "model.name (from scratch) or model.source (fine-tune) is needed, got neither",
        )
        _require(
            self.patch_dropout is None or 0 <= self.patch_dropout < 1,
            f"model.patch_dropout must be in [0, 1), got {self.patch_dropout}",
        )
        for tower in ("image", "text"):
            groups = getattr(self, f"lock_{tower}_unlocked_groups")
            _require(groups >= 0, f"model.lock_{tower}_unlocked_groups must be >= 0, got {groups}")
            _require(
                groups == 0 or getattr(self, f"lock_{tower}"),
                f"model.lock_{tower}_unlocked_groups needs model.lock_{tower}",
            )
        _require(
            not (self.lock_image and self.lock_text)
            or self.lock_image_unlocked_groups + self.lock_text_unlocked_groups > 0,
            "model.lock_image and model.lock_text leave nothing to train; unlock one or some groups of it",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training pairs and how they become batches."""

    sources: dict[str, str] = field(default_factory=dict)
    """Location by name: tar shards (`dir/{00000..00031}.tar`), a CSV/TSV/parquet file or a folder."""
    weights: dict[str, float] = field(default_factory=dict)
    """Times per epoch that a source's samples are seen, by name; 1 where none is given."""
    image_keys: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    """Shard members that hold the image."""
    caption_keys: tuple[str, ...] = ("txt",)
    """Shard members that hold captions, one a line; `json.NAME` reads a field of the json member."""
    image_column: str = "filepath"
    """Column of a table that holds the path of the image."""
    caption_column: str = "title"
    """Column of a table that holds a caption; rows of the same image are its captions."""
    captions: Literal["random", "first", "longest"] = "random"
    """Which of an image's captions is used in a step."""
    batch_size_per_rank: int = 256
    """Pairs per rank and optimiser step; all are negatives of each other, over all ranks."""
    micro_batch_size_per_rank: int | None = None
    """Pairs encoded at once: smaller saves memory for one more forward pass, with the same gradients."""
    num_workers: int = 2
    """Processes that decode images, per rank; the order of samples does not depend on it."""
    shuffle_window_samples: int = 262_144
    """Samples shuffled together; shards are shuffled over the whole epoch."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        _require(bool(self.sources), "data.sources needs at least one source, e.g. --data.sources.mine DIR")
        unknown = sorted(set(self.weights) - set(self.sources))
        _require(
            not unknown,
            f"data.weights names {', '.join(unknown)}, which data.sources lacks (it has "
            f"{', '.join(sorted(self.sources))})",
        )
        for name, weight in self.weights.items():
            _require(weight > 0, f"data.weights.{name} must be > 0, got {weight}")
        _require(
            self.batch_size_per_rank >= 1,
            f"data.batch_size_per_rank must be >= 1, got {self.batch_size_per_rank}",
        )
        micro = self.micro_batch_size_per_rank
        _require(
            micro is None or (micro >= 1 and self.batch_size_per_rank % micro == 0),
            f"data.micro_batch_size_per_rank must divide data.batch_size_per_rank="
            f"{self.batch_size_per_rank}, got {micro}",
        )
        _require(self.num_workers >= 0, f"data.num_workers must be >= 0, got {self.num_workers}")
        _require(
            self.shuffle_window_samples >= 1,
            f"data.shuffle_window_samples must be >= 1, got {self.shuffle_window_samples}",
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The contrastive objective."""

    objective: Literal["softmax", "sigmoid"] = "softmax"
    """`softmax` is CLIP's loss, `sigmoid` SigLIP's."""
    scope: Literal["world", "group", "local"] = "world"
    """Whose pairs are negatives of each other: those of all ranks, of a group of ranks, of each rank
    alone."""
    group_size: int | None = None
    """Ranks of a group, for `scope` group."""
    group_nodes: int | None = None
    """Machines of a group, instead of `group_size`."""
    kernel: Literal["auto", "dense", "tiled", "triton"] = "auto"
    """`dense` holds all logits, `tiled` and (on CUDA) `triton` a tile of them; `auto` picks."""
    exchange: Literal["gather", "ring"] = "gather"
    """How text features travel: all at once, or from rank to rank, so that none ever holds all."""
    label_smoothing: float = 0.0
    """Part of every target that is spread over all pairs."""
    same_captions: Literal["negatives", "positives", "ignored"] = "negatives"
    """What pairs with equal captions are to each other; captions made from labels are often equal."""
    weights: dict[str, float] = field(default_factory=dict)
    """Of the losses that `regions.head` adds (`region_text`, `grounding`, `box`, `image_query`), by name; 1
    where none is given."""
    plan: bool = False
    """Print the memory and the traffic of every kind of loss for this run, and stop."""

    def __post_init__(self) -> None:
        sizes = [size for size in (self.group_size, self.group_nodes) if size is not None]
        _require(
            len(sizes) == (self.scope == "group"),
            "loss.scope=group needs one of loss.group_size and loss.group_nodes, no other scope takes any; "
            f"got scope={self.scope}, group_size={self.group_size}, group_nodes={self.group_nodes}",
        )
        _require(
            all(size >= 1 for size in sizes),
            f"loss.group_size and loss.group_nodes must be >= 1, got {sizes[0] if sizes else None}",
        )
        _require(
            0 <= self.label_smoothing < 1,
            f"loss.label_smoothing must be in [0, 1), got {self.label_smoothing}",
        )
        for name, weight in self.weights.items():
            _require(0 <= weight < math.inf, f"loss.weights.{name} must be finite and >= 0, got {weight}")

    def weight(self, name: str) -> float:
        """The factor of a loss that is added to the contrastive one."""
        return self.weights.get(name, 1.0)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = 5e-4
    """Peak learning rate, reached after `warmup_steps`."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of AdamW's first and second moments."""
    eps: float = 1e-6
    """AdamW's denominator term."""
    weight_decay: float = 0.2
    """For weight matrices; norms, biases and the logit scale have none."""
    layer_decay: float = 1.0
    """Factor on the learning rate per layer towards the input; 1 treats all alike."""
    grad_clip_norm: float | None = None
    """Largest norm of the whole gradient."""
    schedule: Literal["cosine", "constant", "constant-cooldown"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_steps: int | None = None
    """Optimiser steps of linear warm-up; none means 2,000, or a tenth of a shorter run."""
    cooldown_steps: int | None = None
    """Steps of linear decay to zero at the end; for `constant-cooldown`."""
    ema_decay: float | None = None
    """Average the weights over steps with this decay; the average is evaluated and saved."""

    def __post_init__(self) -> None:
        _require(self.lr > 0, f"optim.lr must be > 0, got {self.lr}")
        _require(all(0 <= b < 1 for b in self.betas), f"optim.betas must be in [0, 1), got {self.betas}")
        _require(self.eps > 0, f"optim.eps must be > 0, got {self.eps}")
        _require(self.weight_decay >= 0, f"optim.weight_decay must be >= 0, got {self.weight_decay}")
        _require(0 < self.layer_decay <= 1, f"optim.layer_decay must be in (0, 1], got {self.layer_decay}")
        _require(
            self.grad_clip_norm is None or self.grad_clip_norm > 0,
            f"optim.grad_clip_norm must be > 0, got {self.grad_clip_norm}",
        )
        _require(
            self.warmup_steps is None or self.warmup_steps >= 0,
            f"optim.warmup_steps must be >= 0, got {self.warmup_steps}",
        )
        _require(
            (self.cooldown_steps is not None) == (self.schedule == "constant-cooldown"),
            "optim.cooldown_steps goes with optim.schedule=constant-cooldown, got "
            f"cooldown_steps={self.cooldown_steps} with schedule={self.schedule}",
        )
        _require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"optim.ema_decay must be in (0, 1), got {self.ema_decay}",
        )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation during the run, spread over all ranks."""

    retrieval: dict[str, str] = field(default_factory=dict)
    """Captioned data by name; all captions of an image count as right answers."""
    zero_shot: dict[str, str] = field(default_factory=dict)
    """Labelled data by name: a folder of class folders, or evaluation shards with `classnames.txt`."""
    every_steps: int | None = None
    """Optimiser steps between evaluations; none means the end of every epoch."""
    batch_size: int = 256
    """Images encoded at once."""
    best_metric: str | None = None
    """Keep the best model by this metric, e.g. `val/text_to_image_R@1`, as `best/`."""

    def __post_init__(self) -> None:
        _require(
            self.every_steps is None or self.every_steps >= 1,
            f"eval.every_steps must be >= 1, got {self.every_steps}",
        )
        _require(self.batch_size >= 1, f"eval.batch_size must be >= 1, got {self.batch_size}")
        shared = sorted(set(self.retrieval) & set(self.zero_shot))
        _require(not shared, f"eval.retrieval and eval.zero_shot share the name {', '.join(shared)}")
        if self.best_metric is not None:
            known = [f"{name}/{metric}" for name in self.retrieval for metric in RETRIEVAL_METRICS]
            known += [f"{name}/{metric}" for name in self.zero_shot for metric in ZERO_SHOT_METRICS]
            nearest = did_you_mean(self.best_metric, known) or f"; choose from {', '.join(known) or 'none'}"
            _require(
                self.best_metric in known,
                f"eval.best_metric={self.best_metric} is none of the evaluations' metrics{nearest}",
            )
        _require(
            self.every_steps is None or bool(self.retrieval or self.zero_shot),
            "eval.every_steps needs something to evaluate: set eval.retrieval or eval.zero_shot",
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the whole training state is saved, for an exact resume."""

    every_steps: int | None = None
    """Optimiser steps between checkpoints."""
    every_minutes: float | None = 15.0
    """Minutes between checkpoints."""
    keep: int = 2
    """How many of the latest checkpoints stay on disk."""

    def __post_init__(self) -> None:
        _require(
            self.every_steps is None or self.every_steps >= 1,
            f"checkpoint.every_steps must be >= 1, got {self.every_steps}",
        )
        _require(
            self.every_minutes is None or self.every_minutes > 0,
            f"checkpoint.every_minutes must be > 0, got {self.every_minutes}",
        )
        _require(self.keep >= 1, f"checkpoint.keep must be >= 1, got {self.keep}")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Where the course of the run is written, besides `runlog.jsonl`."""

    every_steps: int = 10
    """Optimiser steps between lines."""
    tensorboard: bool = False
    """Also write TensorBoard event files to `OUTPUT/tensorboard`."""
    wandb_project: str | None = None
    """Also log to this Weights & Biases project."""

    def __post_init__(self) -> None:
        _require(self.every_steps >= 1, f"log.every_steps must be >= 1, got {self.every_steps}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that determines a training run."""

    output: Path
    """Run directory: configuration, log, checkpoints and, at the end, `model/`."""
    model: ModelConfig
    data: DataConfig
    loss: LossConfig = field(default_factory=LossConfig)
    regions: RegionsConfig = field(default_factory=RegionsConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    epochs: float | None = None
    """Length of the run in passes over the data."""
    steps: int | None = None
    """Length of the run in optimiser steps."""
    seed: int = 0
    """Fixes the initial weights, the order of the data, the augmentation and dropout."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type of the towers; weights and losses stay fp32."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Over several ranks: replicate the model, or shard it (FSDP2)."""
    compile: bool = False
    """Compile the model with torch.compile."""
    resume: Literal["auto", "never"] = "never"
    """`auto` continues from the latest checkpoint in `output`, if there is one."""

    def __post_init__(self) -> None:
        _require(
            (self.epochs is None) != (self.steps is None),
            f"set one of epochs and steps, got epochs={self.epochs} and steps={self.steps}; what a file or "
            "recipe has is taken back with none, as in --epochs none --steps 1000",
        )
        _require(self.epochs is None or self.epochs > 0, f"epochs must be > 0, got {self.epochs}")
        _require(self.steps is None or self.steps >= 1, f"steps must be >= 1, got {self.steps}")
        _require(0 <= self.seed < 2**63, f"seed must be in [0, 2**63), got {self.seed}")
        self.regions.check_weights(self.loss.weights)
        _require(
            not (self.trained_regions and self.model.patch_dropout),
            f"regions.head={self.regions.head} reads all patches of an image: model.patch_dropout must be 0, "
            f"got {self.model.patch_dropout}",
        )

    @property
    def trained_regions(self) -> RegionsConfig | None:
        """`regions` if they take part in the run, which needs a head and a loss of it that counts."""
        counts = any(self.loss.weight(name) > 0 for name in LOSSES[self.regions.head])
        return self.regions if counts else None


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain JSON- and YAML-ready values of a configuration."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    values: dict[str, Any] = plain(dataclasses.asdict(config))
    return values
