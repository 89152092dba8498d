"""PromptKD: image prompts that learn the scores of a larger model on unlabelled images (arXiv:2403.02781).

Training is that of any head, with one thing more: `prepare(model, names, teacher)` takes the teacher's
features of all classes, once, and keeps the teacher until `finish`. A batch needs `image` alone; where the
scores of the teacher are known, it may bring them as `teacher_logits` (B, C).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkit.heads.base import Batch
from clipkit.heads.features import full_precision, unit_features
from clipkit.prompts.class_texts import ClassTexts, bare_names
from clipkit.prompts.slots import image_slots
from clipkit.prompts.vpt import Vpt, VptConfig

if TYPE_CHECKING:
    from clipkit.heads.features import LabelledFeatures
    from clipkit.heads.teacher import Teacher
    from clipkit.model import DualEncoder


@dataclass(frozen=True, kw_only=True)
class PromptKdConfig(VptConfig):
    """Settings of PromptKD."""

    num_prompts: int = 4
    """Prompts behind the patches."""
    temperature: float = 1.0
    """What both scores are divided by."""
    weight: float = 1000.0
    """Of the loss. Published: 1000, and 200 for aircraft, flowers and textures."""
    class_names: tuple[str, ...] = ()
    """Classes whose features are stored; `prepare` sets them."""
    teacher_width: int = 0
    """Width of these features; `prepare` sets it."""


class PromptKd(Vpt):
    """Image prompts, a projector to the teacher's width, and the teacher's features of all classes.

    The projector is Linear(D, D'), batch normalisation, ReLU, Linear(D', D') on unnormalised features.
    """

    method: ClassVar[str] = "promptkd"
    Config: ClassVar[type] = PromptKdConfig
    is_transductive: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True

    teacher_features: Tensor
    """(classes, D') fp32, L2-normalised."""

    def __init__(self, model: DualEncoder, config: PromptKdConfig) -> None:
        super().__init__(model, config)
        self._teacher: Teacher | None = None
        if config.class_names:
            self._add(model, torch.zeros(len(config.class_names), config.teacher_width))

    def prepare(
        self,
        model: DualEncoder,
        names: Sequence[str],
        teacher: Teacher | None = None,
        shots: LabelledFeatures | None = None,
    ) -> None:
        """Take the features of classes from the teacher.

        Raises:
            ValueError: there is no teacher, or it reads other images than the model.
        """
        if teacher is None:
            raise ValueError("promptkd learns from another model: name a teacher")
        ours, theirs = model.preprocess_config, teacher.model.preprocess_config
        if (ours.size, ours.mean, ours.std) != (theirs.size, theirs.mean, theirs.std):
            raise ValueError(
                f"teacher and student must read the same images, got {theirs.size} pixels, mean "
                f"{theirs.mean} and {ours.size}, mean {ours.mean}: load both at one image size"
            )
        features = teacher.text_features(names).float()
        self.config = dataclasses.replace(
            self.config, class_names=tuple(names), teacher_width=features.shape[1]
        )
        self._add(model, features.to(self.prompts[0].device))
        self._teacher = teacher

    def class_texts(self, model: DualEncoder, names: Sequence[str]) -> ClassTexts:
        """See `Head`.

        Raises:
            ValueError: the teacher's features of a class are not stored.
        """
        unknown = [name for name in names if name not in self.config.class_names]
        if unknown:
            raise ValueError(
                f"this promptkd head has no features of the teacher for {unknown[0]!r}: name classes that it "
                "was trained with, or train it again with this one (labels are not needed)"
            )
        return bare_names(names)

    def text_features(self, model: DualEncoder, texts: ClassTexts) -> Tensor:
        """See `Head`: (C, D'), of the teacher."""
        return self.teacher_features[[self.config.class_names.index(name) for name in texts.names]]

    def image_features(self, model: DualEncoder, images: Tensor) -> Tensor:
        """See `Head`: (B, D'), in the teacher's space.

        Raises:
            ValueError: a single image in training, of which batch normalisation knows no variance.
        """
        if self.training and len(images) < 2:
            raise ValueError("promptkd trains on at least 2 images at a time, got 1: leave out short batches")
        with image_slots(model.model, list(self.prompts)):
            features = full_precision(model.encode_image(images))
        return unit_features(self.projector(features))

    def loss(self, model: DualEncoder, batch: Batch, texts: ClassTexts) -> Tensor:
        """`weight` times `distillation_loss` of the teacher's scores; labels are not read. See `Head`."""
        logits = self.logits(model, self.image_features(model, batch["image"]), texts)
        config: PromptKdConfig = self.config
        return config.weight * distillation_loss(
            logits, self._teacher_logits(model, batch, texts), config.temperature
        )

    def finish(self) -> None:
        """Let go of the teacher."""
        self._teacher = None

    def _teacher_logits(self, model: DualEncoder, batch: Batch, texts: ClassTexts) -> Tensor:
        known = batch.get("teacher_logits")
        if known is not None:
            return known
        if self._teacher is None:
            raise ValueError("promptkd learns from a teacher: call prepare, or bring teacher_logits")
        return self._teacher.logits(batch["image"], self.text_features(model, texts))

    def _add(self, model: DualEncoder, features: Tensor) -> None:
        """The parts whose sizes depend on the teacher."""
        width = features.shape[1]
        self.register_buffer("teacher_features", features)
        self.projector = nn.Sequential(
            nn.Linear(model.embed_dim, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width)
        ).to(features.device)


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) in nats at a temperature T, times T^2 / (B x C) as in the published code.

    Args:
        logits: (B, C).
        teacher_logits: (B, C).
        temperature: T > 0.
    """
    found = F.log_softmax(logits / temperature, dim=1)
    wanted = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(found, wanted, log_target=True, reduction="sum") * temperature**2 / logits.numel()
