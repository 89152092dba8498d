"""Accuracies of a head among base classes alone and among new ones alone (CoCoOp, arXiv:2203.05557)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipkit.heads.base import Head
    from clipkit.model import DualEncoder

_BLOCK = 256


@torch.no_grad()
def base_and_new_accuracy(
    model: DualEncoder, head: Head, image_features: Tensor, labels: Tensor, class_names: Sequence[str]
) -> tuple[float, float]:
    """Shares of base images that are right among the base names, and of new images among the new names.

    Args:
        model: the frozen dual encoder.
        head: trained beside it on the base classes.
        image_features: (N, D), as `head.image_features` gives them.
        labels: (N,) int64 in [0, C).
        class_names: C, at least two; the first ceil(C / 2) are the base classes.

    Raises:
        ValueError: the base or the new classes have no image.
    """
    num_base = (len(class_names) + 1) // 2
    is_base = labels < num_base
    base = _accuracy(model, head, image_features[is_base], labels[is_base], class_names[:num_base])
    new = _accuracy(
        model, head, image_features[~is_base], labels[~is_base] - num_base, class_names[num_base:]
    )
    return base, new


def _accuracy(
    model: DualEncoder, head: Head, features: Tensor, labels: Tensor, names: Sequence[str]
) -> float:
    if not len(labels):
        raise ValueError(f"no image of {len(names)} classes that begin with {names[0] if names else None!r}")
    texts = head.class_texts(model, names)
    blocks = zip(torch.split(features, _BLOCK), torch.split(labels, _BLOCK), strict=True)
    right = [
        (head.logits(model, block, texts).argmax(dim=1).cpu() == own.cpu()).sum() for block, own in blocks
    ]
    return int(torch.stack(right).sum()) / len(labels)
