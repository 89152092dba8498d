"""Features and scores in full precision, whatever the towers compute in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from clipkit.model import DualEncoder


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of labelled images in the model as it is."""

    image_features: Tensor
    """(N, D) fp32, L2-normalised."""
    labels: Tensor
    """(N,) int64, in [0, C)."""


def unit_features(features: Tensor) -> Tensor:
    """(..., D) L2-normalised, in fp32 or, of fp64, as they are."""
    return F.normalize(full_precision(features), dim=-1)


def cosine_logits(model: DualEncoder, image_features: Tensor, text_features: Tensor) -> Tensor:
    """Cosines times the model's scale, in fp32 under autocast too: bf16 has steps of 0.5 near 100.

    Args:
        model: whose `logit_scale` is taken.
        image_features: (B, D), L2-normalised.
        text_features: (C, D), L2-normalised, or (B, C, D) for each image.

    Returns:
        (B, C) fp32.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        images, texts = full_precision(image_features), full_precision(text_features)
        cosines = images @ texts.T if texts.ndim == 2 else torch.einsum("bd,bcd->bc", images, texts)
        return full_precision(model.logit_scale).exp() * cosines


def full_precision(values: Tensor) -> Tensor:
    """fp32, or fp64 as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
