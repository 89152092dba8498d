"""Metrics of regions as pure functions; ties and NaN as in `clipkit.metrics`: the lower index ranks first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from clipkit.metrics import positive_ranks
from clipkit.regions.boxes import pairwise_iou

_SCORES_PER_BLOCK = 2**24


def region_retrieval_ranks(
    region_features: Tensor, phrase_features: Tensor, phrase_of_region: Tensor
) -> tuple[Tensor, Tensor]:
    """Ranks between R regions and their R texts, where equal texts are right for each other's regions.

    All regions and all texts are candidates, a text as often as it occurs (after CLOC, arXiv:2410.02746).
    Works in blocks, so memory stays flat in R.

    Args:
        region_features: (R, D), L2-normalised.
        phrase_features: (U, D), L2-normalised, of the distinct texts.
        phrase_of_region: (R,) int64 in [0, U); each of the U occurs.

    Returns:
        (R,) int64 each, 0 where a right answer comes first: the rank of the first right text of each region,
        and of the first right region of each region's text.
    """
    num_regions, num_phrases = len(region_features), len(phrase_features)
    counts = torch.bincount(phrase_of_region, minlength=num_phrases)
    phrases = torch.arange(num_phrases)
    to_text = torch.empty(num_regions, dtype=torch.int64)
    block = max(1, _SCORES_PER_BLOCK // num_phrases)
    for start in range(0, num_regions, block):
        own = phrase_of_region[start : start + block, None]
        scores = region_features[start : start + block] @ phrase_features.T
        right = scores.gather(1, own)
        ahead = ~(scores <= right) & (phrases != own) | (scores == right) & (phrases < own)
        to_text[start : start + block] = (ahead * counts).sum(dim=1)
    pairs = torch.stack([phrase_of_region, torch.arange(num_regions)], dim=1)
    to_region = positive_ranks(phrase_features, region_features, pairs)
    return to_text, to_region[phrase_of_region]


def region_retrieval_chance(phrase_of_region: Tensor, k: int) -> tuple[float, float]:
    """Recall@K of both ranks of `region_retrieval_ranks` where features say nothing.

    Equal texts come one after the other, so that for a region the distinct texts are in a random order, each
    as long as it is frequent; for a text, all regions are.

    Args:
        phrase_of_region: (R,) int64 in [0, U); each of the U occurs.
        k: at least 1.

    Returns:
        Recall@K from region to text and from text to region, means over the R regions.
    """
    counts = torch.bincount(phrase_of_region)
    num_regions, num_phrases = len(phrase_of_region), len(counts)
    frequencies = Counter(counts.tolist())
    ways = _subsets(frequencies, k)
    to_text = 0.0
    for own, number in frequencies.items():
        # Of the texts before the own one, any number is equally likely, and then any set of that number.
        others = _without(ways, own, k)
        found = sum(
            Fraction(sum(others[size]), math.comb(num_phrases - 1, size))
            for size in range(min(k, num_phrases))
        )
        to_text += own * number / num_regions * float(found / num_phrases)
    wrong = num_regions - counts[phrase_of_region].double()
    draws = torch.arange(min(k, num_regions), dtype=torch.float64)
    missed = (wrong[:, None] - draws).clamp(min=0) / (num_regions - draws)
    return to_text, 1 - float(missed.prod(dim=1).mean())


def _subsets(frequencies: Mapping[int, int], k: int) -> list[list[int]]:
    """`[size][total]`: sets of `size` texts that occur `total` < k times together."""
    ways = [[int(size == total == 0) for total in range(k)] for size in range(k)]
    for length, number in frequencies.items():
        after = [[0] * k for _ in range(k)]
        for taken in range(min(number, (k - 1) // length) + 1):
            factor = math.comb(number, taken)
            for size in range(k - taken):
                for total in range(k - taken * length):
                    after[size + taken][total + taken * length] += factor * ways[size][total]
        ways = after
    return ways


def _without(ways: list[list[int]], length: int, k: int) -> list[list[int]]:
    """The sets of `_subsets` without one of the texts, which occurs `length` times."""
    found: list[list[int]] = []
    for row in ways:
        before = found[-1] if found else [0] * k
        found.append([row[total] - (before[total - length] if total >= length else 0) for total in range(k)])
    return found


def best_ious(predicted: Tensor, boxes: Tensor, phrase_of_box: Tensor) -> Tensor:
    """Overlap of the predicted box of each phrase with the nearest of its true ones.

    Args:
        predicted: (P, 4) xyxy, one box a phrase.
        boxes: (K, 4) xyxy, the true ones.
        phrase_of_box: (K,) int64 in [0, P); each phrase has one or more.

    Returns:
        (P,) fp32 in [0, 1].
    """
    overlaps = pairwise_iou(predicted.float(), boxes.float())
    is_own = phrase_of_box == torch.arange(len(predicted))[:, None]
    return overlaps.masked_fill(~is_own, 0).amax(dim=1)


def contain(points: Tensor, boxes: Tensor, phrase_of_box: Tensor) -> Tensor:
    """Whether the point of each phrase lies in one of its boxes.

    Args:
        points: (P, 2) x and y.
        boxes: (K, 4) xyxy.
        phrase_of_box: (K,) int64 in [0, P).

    Returns:
        (P,) bool.
    """
    is_inside = (points[:, None] >= boxes[None, :, :2]) & (points[:, None] <= boxes[None, :, 2:])
    is_own = phrase_of_box == torch.arange(len(points))[:, None]
    return (is_inside.all(dim=2) & is_own).any(dim=1)
