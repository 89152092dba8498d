"""95 % bootstrap intervals of metrics that are no plain means over images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipkit.binary_rankings import BinaryRanking, Floats, Weights

NUM_SAMPLES = 1000
"""Bootstrap samples of every interval here."""

_WEIGHTS_PER_BLOCK = 2**23


def mean_per_class_recall_interval(values: Tensor, labels: Tensor, *, seed: int = 0) -> tuple[float, float]:
    """Interval of `classification_metrics.mean_per_class_recall`, over images.

    An image is told by its class and its value, and how often each such pair is in a sample is multinomial:
    drawing these counts is drawing the images. A class that a sample lacks does not count in it.

    Args:
        values: (N,), such as 1 where the answer is right and else 0.
        labels: (N,) int64.
        seed: of the samples.
    """
    table = np.stack([labels.cpu().numpy().astype(np.float64), values.double().cpu().numpy()], axis=1)
    cells, counts = np.unique(table, axis=0, return_counts=True)
    drawn = _multinomial(counts, seed)
    starts = np.unique(cells[:, 0], return_index=True)[1]
    images = np.add.reduceat(drawn, starts, axis=1)
    sums = np.add.reduceat(drawn * cells[:, 1], starts, axis=1)
    is_there = images > 0
    recalls = np.divide(sums, images, out=np.zeros_like(sums), where=is_there)
    return _percentiles(recalls.sum(axis=1) / is_there.sum(axis=1))


def ratio_interval(sums: Tensor, counts: Tensor, *, seed: int = 0) -> tuple[float, float]:
    """Interval of `sums.sum() / counts.sum()` over groups that are drawn whole, such as an image's captions.

    Args:
        sums: (G,) of the values of each group.
        counts: (G,) number of values of each group, at least 1.
        seed: of the samples.
    """
    table = np.stack([sums.double().cpu().numpy(), counts.double().cpu().numpy()], axis=1)
    cells, multiplicities = np.unique(table, axis=0, return_counts=True)
    drawn = _multinomial(multiplicities, seed) @ cells
    return _percentiles(drawn[:, 0] / drawn[:, 1])


def ranking_interval(
    rankings: Sequence[BinaryRanking],
    metric: Callable[[BinaryRanking, Weights], Floats],
    *,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of the mean of a metric over rankings of the same items, over these items.

    A ranking that has no value in a sample, for want of positives, does not count in it.

    Args:
        rankings: one for each class.
        metric: such as `BinaryRanking.average_precision`.
        seed: of the samples.
    """
    num_items = len(rankings[0].order)
    rng = np.random.default_rng(seed)
    block = max(1, _WEIGHTS_PER_BLOCK // num_items)
    means = []
    for start in range(0, NUM_SAMPLES, block):
        weights = _resampled(num_items, min(block, NUM_SAMPLES - start), rng)
        values = np.stack([metric(ranking, weights) for ranking in rankings])
        has_value = ~np.isnan(values)
        totals = np.where(has_value, values, 0.0).sum(axis=0)
        means.append(totals[has_value.any(axis=0)] / has_value.sum(axis=0)[has_value.any(axis=0)])
    return _percentiles(np.concatenate(means))


def stratified_means(values: Sequence[Tensor], *, seed: int = 0) -> Tensor:
    """Means of bootstrap samples that are drawn within each stratum.

    Args:
        values: (n_s,) 0 or 1, for each of S strata.
        seed: of the samples.

    Returns:
        (NUM_SAMPLES, S) fp64.
    """
    rng = np.random.default_rng(seed)
    drawn = [rng.binomial(len(one), float(one.double().mean()), NUM_SAMPLES) / len(one) for one in values]
    return torch.from_numpy(np.stack(drawn, axis=1))


def sample_interval(samples: Tensor) -> tuple[float, float]:
    """Percentiles 2.5 and 97.5 of (B,) values of a metric in bootstrap samples."""
    return _percentiles(samples.cpu().numpy())


def _multinomial(counts: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """(NUM_SAMPLES, cells) how often each cell is drawn."""
    num_items = int(counts.sum())
    return np.random.default_rng(seed).multinomial(num_items, counts / num_items, size=NUM_SAMPLES)


def _resampled(num_items: int, num_samples: int, rng: np.random.Generator) -> Weights:
    """(N, B) how often each item is in each sample."""
    drawn = rng.integers(num_items, size=(num_items, num_samples)) * num_samples + np.arange(num_samples)
    return (
        np.bincount(drawn.ravel(), minlength=num_items * num_samples)
        .reshape(num_items, -1)
        .astype(np.float32)
    )


def _percentiles(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
