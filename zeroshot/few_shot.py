"""Draws of a few images a class, and classifiers of them that learn nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .scoring import class_means, rows_per_class

_SCORES_PER_BLOCK = 2**26
_HELD_OUT = 5
_MAX_VALIDATION_SHOTS = 4


def split_shots(labels: Tensor, num_classes: int, shots: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Training images, and others to choose settings by, drawn class by class.

    Args:
        labels: (N,) int64 in [0, C).
        num_classes: C.
        shots: training images a class, beside which min(shots, 4) are for validation, or as many as are left
            (CoOp, arXiv:2109.01134); 0 for four fifths of each class, and the last fifth for validation.
        seed: of the draw.

    Returns:
        Two sets of rows, int64, that share none.

    Raises:
        ValueError: a class has too few images, or no class has two.
    """
    counts = rows_per_class(labels, labels.shape[0], num_classes)
    if shots and int(counts.min()) <= shots:
        raise ValueError(
            f"{shots} shots need {shots + 1} training images of each class, one of them for validation; the "
            f"smallest class has {int(counts.min())}"
        )
    order = torch.randperm(labels.shape[0], generator=torch.Generator().manual_seed(seed))
    by_class = torch.split(order[labels[order].argsort(stable=True)], counts.tolist())
    if shots:
        end = shots + min(shots, _MAX_VALIDATION_SHOTS)
        parts = [(rows[:shots], rows[shots:end]) for rows in by_class]
    else:
        held_out = [min(len(rows) - 1, max(1, len(rows) // _HELD_OUT)) for rows in by_class]
        parts = [(rows[size:], rows[:size]) for rows, size in zip(by_class, held_out, strict=True)]
    training, validation = (torch.cat(part) for part in zip(*parts, strict=True))
    if not len(validation):
        raise ValueError("a validation part needs a class with at least two training images, none has")
    return training, validation


def nearest_mean_scores(features: Tensor, train_features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Cosines with the mean of each class.

    Args:
        features: (N, D), rows L2-normalised.
        train_features: (M, D), rows L2-normalised.
        labels: (M,) int64 in [0, C), each at least once.
        num_classes: C.

    Returns:
        (N, C).
    """
    return features @ F.normalize(class_means(train_features, labels, num_classes), dim=-1).T


def nearest_neighbour_scores(
    features: Tensor, train_features: Tensor, labels: Tensor, num_classes: int, *, num_neighbours: int
) -> Tensor:
    """Votes of the nearest training images, by cosine; of classes with equal votes the nearer one is ahead.

    Works in blocks of rows, so memory beyond the result stays flat in their number.

    Args:
        features: (N, D), rows L2-normalised.
        train_features: (M, D), rows L2-normalised.
        labels: (M,) int64 in [0, C).
        num_classes: C.
        num_neighbours: at most M.

    Returns:
        (N, C): votes, plus less than one half for how near their images are.
    """
    scores = features.new_zeros(features.shape[0], num_classes)
    block = max(1, _SCORES_PER_BLOCK // max(1, train_features.shape[0]))
    for start in range(0, features.shape[0], block):
        nearest = (features[start : start + block] @ train_features.T).topk(num_neighbours, dim=1)
        # Cosines lie in [-1, 1], so that all of them together stay below half a vote.
        votes = 1 + nearest.values / (4 * num_neighbours)
        scores[start : start + block].scatter_add_(1, labels.to(features.device)[nearest.indices], votes)
    return scores
