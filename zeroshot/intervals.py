"""How sure a mean is, and the difference of two means over the same items."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

_Z = 1.959963984540054
"""Of a two-sided interval of 95 %."""
_NUM_SAMPLES = 2000
_MAX_DISTINCT = 4096
_DRAWS_PER_BLOCK = 2**24


def mean_interval(values: Tensor) -> tuple[float, float]:
    """95 % interval of the mean of (N,) values: Wilson's where all are 0 or 1, else by bootstrap.

    Raises:
        ValueError: there is no value.
    """
    if not values.numel():
        raise ValueError("an interval needs at least one value, got none")
    if bool(((values == 0) | (values == 1)).all()):
        return wilson_interval(int(values.sum()), values.numel())
    return bootstrap_interval(values)


def wilson_interval(num_right: int, num_items: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); unlike the bootstrap's, it has a width at 0 and at 1."""
    share, z2 = num_right / num_items, _Z**2 / num_items
    centre = (share + z2 / 2) / (1 + z2)
    half = _Z * math.sqrt(share * (1 - share) / num_items + z2 / (4 * num_items)) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(
    values: Tensor, *, num_samples: int = _NUM_SAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentiles 2.5 and 97.5 of the mean of (N,) values over bootstrap samples of them.

    A sample is told by how often each distinct value is in it, and these counts are multinomial: where there
    are few distinct values, drawing the counts is drawing the items.
    """
    rng = np.random.default_rng(seed)
    distinct, counts = np.unique(values.double().cpu().numpy(), return_counts=True)
    num_items = int(counts.sum())
    if len(distinct) <= _MAX_DISTINCT:
        drawn = rng.multinomial(num_items, counts / num_items, size=num_samples) @ distinct / num_items
    else:
        items = np.repeat(distinct, counts)
        block = max(1, _DRAWS_PER_BLOCK // num_items)
        sizes = [min(block, num_samples - start) for start in range(0, num_samples, block)]
        drawn = np.concatenate(
            [items[rng.integers(num_items, size=(size, num_items))].mean(axis=1) for size in sizes]
        )
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def paired_difference(
    values_a: Tensor, values_b: Tensor, *, num_samples: int = _NUM_SAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of a minus mean of b over the same items, with a paired bootstrap interval of 95 %.

    An item is drawn with both of its values, so what is hard for both says nothing about the difference.

    Args:
        values_a: (N,), such as 1 where method a is right and else 0.
        values_b: (N,), of the same items.
        num_samples: bootstrap samples.
        seed: of the samples.

    Returns:
        The difference, and the percentiles 2.5 and 97.5 of it.

    Raises:
        ValueError: the shapes differ or there is no item.
    """
    if values_a.shape != values_b.shape or values_a.ndim != 1 or not values_a.numel():
        raise ValueError(
            "expected values of two methods for the same items, got shapes "
            f"{tuple(values_a.shape)} and {tuple(values_b.shape)}"
        )
    differences = values_a.double() - values_b.double()
    low, high = bootstrap_interval(differences, num_samples=num_samples, seed=seed)
    return float(differences.mean()), low, high
