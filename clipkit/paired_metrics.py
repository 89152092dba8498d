"""Outcomes of paired and multiple-choice evaluations, item by item, and what is made of them.

A choice is right where its score is strictly higher than all others: ties are wrong, and so is NaN, so that
a model whose features have collapsed scores 0, and never 100 %. Only among classes the first of equal ones is
taken. Scores of pairs are computed in fp64 and compared in fp32, so that equal vectors tie whatever the order
of summation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

WINOGROUND_CHANCE = {"acc": 1 / 6, "text_acc": 1 / 4, "image_acc": 1 / 4}
"""What random scores give, by the keys of `winoground_outcomes`."""

_PRODUCTS_PER_BLOCK = 2**23
_QUANTILE_97_5 = 1.959963984540054


def winoground_outcomes(image_features: Tensor, text_features: Tensor) -> dict[str, Tensor]:
    """Two images and two captions, one for each image (Winoground, arXiv:2204.03162, equations 1 to 3).

    `image_acc` is also the measure of MMVP-VLM (arXiv:2401.06209): a softmax over two images is above one
    half where the score is the higher one, at any temperature.

    Args:
        image_features: (N, 2, D), L2-normalised.
        text_features: (N, 2, D), L2-normalised; text t of a pair belongs to its image t.

    Returns:
        (N,) fp64 of 0 and 1 each: `acc`, the group score, both of the others right; `text_acc`, each image
        chooses its text; `image_acc`, each text chooses its image.

    Raises:
        ValueError: the shapes are others.
    """
    if image_features.shape != text_features.shape or image_features.shape[1:2] != (2,):
        raise ValueError(
            "expected the features of two images and two texts of each pair, (N, 2, D), got "
            f"{tuple(image_features.shape)} and {tuple(text_features.shape)}"
        )
    own = [row_products(image_features[:, i], text_features[:, i]) for i in (0, 1)]
    # crossed[i]: image i with the text of the other
    crossed = [row_products(image_features[:, i], text_features[:, 1 - i]) for i in (0, 1)]
    text = (own[0] > crossed[0]) & (own[1] > crossed[1])
    image = (own[0] > crossed[1]) & (own[1] > crossed[0])
    return {"acc": (text & image).double(), "text_acc": text.double(), "image_acc": image.double()}


def choice_outcomes(
    query_features: Tensor, candidate_features: Tensor, right: Tensor, wrong: Tensor, item_of_wrong: Tensor
) -> Tensor:
    """Whether the right candidate beats all wrong ones of its item; items may have any number of them.

    Args:
        query_features: (N, D), what each item asks about; the length of a vector does not matter.
        candidate_features: (C, D), L2-normalised.
        right: (N,) int64, row of each item's right candidate.
        wrong: (M,) int64, rows of the wrong candidates of all items.
        item_of_wrong: (M,) int64 in [0, N).

    Returns:
        (N,) fp64 of 0 and 1.

    Raises:
        ValueError: an item has no wrong candidate, so that there is nothing to choose.
    """
    num_items = query_features.shape[0]
    counts = torch.bincount(item_of_wrong, minlength=num_items)
    if not bool(counts.all()):
        raise ValueError(f"item {int((counts == 0).nonzero()[0])} has no wrong candidate, nothing to choose")
    items = torch.arange(num_items)
    own = _products(query_features, items, candidate_features, right)
    others = _products(query_features, item_of_wrong, candidate_features, wrong)
    not_beaten = item_of_wrong[~(own[item_of_wrong] > others)]
    return (torch.bincount(not_beaten, minlength=num_items) == 0).double()


def choice_chance(item_of_wrong: Tensor, num_items: int) -> Tensor:
    """What guessing gives each item, one over its number of candidates: (M,) int64 -> (N,) fp64."""
    return 1 / (1 + torch.bincount(item_of_wrong, minlength=num_items).double())


def first_choices(query_features: Tensor, candidate_features: Tensor) -> Tensor:
    """The candidate with the highest inner product; of equal ones the first, and -1 where one is NaN.

    Works through the queries in blocks, so memory stays flat in their number.

    Args:
        query_features: (N, D).
        candidate_features: (C, D), C >= 1.

    Returns:
        (N,) int64.
    """
    block = max(1, _PRODUCTS_PER_BLOCK // candidate_features.shape[0])
    found = []
    for queries in torch.split(query_features, block):
        best = (queries @ candidate_features.T).max(dim=1)  # NaN is the largest
        found.append(torch.where(best.values.isnan(), -1, best.indices))
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def row_products(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows of two matrices: (N, D), (N, D) -> (N,) fp32."""
    rows = torch.arange(a.shape[0])
    return _products(a, rows, b, rows)


def _products(a: Tensor, rows_a: Tensor, b: Tensor, rows_b: Tensor) -> Tensor:
    """Inner products of chosen rows, (P,), in blocks, so that the chosen rows are never copied at once."""
    block = max(1, _PRODUCTS_PER_BLOCK // max(1, a.shape[1]))
    parts = [
        (a[of_a].double() * b[of_b].double()).sum(dim=1).float()
        for of_a, of_b in zip(torch.split(rows_a, block), torch.split(rows_b, block), strict=True)
    ]
    return torch.cat(parts) if parts else torch.empty(0)


def mean_of_groups(groups: Iterable[tuple[Tensor, Tensor]], num_items: int) -> Tensor:
    """Values of the items whose mean is the mean over groups of the mean outcome in a group.

    `v_i = m + sum over the outcomes o of item i, in group g, of (o - m_g) * N / (G * n_g)`, the linearised
    mean: its spread over the items is that of the mean of group means when items are drawn again, every item
    with all its outcomes. With one group that has one outcome an item, these are the outcomes.

    Args:
        groups: G of them, (rows, outcomes), each (n_g,): int64 in [0, N), and fp64. Groups may share items,
            and an item may have several outcomes in a group.
        num_items: N.

    Returns:
        (N,) fp64.

    Raises:
        ValueError: there is no group, or one is empty.
    """
    spread = torch.zeros(num_items, dtype=torch.float64)
    total, num_groups = 0.0, 0
    for rows, outcomes in groups:
        if not outcomes.numel():
            raise ValueError(f"group {num_groups} has no outcome, its mean is undefined")
        mean = outcomes.double().mean()
        spread.index_add_(0, rows, (outcomes.double() - mean) / outcomes.numel())
        total, num_groups = total + float(mean), num_groups + 1
    if num_groups == 0:
        raise ValueError("a mean of groups needs at least one group")
    return total / num_groups + spread * (num_items / num_groups)


def accuracy_interval(num_right: int, num_items: int) -> tuple[float, float]:
    """95 % interval of an accuracy (Wilson's score interval, doi:10.1080/01621459.1927.10502953).

    Args:
        num_right: at most `num_items`.
        num_items: at least 1; taken to be independent.
    """
    z2 = _QUANTILE_97_5**2
    share = num_right / num_items
    centre = (share + z2 / (2 * num_items)) / (1 + z2 / num_items)
    half = math.sqrt(share * (1 - share) / num_items + z2 / (4 * num_items**2))
    half *= _QUANTILE_97_5 / (1 + z2 / num_items)
    return max(0.0, centre - half), min(1.0, centre + half)
