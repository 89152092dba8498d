"""Intervals of means and of paired differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clipkit.zeroshot.intervals import bootstrap_interval, mean_interval, paired_difference, wilson_interval
from torch import Tensor


def test_wilson_by_hand() -> None:
    # Newcombe 1998, Statist. Med. 17, table I: 81 of 263 and 0 of 20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    low, high = wilson_interval(20, 20)
    assert (low, high) == pytest.approx((1 - 0.1611, 1), abs=5e-5)


def test_the_bootstrap_is_that_of_drawn_items() -> None:
    values = torch.tensor([0.0, 0.5, 0.5, 1.0, 0.25, 1.0, 0.0, 0.75])
    rng = np.random.default_rng(1)
    means = values.numpy()[rng.integers(8, size=(40_000, 8))].mean(axis=1)
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(values, num_samples=40_000) == pytest.approx(expected, abs=0.01)


def test_many_different_values_are_drawn_item_by_item() -> None:
    values = torch.rand(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = bootstrap_interval(values, num_samples=500)
    half = 1.96 * float(values.std()) / 100
    mean = float(values.mean())
    assert low < mean < high
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)


def test_zero_one_values_have_wilsons_interval_and_others_the_bootstrap() -> None:
    ones = torch.ones(20, dtype=torch.float64)
    assert mean_interval(ones) == wilson_interval(20, 20)
    assert mean_interval(ones / 2) == (0.5, 0.5)
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval(torch.empty(0))


def test_pairs_are_drawn_together() -> None:
    hard = (torch.arange(400) % 2).double()
    better = hard.clone()
    better[:24] = 1.0  # right where the other is wrong, twelve times
    difference, low, high = paired_difference(better, hard)
    assert difference == pytest.approx(12 / 400)
    assert 0 < low < difference < high
    same = paired_difference(hard, hard)
    assert same == (0.0, 0.0, 0.0)
    swapped = paired_difference(hard, better)
    assert swapped[0] == -difference
    with pytest.raises(ValueError, match="same items"):
        paired_difference(hard, hard[:3])


def answers(both: int, only_a: int, only_b: int, neither: int) -> tuple[Tensor, Tensor]:
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return torch.tensor(a), torch.tensor(b)


def test_a_difference_by_hand() -> None:
    difference, low, high = paired_difference(*answers(50, 20, 10, 20))
    assert difference == pytest.approx(0.1)
    # The variance of one image's difference is 0.3 - 0.1 ** 2, so the interval is near 0.1 -+ 1.96 * 0.0539.
    assert low == pytest.approx(-0.0056, abs=0.015)
    assert high == pytest.approx(0.2056, abs=0.015)


def test_a_difference_equals_drawing_images_one_by_one() -> None:
    a, b = answers(20, 9, 3, 8)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(40, (20_000, 40), generator=generator)
    differences = (a[drawn].double() - b[drawn].double()).mean(dim=1)
    expected = differences.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    found = paired_difference(a, b, num_samples=20_000)
    assert found[1:] == pytest.approx(expected, abs=0.026)  # one image more or less


def test_properties_of_a_difference() -> None:
    a, b = answers(30, 12, 5, 9)
    assert paired_difference(a, b) == paired_difference(a, b)
    assert len({paired_difference(a, b, num_samples=99, seed=seed) for seed in range(9)}) > 1
    assert paired_difference(a, a) == (0.0, 0.0, 0.0)
    assert paired_difference(torch.ones(5).bool(), torch.zeros(5).bool()) == (1.0, 1.0, 1.0)
    difference, low, high = paired_difference(b, a, num_samples=20_000)
    assert difference == -paired_difference(a, b)[0]
    assert low < difference < high
    assert -high == pytest.approx(paired_difference(a, b, num_samples=20_000)[1], abs=0.02)


@pytest.mark.parametrize(("size_a", "size_b"), [(0, 0), (3, 4)])
def test_a_difference_needs_the_same_images(size_a: int, size_b: int) -> None:
    with pytest.raises(ValueError, match="same items"):
        paired_difference(torch.ones(size_a).bool(), torch.ones(size_b).bool())
