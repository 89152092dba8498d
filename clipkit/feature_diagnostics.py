"""What the two modalities look like in the joint space. Features are L2-normalised."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_COSINES_PER_BLOCK = 2**25


def modality_gap(image_features: Tensor, text_features: Tensor) -> float:
    """Distance between the centroids of both modalities (Liang et al., arXiv:2203.02053, section 4).

    Args:
        image_features: (N, D), rows L2-normalised.
        text_features: (T, D), rows L2-normalised.

    Returns:
        In [0, 2].
    """
    difference = image_features.double().mean(dim=0) - text_features.double().mean(dim=0)
    return float(difference.norm())


def alignment(features: Tensor, other_features: Tensor) -> float:
    """Mean squared distance of pairs (Wang & Isola, arXiv:2005.10242, alpha = 2); 0 is perfect.

    Args:
        features: (P, D), rows L2-normalised.
        other_features: (P, D), rows L2-normalised; row i belongs to row i.

    Returns:
        In [0, 4].
    """
    return float((features.double() - other_features.double()).square().sum(dim=1).mean())


def uniformity(features: Tensor) -> float:
    """Log of the mean Gaussian potential of all pairs of rows (Wang & Isola, arXiv:2005.10242, t = 2).

    Works in blocks, so memory stays flat in the number of rows; time is quadratic in it.

    Args:
        features: (N, D), rows L2-normalised; N at least 2.

    Returns:
        log mean exp(-2 |x - y|^2) over pairs of different rows: 0 where all are one point, about -4 where
        they are spread over a sphere of many dimensions.

    Raises:
        ValueError: there are fewer than two rows.
    """
    num_rows = features.shape[0]
    if num_rows < 2:
        raise ValueError(f"uniformity needs at least two features, got {num_rows}")
    block = max(1, _COSINES_PER_BLOCK // num_rows)
    total = 0.0
    for start in range(0, num_rows, block):
        # On and above the diagonal; |x - y|^2 = 2 - 2 cos.
        cosines = features[start : start + block] @ features[start:].T
        potentials = (4 * cosines - 4).exp_().triu_(diagonal=1)
        total += float(potentials.sum(dtype=torch.float64))
    return math.log(total / (num_rows * (num_rows - 1) / 2))


def effective_rank(features: Tensor) -> float:
    """Exponential of the entropy of the singular values, as shares of their sum (Roy & Vetterli 2007).

    The features are not centred, as in the definition.

    Args:
        features: (N, D).

    Returns:
        From 1, where all rows lie on a line through the origin, to min(N, D).
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def pair_cosines(features: Tensor, other_features: Tensor, other_of_row: Tensor) -> tuple[float, float]:
    """Mean cosine of true pairs, and of all others.

    Args:
        features: (T, D), rows L2-normalised.
        other_features: (N, D), rows L2-normalised; N at least 2.
        other_of_row: (T,) int64, the row of the others that belongs to each.

    Returns:
        The mean over the T true pairs, and over the T * (N - 1) others.

    Raises:
        ValueError: there is nothing but true pairs.
    """
    num_rows, num_others = features.shape[0], other_features.shape[0]
    if num_others < 2:
        raise ValueError(f"other pairs need at least two features to choose from, got {num_others}")
    rows, others = features.double(), other_features.double()
    true = float((rows * others[other_of_row]).sum())
    every = float(rows.sum(dim=0) @ others.sum(dim=0))
    return true / num_rows, (every - true) / (num_rows * (num_others - 1))
