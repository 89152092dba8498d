"""Accuracies among base classes alone and among new ones alone (CoCoOp, arXiv:2203.05557)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

Score = Callable[[Tensor, Sequence[str]], Tensor]
"""Image features (N, D) and C class names -> (N, C) scores on the device of the features or on the CPU."""


def base_and_new_accuracy(
    score: Score, image_features: Tensor, labels: Tensor, class_names: Sequence[str]
) -> tuple[float, float]:
    """Shares of base images that are right among the base names, and of new images among the new names.

    Args:
        score: of a head, or of another classifier.
        image_features: (N, D), as `score` takes them.
        labels: (N,) int64 in [0, C), on the CPU.
        class_names: C, at least two; the first ceil(C / 2) are the base classes.

    Raises:
        ValueError: the base or the new classes have no image.
    """
    num_base = (len(class_names) + 1) // 2
    is_base = labels < num_base
    base = accuracy(score, image_features[is_base], labels[is_base], class_names[:num_base])
    new = accuracy(score, image_features[~is_base], labels[~is_base] - num_base, class_names[num_base:])
    return base, new


def accuracy(score: Score, features: Tensor, labels: Tensor, names: Sequence[str]) -> float:
    """Share of images that are right among the names; arguments as of `base_and_new_accuracy`.

    Raises:
        ValueError: there is no image.
    """
    if not len(labels):
        raise ValueError(f"no image of {len(names)} classes that begin with {names[0] if names else None!r}")
    found = score(features, names).argmax(dim=1).cpu()
    return int((found == labels).sum()) / len(labels)
