"""How well scores rank the positives of a class: average precision and the area under the ROC curve.

Items of one score share their place, as in scikit-learn: items have no order of their own, and where all have
one score, the average precision is the share of positives and the area 1/2, which is chance. NaN ranks first
and is never a hit, so a model that is destroyed scores 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Weights = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class BinaryRanking:
    """Items of two kinds in the order of their scores; made by `of`.

    Its metrics take weights, (N,) or (N, B) for B metrics at once. An item of weight w counts as w items, so
    that bootstrap samples are weights.
    """

    order: Ints
    """(N,) items by falling score; negatives with NaN first, positives with NaN last."""
    starts: Ints
    """(G,) places in `order` where a score of a hit begins or ends; scores without hits between two of them
    are one group, which changes no metric."""
    is_positive: Bools
    """(N,) in this order."""
    is_hit: Bools
    """(N,) in this order: positives whose score is not NaN."""

    @classmethod
    def of(cls, scores: Tensor, positives: Tensor) -> BinaryRanking:
        """Rank items.

        Args:
            scores: (N,).
            positives: (N,) bool.

        Raises:
            ValueError: the shapes differ, or there is no item.
        """
        if scores.shape != positives.shape or scores.ndim != 1 or not scores.numel():
            raise ValueError(
                "expected a score and a truth for each item, got shapes "
                f"{tuple(scores.shape)} and {tuple(positives.shape)}"
            )
        values = scores.double().cpu().numpy()
        is_positive, is_nan = positives.bool().cpu().numpy(), np.isnan(values)
        tier = np.where(is_nan, np.where(is_positive, 2, 0), 1)
        falling = np.where(is_nan, 0.0, -values)
        order = np.lexsort((falling, tier))
        falling, tier = falling[order], tier[order]
        is_new = np.r_[True, (falling[1:] != falling[:-1]) | (tier[1:] != tier[:-1])]
        is_positive, is_hit = is_positive[order], (is_positive & ~is_nan)[order]
        begins = np.flatnonzero(is_new)
        with_hit = np.add.reduceat(is_hit, begins) > 0
        starts = begins[with_hit | np.r_[True, with_hit[:-1]]]
        return cls(order=order, starts=starts, is_positive=is_positive, is_hit=is_hit)

    def average_precision(self, weights: Weights | None = None) -> Floats:
        """Sum over the scores of precision times gain in recall; see `average_precisions`.

        Returns:
            () or (B,), NaN without positives.
        """
        precision, _, gains, total = self._curve(weights)
        return _ratio((precision * gains).sum(axis=0), total)

    def interpolated_precision(self, weights: Weights | None = None, *, num_points: int = 11) -> Floats:
        """Mean over levels of recall of the best precision from there on; see `interpolated_precisions`.

        Returns:
            () or (B,), NaN without positives.
        """
        precision, hits, _, total = self._curve(weights)
        steps = num_points - 1
        # In whole numbers, so that a recall of 3/10 is not below a level of 0.3.
        best = [
            np.where(hits * steps >= step * total, precision, 0.0).max(axis=0) for step in range(num_points)
        ]
        return np.where(total > 0, np.mean(best, axis=0), np.nan)

    def roc_auc(self, weights: Weights | None = None) -> Floats:
        """Share of pairs of a positive and a negative in which the positive has the higher score.

        Returns:
            () or (B,), equal scores counting one half; NaN without positives or without negatives.
        """
        hits, negatives = self._per_group(weights, self.is_hit), self._per_group(weights, ~self.is_positive)
        num_positives = self._per_group(weights, self.is_positive).sum(axis=0)
        num_negatives = negatives.sum(axis=0)
        below = num_negatives - negatives.cumsum(axis=0)
        return _ratio((hits * (below + negatives / 2)).sum(axis=0), num_positives * num_negatives)

    def _curve(self, weights: Weights | None) -> tuple[Floats, Floats, Floats, Floats]:
        """Down to each group: precision and number of hits; the hits of the group; and all positives."""
        gains = self._per_group(weights, self.is_hit)
        found = self._per_group(weights, np.ones_like(self.is_hit)).cumsum(axis=0)
        hits = gains.cumsum(axis=0)
        total = self._per_group(weights, self.is_positive).sum(axis=0)
        return _ratio(hits, found, otherwise=0.0), hits, gains, total

    def _per_group(self, weights: Weights | None, chosen: Bools) -> Floats:
        """Weight of the chosen items in each group: (G,) or (G, B)."""
        items = self.order[chosen]
        groups = np.searchsorted(self.starts, np.flatnonzero(chosen), side="right") - 1
        rows = np.ones(len(items)) if weights is None else weights[items]
        sums = np.zeros((len(self.starts), *rows.shape[1:]))
        if len(items):
            begins = np.flatnonzero(np.r_[True, np.diff(groups) != 0])
            sums[groups[begins]] = np.add.reduceat(rows, begins, axis=0)
        return sums


def average_precisions(scores: Tensor, positives: Tensor) -> Tensor:
    """Average precision of each class: the mean, over its positives, of the precision down to each.

    What CLIP_benchmark reports for images with several labels, and scikit-learn's `average_precision_score`.

    Args:
        scores: (N, C).
        positives: (N, C) bool, the classes of each image.

    Returns:
        (C,) fp64, NaN for a class without positives.
    """
    return _per_class(scores, positives, BinaryRanking.average_precision)


def interpolated_precisions(scores: Tensor, positives: Tensor) -> Tensor:
    """11-point average precision of each class (PASCAL VOC 2007, Everingham et al. 2010, section 4.2).

    The mean, over a recall of 0, 0.1, ... 1, of the highest precision at that recall or a higher one.
    Arguments and result as of `average_precisions`.
    """
    return _per_class(scores, positives, BinaryRanking.interpolated_precision)


def roc_auc(scores: Tensor, positives: Tensor) -> float:
    """Area under the ROC curve.

    Args:
        scores: (N,).
        positives: (N,) bool.

    Raises:
        ValueError: there is no positive, or no negative.
    """
    num_positives = int(positives.sum())
    if not 0 < num_positives < positives.numel():
        raise ValueError(
            f"ROC-AUC needs items of both classes, got {num_positives} positives of {positives.numel()} items"
        )
    return float(BinaryRanking.of(scores, positives).roc_auc())


def _per_class(scores: Tensor, positives: Tensor, metric: Callable[[BinaryRanking], Floats]) -> Tensor:
    if scores.shape != positives.shape:
        raise ValueError(
            f"expected a truth for each score, got {tuple(scores.shape)} and {tuple(positives.shape)}"
        )
    columns = zip(scores.T, positives.T, strict=True)
    values = [float(metric(BinaryRanking.of(column, truth))) for column, truth in columns]
    return torch.tensor(values, dtype=torch.float64)


def _ratio(numerator: Floats, denominator: Floats, *, otherwise: float = np.nan) -> Floats:
    filled = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), otherwise)
    np.divide(numerator, denominator, out=filled, where=denominator > 0)
    return filled
