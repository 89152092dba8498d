"""Metrics of regions by hand and against slow oracles."""

from __future__ import annotations

import itertools

import pytest
import torch
from hand_features import at, random_rows

from clipkit.metrics import positive_ranks
from clipkit.region_metrics import best_ious, contain, region_retrieval_chance, region_retrieval_ranks


def test_region_retrieval_by_hand() -> None:
    # Texts: a (0 degrees) twice, b (90) once.
    regions = at(10, 80, 60)
    to_text, to_region = region_retrieval_ranks(regions, at(0, 90), torch.tensor([0, 0, 1]))
    # Region 0 finds a first. Region 1 finds b, then both a. Region 2 finds b first.
    assert to_text.tolist() == [0, 1, 0]
    # Text a finds region 0 first, which is right for both of its regions; b finds region 1, then 2.
    assert to_region.tolist() == [0, 0, 1]
    # With the places of the texts changed, region 2 has two wrong texts before the right one.
    to_text, _ = region_retrieval_ranks(at(80, 85, 20), at(0, 90), torch.tensor([1, 1, 0])[[0, 1, 2]])
    assert to_text.tolist() == [0, 0, 0]
    to_text, _ = region_retrieval_ranks(at(80, 85, 70), at(0, 90), torch.tensor([1, 1, 0]))
    assert to_text.tolist() == [0, 0, 2]


@pytest.mark.parametrize("phrases", [[0], [0, 0, 0], [0, 1, 1], [0, 1, 2, 3], [0, 0, 1, 1, 1, 2]])
@pytest.mark.parametrize("k", [1, 2, 3, 10])
def test_chance_of_region_retrieval_is_that_of_all_orders(phrases: list[int], k: int) -> None:
    texts = list(itertools.permutations(set(phrases)))
    to_text = [
        sum(phrases.count(other) for other in order[: order.index(own)]) < k
        for order in texts
        for own in phrases
    ]
    regions = list(itertools.permutations(range(len(phrases))))
    to_region = [own in [phrases[region] for region in order[:k]] for order in regions for own in phrases]
    expected = [sum(found) / len(found) for found in (to_text, to_region)]
    assert region_retrieval_chance(torch.tensor(phrases), k) == pytest.approx(tuple(expected))


def test_region_retrieval_equals_ranks_over_all_texts() -> None:
    regions, phrases = random_rows(30, 6, seed=1), random_rows(9, 6, seed=2)
    generator = torch.Generator().manual_seed(3)
    owners = torch.cat([torch.arange(9), torch.randint(9, (21,), generator=generator)])
    to_text, to_region = region_retrieval_ranks(regions, phrases, owners)
    pairs = torch.tensor([(i, j) for i in range(30) for j in range(30) if owners[i] == owners[j]])
    texts = phrases[owners]
    assert to_text.tolist() == positive_ranks(regions, texts, pairs).tolist()
    assert to_region.tolist() == positive_ranks(texts, regions, pairs).tolist()
    assert len(set(to_text.tolist())) > 5


def test_regions_that_collapsed_find_nothing_and_equal_ones_score_at_chance() -> None:
    owners = torch.tensor([0, 1, 2, 2])
    to_text, to_region = region_retrieval_ranks(torch.full((4, 2), torch.nan), at(0, 90, 180), owners)
    assert to_text.tolist() == [3, 3, 2, 2]
    assert min(to_region.tolist()) > 0
    to_text, _ = region_retrieval_ranks(at(45, 45, 45, 45), at(45, 45, 45), owners)
    assert to_text.tolist() == [0, 1, 2, 2]


def test_best_ious_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    predicted = torch.tensor([[0.5, 0.0, 1.0, 0.5], [0.0, 0.0, 0.5, 0.5]])
    # The first phrase has the first two boxes: overlaps 0 and 1/2. The second has the third: 1/4.
    found = best_ious(predicted, boxes, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.25]))
    moved = best_ious(predicted, boxes, torch.tensor([0, 1, 1]))
    torch.testing.assert_close(moved, torch.tensor([0.0, 0.25]))


@pytest.mark.parametrize(("x", "expected"), [(0.2, [True, False]), (0.5, [True, True]), (0.9, [False, True])])
def test_points_in_boxes(x: float, expected: list[bool]) -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]])
    found = contain(torch.tensor([[x, 0.3], [x, 0.3]]), boxes, torch.tensor([0, 1]))
    assert found.tolist() == expected
