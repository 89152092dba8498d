from __future__ import annotations

import numpy as np
import pytest
import torch
from clipkit.zeroshot import metric_intervals
from clipkit.zeroshot.metric_intervals import (
    mean_per_class_recall_interval,
    ranking_interval,
    ratio_interval,
    sample_interval,
    stratified_means,
)

from clipkit.binary_rankings import BinaryRanking
from clipkit.classification_metrics import mean_per_class_recall


def direct_interval(statistic, num_items: int, num_samples: int = 2000):  # type: ignore[no-untyped-def]
    """The bootstrap as it is defined: items drawn with replacement, the metric computed anew."""
    generator = torch.Generator().manual_seed(1)
    rows = (torch.randint(num_items, (num_items,), generator=generator) for _ in range(num_samples))
    return tuple(np.quantile([statistic(one) for one in rows], [0.025, 0.975]))


def test_recall_over_classes_is_that_of_drawing_images() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 60 + [1] * 12 + [3] * 2)  # class 3 is missing from some samples
    right = (torch.rand(74, generator=generator) < 0.7).double()
    expected = direct_interval(lambda rows: mean_per_class_recall(right[rows], labels[rows], 4), 74)
    found = mean_per_class_recall_interval(right, labels)
    assert found == pytest.approx(expected, abs=0.03)
    assert found == mean_per_class_recall_interval(right, labels)
    assert found != mean_per_class_recall_interval(right, labels, seed=1)


def test_a_class_that_a_sample_lacks_does_not_count_in_it() -> None:
    right, labels = torch.ones(4), torch.tensor([0, 0, 0, 1])
    assert mean_per_class_recall_interval(right, labels) == (1.0, 1.0)


def test_values_between_0_and_1_are_values_of_their_own() -> None:
    labels = torch.tensor([0] * 40 + [1] * 40)
    values = torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]).repeat(20)
    expected = direct_interval(lambda rows: mean_per_class_recall(values[rows], labels[rows], 2), 80)
    assert mean_per_class_recall_interval(values, labels) == pytest.approx(expected, abs=0.02)


def test_groups_are_drawn_whole() -> None:
    # Five captions of an image that are all right or all wrong are one query, not five.
    right = (torch.arange(100) % 2).double()
    low, high = ratio_interval(5 * right, torch.full((100,), 5))
    assert (low, high) == pytest.approx((0.4, 0.6), abs=0.02)
    low, high = ratio_interval(right.repeat_interleave(5), torch.ones(500))
    assert high - low == pytest.approx(0.2 / 5**0.5, abs=0.02)


def test_groups_count_by_their_size() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 7, (80,), generator=generator)
    sums = (counts * torch.rand(80, generator=generator)).round()
    expected = direct_interval(lambda rows: float(sums[rows].sum() / counts[rows].sum()), 80)
    assert ratio_interval(sums, counts) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("metric", [BinaryRanking.average_precision, BinaryRanking.interpolated_precision])
def test_rankings_of_the_same_drawn_images(monkeypatch: pytest.MonkeyPatch, metric) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(metric_intervals, "_WEIGHTS_PER_BLOCK", 90 * 300)  # several blocks
    generator = torch.Generator().manual_seed(0)
    positives = torch.rand(90, 3, generator=generator) < torch.tensor([0.3, 0.1, 0.02])
    positives[0] = True
    scores = torch.randn(90, 3, generator=generator) + positives

    def mean(rows: torch.Tensor) -> float:
        rankings = [BinaryRanking.of(scores[rows, column], positives[rows, column]) for column in range(3)]
        return float(np.nanmean([metric(ranking) for ranking in rankings]))

    rankings = [BinaryRanking.of(scores[:, column], positives[:, column]) for column in range(3)]
    expected = direct_interval(mean, 90, 1000)
    assert ranking_interval(rankings, metric) == pytest.approx(expected, abs=0.05)
    assert ranking_interval(rankings, metric) == ranking_interval(rankings, metric)


def test_strata_are_drawn_apart() -> None:
    right = [torch.ones(50), torch.zeros(20), (torch.arange(400) % 4 == 0).double()]
    samples = stratified_means(right)
    assert samples.shape == (1000, 3)
    assert samples[:, 0].unique().tolist() == [1.0]
    assert samples[:, 1].unique().tolist() == [0.0]
    assert sample_interval(samples[:, 2]) == pytest.approx((0.2075, 0.2925), abs=0.01)
    assert sample_interval(samples.mean(dim=1)) == pytest.approx(
        (0.25 / 3 + 1 / 3 - 0.0142, 0.25 / 3 + 1 / 3 + 0.0142), abs=0.004
    )
