from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from clipkit.binary_rankings import (
    BinaryRanking,
    average_precisions,
    interpolated_precisions,
    roc_auc,
)

NAN = float("nan")
METRICS = (BinaryRanking.average_precision, BinaryRanking.interpolated_precision, BinaryRanking.roc_auc)


def example(seed: int, *, ties: bool, num_classes: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    positives = torch.rand(150, num_classes, generator=generator) < 0.2
    scores = torch.randn(150, num_classes, generator=generator) + positives
    return (scores * 2).round() / 2 if ties else scores, positives


def test_average_precision_by_hand() -> None:
    # Positives at ranks 1, 3 and 4: (1 + 2/3 + 3/4) / 3.
    scores = torch.tensor([[0.9], [0.8], [0.7], [0.6], [0.1]])
    positives = torch.tensor([[1], [0], [1], [1], [0]]).bool()
    assert average_precisions(scores, positives).tolist() == [pytest.approx((1 + 2 / 3 + 3 / 4) / 3)]


def test_interpolated_precision_by_hand() -> None:
    # Best precision from recall 0 to 1/3 on: 1; beyond, up to recall 1: 3/4, that of rank 4. Levels 0 to 0.3
    # are four, 0.4 to 1 are seven.
    scores = torch.tensor([[0.9], [0.8], [0.7], [0.6], [0.1]])
    positives = torch.tensor([[1], [0], [1], [1], [0]]).bool()
    assert interpolated_precisions(scores, positives).tolist() == [pytest.approx((4 * 1 + 7 * 0.75) / 11)]


def test_a_level_of_recall_counts_as_reached_when_it_is_reached_exactly() -> None:
    # Ten positives: three first, so a recall of exactly 0.3, then a negative before each of the others.
    truth = [1, 1, 1] + [0, 1] * 7
    scores = -torch.arange(len(truth)).double()
    precision = float(interpolated_precisions(scores[:, None], torch.tensor(truth)[:, None].bool()))
    later = [max((3 + j) / (3 + 2 * j) for j in range(i, 8)) for i in range(1, 8)]
    assert precision == pytest.approx((4 * 1 + sum(later)) / 11)


def test_interpolated_precision_of_a_slow_oracle() -> None:
    scores, positives = example(0, ties=False)
    for column in range(scores.shape[1]):
        truth = positives[:, column][scores[:, column].argsort(descending=True)].double()
        recall, precision = truth.cumsum(0) / truth.sum(), truth.cumsum(0) / torch.arange(1, 151)
        levels = [float(precision[recall >= level / 10 - 1e-12].max()) for level in range(11)]
        found = interpolated_precisions(scores[:, [column]], positives[:, [column]])
        assert float(found) == pytest.approx(sum(levels) / 11, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True])
def test_equal_to_scikit_learn(seed: int, ties: bool) -> None:
    scores, positives = example(seed, ties=ties)
    found = average_precisions(scores, positives)
    for column in range(scores.shape[1]):
        own, truth = scores[:, column], positives[:, column]
        expected = average_precision_score(truth.numpy(), own.numpy())
        assert float(found[column]) == pytest.approx(expected, abs=1e-9)
        assert roc_auc(own, truth) == pytest.approx(roc_auc_score(truth.numpy(), own.numpy()), abs=1e-9)


def test_equal_to_the_definition_of_clip_benchmark() -> None:
    """Its mean over classes of the mean precision at the positives, in single precision."""
    scores, positives = example(5, ties=False)
    total = 0.0
    for column in range(scores.shape[1]):
        truth = positives[:, column][scores[:, column].sort(descending=True).indices]
        precision = truth.float().cumsum(0) / torch.arange(1, 151).float()
        total += float(precision[truth].sum() / truth.sum())
    found = average_precisions(scores, positives)
    assert float(found.nanmean()) == pytest.approx(total / scores.shape[1], abs=1e-6)


def test_area_by_hand_and_its_symmetry() -> None:
    # Of four pairs two are in order and one is a tie.
    scores, positives = torch.tensor([0.9, 0.5, 0.5, 0.2]), torch.tensor([True, False, True, False])
    assert roc_auc(scores, positives) == pytest.approx(3.5 / 4)
    scores, positives = example(1, ties=True, num_classes=1)
    forward = roc_auc(scores[:, 0], positives[:, 0])
    assert roc_auc(-scores[:, 0], positives[:, 0]) == pytest.approx(1 - forward)
    assert roc_auc(-scores[:, 0], ~positives[:, 0]) == pytest.approx(forward)


def test_one_score_for_all_is_chance_whatever_the_order() -> None:
    positives = torch.tensor([True] * 3 + [False] * 9)
    for truth in (positives, positives.flip(0)):
        ranking = BinaryRanking.of(torch.ones(12), truth)
        assert ranking.average_precision() == pytest.approx(0.25)
        assert ranking.interpolated_precision() == pytest.approx(0.25)
        assert ranking.roc_auc() == pytest.approx(0.5)


def test_nan_is_never_a_hit() -> None:
    truth = torch.tensor([True, True, False, False])
    destroyed = BinaryRanking.of(torch.full((4,), NAN), truth)
    assert [float(metric(destroyed)) for metric in METRICS] == [0.0, 0.0, 0.0]
    # The second positive is not found, and the negative with NaN stands before the first.
    partly = BinaryRanking.of(torch.tensor([5.0, NAN, NAN, 1.0]), truth)
    assert partly.average_precision() == pytest.approx(0.5 / 2)
    assert partly.roc_auc() == pytest.approx(1 / 4)


def test_infinite_scores_are_scores() -> None:
    scores = torch.tensor([torch.inf, 1.0, -torch.inf, -torch.inf])
    truth = torch.tensor([True, False, True, False])
    ranking = BinaryRanking.of(scores, truth)
    assert ranking.average_precision() == pytest.approx((1 + 2 / 4) / 2)
    assert ranking.roc_auc() == pytest.approx((2 + 0.5) / 4)


@pytest.mark.parametrize("ties", [False, True])
def test_a_weight_is_a_number_of_copies(ties: bool) -> None:
    scores, positives = example(7, ties=ties, num_classes=1)
    scores, positives = scores[:, 0].clone(), positives[:, 0]
    scores[::17] = NAN
    counts = np.random.default_rng(0).integers(0, 4, size=(150, 5))
    ranking = BinaryRanking.of(scores, positives)
    for metric in METRICS:
        together = metric(ranking, counts.astype(np.float32))
        assert together.shape == (5,)
        for column in range(5):
            rows = torch.arange(150).repeat_interleave(torch.from_numpy(counts[:, column]))
            expected = metric(BinaryRanking.of(scores[rows], positives[rows]))
            assert together[column] == pytest.approx(float(expected), abs=1e-9)


def test_without_positives_there_is_no_value() -> None:
    scores = torch.tensor([[0.1, 0.2], [0.3, 0.1]])
    positives = torch.tensor([[False, True], [False, False]])
    assert average_precisions(scores, positives).isnan().tolist() == [True, False]
    assert interpolated_precisions(scores, positives).isnan().tolist() == [True, False]
    with pytest.raises(ValueError, match="got 0 positives of 2 items"):
        roc_auc(scores[:, 0], positives[:, 0])
    with pytest.raises(ValueError, match="got 2 positives of 2 items"):
        roc_auc(scores[:, 0], ~positives[:, 0])


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 2\) and \(2, 3\)"):
        average_precisions(torch.zeros(2, 2), torch.zeros(2, 3).bool())
    with pytest.raises(ValueError, match=r"got shapes \(2,\) and \(3,\)"):
        BinaryRanking.of(torch.zeros(2), torch.zeros(3).bool())
