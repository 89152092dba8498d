"""PromptSRC: independent prompts that are held to what the frozen model says (arXiv:2307.06948)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.evaluation import class_features
from clipkit.heads.base import Batch
from clipkit.heads.features import cosine_logits, unit_features
from clipkit.prompts.class_texts import ClassTexts
from clipkit.prompts.ivlp import Ivlp, IvlpConfig
from clipkit.templates import load_templates

if TYPE_CHECKING:
    from clipkit.model import DualEncoder

TEMPLATES = "openai"
"""The set whose mean a class has in the frozen model: CLIP's 80 for ImageNet, as open_clip ships them. The
published code takes 60 of them, and averages before it normalises."""


@dataclass(frozen=True, kw_only=True)
class PromptSrcConfig(IvlpConfig):
    """Settings of PromptSRC."""

    num_text_prompts: int = 4
    """Prompts in the text tower."""
    num_image_prompts: int = 4
    """Prompts in the image tower."""
    text_weight: float = 25.0
    """Of the mean absolute difference between prompted and frozen features of classes."""
    image_weight: float = 10.0
    """Of that between prompted and frozen features of images."""
    logits_weight: float = 1.0
    """Of the divergence of prompted from frozen scores."""
    average_mean: float = 15.0
    """Epoch, counted from 1, whose prompts weigh most in the average over epochs that is kept."""
    average_std: float = 1.0
    """Epochs; standard deviation of the Gaussian that gives the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.average_std <= 0:
            raise ValueError(f"average_std must be > 0, got {self.average_std}")


class PromptSrc(Ivlp):
    """Prompts as in `Ivlp`, held to the frozen model in features and scores, and averaged over epochs."""

    method: ClassVar[str] = "promptsrc"
    Config: ClassVar[type] = PromptSrcConfig

    def __init__(self, model: DualEncoder, config: PromptSrcConfig) -> None:
        super().__init__(model, config)
        self._sums: dict[str, Tensor] = {}
        self._total = 0.0

    def loss(self, model: DualEncoder, batch: Batch, texts: ClassTexts) -> Tensor:
        """Cross-entropy, plus what holds features and scores to the frozen ones; see `Head`."""
        images, classes = self.image_features(model, batch["image"]), self.text_features(model, texts)
        logits = cosine_logits(model, images, classes)
        with torch.no_grad():
            frozen_images = unit_features(model.encode_image(batch["image"]))
            frozen_classes = template_features(model, texts)
            frozen_logits = cosine_logits(model, frozen_images, frozen_classes)
        config: PromptSrcConfig = self.config
        return (
            F.cross_entropy(logits, batch["label"])
            + config.text_weight * F.l1_loss(classes, frozen_classes)
            + config.image_weight * F.l1_loss(images, frozen_images)
            + config.logits_weight * score_divergence(logits, frozen_logits)
        )

    def end_epoch(self, epoch: int, num_epochs: int) -> None:
        """Add the prompts of this epoch to the average."""
        weight = float(
            epoch_weights(num_epochs, self.config.average_mean, self.config.average_std)[epoch - 1]
        )
        for name, parameter in self.named_parameters():
            value = parameter.detach().cpu().double() * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._total += weight

    @torch.no_grad()
    def finish(self) -> None:
        """Put the average in place of the last prompts; of training that ended early, over its epochs."""
        for name, parameter in self.named_parameters():
            if name in self._sums:
                parameter.copy_(self._sums[name] / self._total)
        self._sums, self._total = {}, 0.0

    def training_tensors(self) -> dict[str, Tensor]:
        """The sums of the average and their weight, fp64; empty before the first epoch has ended."""
        if not self._sums:
            return {}
        sums = {f"sum.{name}": value for name, value in self._sums.items()}
        return {**sums, "total_weight": torch.tensor(self._total, dtype=torch.float64)}

    def load_training_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Head`."""
        sums = {name: value for name, value in tensors.items() if name.startswith("sum.")}
        self._sums = {name.removeprefix("sum."): value.cpu().double() for name, value in sums.items()}
        self._total = float(tensors["total_weight"]) if sums else 0.0


def score_divergence(logits: Tensor, frozen_logits: Tensor) -> Tensor:
    """KL(frozen || prompted) in nats, summed over images and divided by B x C as in the published code.

    Args:
        logits: (B, C).
        frozen_logits: (B, C).
    """
    found, wanted = F.log_softmax(logits, dim=1), F.log_softmax(frozen_logits, dim=1)
    return F.kl_div(found, wanted, log_target=True, reduction="sum") / logits.numel()


def epoch_weights(num_epochs: int, mean: float, std: float) -> Tensor:
    """(num_epochs,) fp64: a Gaussian at 1 .. num_epochs, with sum 1, however far away its mean is."""
    epochs = torch.arange(1, num_epochs + 1, dtype=torch.float64)
    return torch.softmax(-0.5 * ((epochs - mean) / std) ** 2, dim=0)


def template_features(model: DualEncoder, texts: ClassTexts) -> Tensor:
    """Features (C, D) of classes in the model as it is, means over `TEMPLATES`, normalised; computed once."""
    if "templates" not in texts.frozen:
        device = model.logit_scale.device
        features = class_features(model, texts.names, load_templates(TEMPLATES), device=device)
        texts.frozen["templates"] = features.clone()  # one that autograd takes, made outside inference mode
    return texts.frozen["templates"].to(model.logit_scale.device)
