from __future__ import annotations

import math

import pytest
import torch
from made_features import random_unit

from clipkit import paired_metrics
from clipkit.paired_metrics import (
    WINOGROUND_CHANCE,
    accuracy_interval,
    choice_chance,
    choice_outcomes,
    first_choices,
    mean_of_groups,
    row_products,
    winoground_outcomes,
)

E1, E2, E3 = torch.eye(3)
NAN = torch.full((3,), math.nan)


def winoground(images, texts) -> dict[str, list[float]]:
    found = winoground_outcomes(torch.stack(images)[None], torch.stack(texts)[None])
    return {name: values.tolist() for name, values in found.items()}


def test_winoground_by_hand() -> None:
    assert winoground([E1, E2], [E1, E2]) == {"acc": [1], "text_acc": [1], "image_acc": [1]}
    assert winoground([E1, E2], [E2, E1]) == {"acc": [0], "text_acc": [0], "image_acc": [0]}
    # Scores of image 0: 0.8 and 0.6, of image 1: 0.9 and 0.95. Each image chooses its text, but text 0 is
    # nearer to image 1.
    only_text = winoground([torch.tensor([0.8, 0.6, 0]), torch.tensor([0.9, 0.95, 0])], [E1, E2])
    assert only_text == {"acc": [0], "text_acc": [1], "image_acc": [0]}
    # Scores of image 0: 0.8 and 0.9, of image 1: 0.6 and 0.95.
    only_image = winoground([torch.tensor([0.8, 0.9, 0]), torch.tensor([0.6, 0.95, 0])], [E1, E2])
    assert only_image == {"acc": [0], "text_acc": [0], "image_acc": [1]}


def test_winoground_ties_and_nan_are_wrong() -> None:
    wrong = {"acc": [0], "text_acc": [0], "image_acc": [0]}
    assert winoground([E1, E1], [E1, E2]) == wrong  # one image twice: text 0 ties, image 1 prefers text 0
    assert winoground([E1, E2], [E3, E3]) == wrong
    assert winoground([E1, E1], [E1, E1]) == wrong
    for place in range(4):
        vectors = [E1, E2, E1, E2]
        vectors[place] = NAN
        assert winoground(vectors[:2], vectors[2:]) == wrong


def test_winoground_equals_the_definition_and_keeps_when_a_pair_is_swapped() -> None:
    images, texts = random_unit(500, 2, 8), random_unit(500, 2, 8, seed=1)
    found = winoground_outcomes(images, texts)
    for n in range(500):
        s = images[n].double() @ texts[n].double().T  # image, text
        text = s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0]
        image = s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1]
        assert (found["text_acc"][n], found["image_acc"][n], found["acc"][n]) == (text, image, text and image)
    swapped = winoground_outcomes(images.flip(1), texts.flip(1))
    for name, values in found.items():
        assert 0 < values.sum() < 500
        assert torch.equal(values, swapped[name])


def test_winoground_softmax_over_the_images_is_the_image_score() -> None:
    images, texts = random_unit(200, 2, 8), random_unit(200, 2, 8, seed=1)
    probabilities = torch.softmax(7 * torch.einsum("nid,ntd->nti", images, texts), dim=-1)
    right = (probabilities[:, 0, 0] > 0.5) & (probabilities[:, 1, 1] > 0.5)
    assert torch.equal(winoground_outcomes(images, texts)["image_acc"], right.double())


def test_winoground_at_chance_for_random_features() -> None:
    num_items = 20_000
    found = winoground_outcomes(random_unit(num_items, 2, 64), random_unit(num_items, 2, 64, seed=1))
    assert set(found) == set(WINOGROUND_CHANCE)
    for name, chance in WINOGROUND_CHANCE.items():
        deviation = math.sqrt(chance * (1 - chance) / num_items)
        assert abs(float(found[name].mean()) - chance) < 4 * deviation


def test_winoground_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(N, 2, D\), got \(4, 3, 8\)"):
        winoground_outcomes(random_unit(4, 3, 8), random_unit(4, 3, 8))


def test_choice_by_hand() -> None:
    queries = torch.stack([E1, E2, 5 * E3])  # the length of a query does not matter
    candidates = torch.stack([E1, E2, E3, torch.tensor([0.6, 0.8, 0])])
    right, wrong = torch.tensor([0, 3, 2]), torch.tensor([1, 3, 1, 0])
    outcomes = choice_outcomes(queries, candidates, right, wrong, torch.tensor([0, 0, 1, 2]))
    assert outcomes.tolist() == [1, 0, 1]
    assert outcomes.dtype == torch.float64
    assert choice_chance(torch.tensor([0, 0, 1, 2]), 3).tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 2])


def test_choice_ties_and_nan_are_wrong() -> None:
    candidates = torch.stack([E1, E1, E2, NAN])
    pairs = [(0, 1), (0, 0), (3, 2), (0, 3), (0, 2)]
    right, wrong = torch.tensor(pairs).T
    queries = E1.expand(len(pairs), 3)
    outcomes = choice_outcomes(queries, candidates, right, wrong, torch.arange(len(pairs)))
    assert outcomes.tolist() == [0, 0, 0, 0, 1]
    nan_queries = choice_outcomes(NAN.expand(5, 3), candidates, right, wrong, torch.arange(5))
    assert nan_queries.tolist() == [0] * 5


def test_choice_equals_a_slow_oracle_in_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired_metrics, "_PRODUCTS_PER_BLOCK", 100)
    queries, candidates = random_unit(60, 8), random_unit(40, 8, seed=1)
    generator = torch.Generator().manual_seed(2)
    right = torch.randint(40, (60,), generator=generator)
    item_of_wrong = torch.cat([torch.arange(60), torch.randint(60, (90,), generator=generator)])
    wrong = torch.randint(40, (150,), generator=generator)
    outcomes = choice_outcomes(queries, candidates, right, wrong, item_of_wrong)
    scores = queries.double() @ candidates.double().T
    expected = [
        all(
            float(scores[n, right[n]]) > float(scores[n, wrong[m]]) and right[n] != wrong[m]
            for m in (item_of_wrong == n).nonzero().flatten().tolist()
        )
        for n in range(60)
    ]
    assert 0 < sum(expected) < 60
    assert outcomes.tolist() == expected


def test_choice_needs_something_to_choose() -> None:
    with pytest.raises(ValueError, match="item 1 has no wrong candidate"):
        choice_outcomes(
            torch.eye(2), torch.eye(2), torch.tensor([0, 1]), torch.tensor([1]), torch.tensor([0])
        )


def test_first_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    queries = torch.stack([E1, E2, E1 + E2, NAN, -E3])
    assert first_choices(queries, torch.stack([E1, E2, E3])).tolist() == [0, 1, 0, -1, 0]
    assert first_choices(queries, torch.stack([E1, NAN])).tolist() == [-1] * 5
    assert first_choices(queries[:0], torch.eye(3)).tolist() == []
    monkeypatch.setattr(paired_metrics, "_PRODUCTS_PER_BLOCK", 100)
    queries, candidates = random_unit(60, 8), random_unit(40, 8, seed=1)
    expected = [max(range(40), key=lambda c: float(queries[n] @ candidates[c])) for n in range(60)]
    assert first_choices(queries, candidates).tolist() == expected


def test_equal_rows_tie_wherever_they_stand() -> None:
    a, b = random_unit(1, 513).expand(1000, 513), random_unit(1, 513, seed=1).expand(1000, 513).contiguous()
    assert row_products(a, b).unique().numel() == 1
    assert row_products(b, a).unique().tolist() == row_products(a[:1], b[:1]).tolist()


def test_mean_of_groups_by_hand() -> None:
    # Accuracies 1/2 and 1: mean 3/4. Item 1 is in both groups, item 3 has both outcomes of its group.
    groups = [
        (torch.tensor([0, 1]), torch.tensor([0.0, 1.0])),
        (torch.tensor([1, 2, 3, 3]), torch.tensor([1.0, 1.0, 1.0, 1.0])),
    ]
    values = mean_of_groups(groups, 4)
    # item 0: 3/4 + (0 - 1/2) / 2 * 4 / 2, item 1: 3/4 + (1 - 1/2) / 2 * 4 / 2
    assert values.tolist() == pytest.approx([0.25, 1.25, 0.75, 0.75])
    assert float(values.mean()) == pytest.approx(0.75)


def test_mean_of_groups_with_one_group_is_the_outcomes() -> None:
    outcomes = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(mean_of_groups([(torch.arange(4), outcomes)], 4), outcomes)


def test_mean_of_groups_has_the_spread_of_the_mean_of_means() -> None:
    """The standard error that the values give is that of drawing the items again within fixed groups."""
    generator = torch.Generator().manual_seed(0)
    groups, start = [], 0
    for size, share in ((30, 0.9), (200, 0.5), (70, 0.2)):
        outcomes = (torch.rand(size, generator=generator) < share).double()
        groups.append((torch.arange(start, start + size), outcomes))
        start += size
    values = mean_of_groups(groups, start)
    variance = sum(float(o.var(correction=0)) / len(o) for _, o in groups) / 9
    assert float(values.var(correction=0)) / start == pytest.approx(variance)
    all_right = [(rows, torch.ones(len(rows))) for rows, _ in groups]
    assert mean_of_groups(all_right, start).unique().tolist() == [1.0]


def test_mean_of_groups_refuses_empty_groups() -> None:
    with pytest.raises(ValueError, match="at least one group"):
        mean_of_groups([], 3)
    with pytest.raises(ValueError, match="group 0 has no outcome"):
        mean_of_groups([(torch.empty(0, dtype=torch.int64), torch.empty(0))], 3)


def test_accuracy_interval() -> None:
    # Both ends solve (p - share)^2 = z^2 p (1 - p) / n.
    low, high = accuracy_interval(37, 100)
    z2 = 1.959963984540054**2
    for p in (low, high):
        assert (p - 0.37) ** 2 == pytest.approx(z2 * p * (1 - p) / 100)
    assert (low, high) == pytest.approx((0.2818, 0.4678), abs=1e-4)
    assert accuracy_interval(0, 10)[0] == 0
    assert accuracy_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert accuracy_interval(63, 100) == pytest.approx((1 - high, 1 - low))
