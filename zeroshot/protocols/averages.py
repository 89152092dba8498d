"""How the accuracies of base and new classes, of several seeds and data sets, become one row of a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


def harmonic_mean(base: float, new: float) -> float:
    """2 b n / (b + n), and 0 where both are 0.

    Raises:
        ValueError: an accuracy is negative.
    """
    if base < 0 or new < 0:
        raise ValueError(f"accuracies must not be negative, got {base} and {new}")
    return 2 * base * new / (base + new) if base + new else 0.0


@dataclass(frozen=True)
class Spread:
    """Of the values of several seeds."""

    mean: float
    std: float | None
    """Of a sample (n - 1); None for one seed."""
    count: int


@dataclass(frozen=True)
class BaseToNew:
    """Accuracies of one method, on one data set or on the average of several."""

    base: Spread
    new: Spread
    harmonic_mean: float
    """Of the two means, as the papers have it; not the mean of harmonic means."""


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("a mean needs the result of at least one seed, got none")
    return Spread(
        statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)
    )


def over_seeds(pairs: Sequence[tuple[float, float]]) -> BaseToNew:
    """One data set: (base, new) accuracies of each seed.

    Raises:
        ValueError: there is no seed.
    """
    return _row([base for base, _ in pairs], [new for _, new in pairs])


def over_datasets(results: Mapping[str, Sequence[tuple[float, float]]]) -> BaseToNew:
    """Several data sets: each seed is averaged over the data sets first, so that the deviation is of seeds.

    Args:
        results: by data set, (base, new) accuracies of the same number of seeds.

    Raises:
        ValueError: there is no data set, or their numbers of seeds differ.
    """
    counts = {name: len(pairs) for name, pairs in results.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"an average needs the same number of seeds of every data set, got {counts}")
    by_seed = list(zip(*results.values(), strict=True))
    return over_seeds(
        [
            (statistics.fmean(base for base, _ in pairs), statistics.fmean(new for _, new in pairs))
            for pairs in by_seed
        ]
    )


def _row(base: Sequence[float], new: Sequence[float]) -> BaseToNew:
    bases, news = spread(base), spread(new)
    return BaseToNew(bases, news, harmonic_mean(bases.mean, news.mean))
