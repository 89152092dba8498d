from __future__ import annotations

import pytest
import torch
from clipkit.zeroshot import selection
from clipkit.zeroshot.selection import (
    DEFAULT_WEIGHTS,
    DescriptionPool,
    LocalScores,
    NamedPairs,
    best_neighbours,
    choose_weight,
    class_similarity,
    local_scores,
    select_in_neighbourhood,
    select_local,
    selection_images,
)
from torch import Tensor
from torch.nn.functional import normalize

# Six descriptions (rows), four classes.
S = torch.tensor(
    [
        [0.5, 0.1, 0.1, 0.9],
        [0.6, 0.5, 0.4, 0.0],
        [0.1, 0.8, 0.2, 0.0],
        [0.7, 0.2, 0.3, 0.0],
        [0.4, 0.4, 0.1, 0.0],
        [0.3, 0.1, 0.2, 0.9],
    ]
)
ASSIGNED = ((5, 1), (2,), (4, 0, 3), ())


def random_unit(*shape: int, seed: int) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def slow_choice(similarity: Tensor, near: list[int], own: int, assigned: list[int], kept: int) -> list[int]:
    """The published steps, one description and one class at a time."""
    table = similarity.tolist()
    eligible = [d for d, row in enumerate(table) if all(row[own] >= row[other] for other in near)]
    gaps = {d: sum(table[d][own] - table[d][other] for other in near) / len(near) for d in eligible}
    return sorted(eligible, key=lambda d: -gaps[d])[:kept] or assigned[:kept]


def test_the_choice_by_hand() -> None:
    # Among classes 0, 1, 2 class 0 is best in rows 0, 1, 3, 4 (a tie) and 5. The means of the differences are
    # 0.8/3, 0.3/3, 0.9/3, 0.3/3 and 0.3/3.
    chosen = select_in_neighbourhood(S, torch.tensor([0, 1, 2]), ASSIGNED, num_kept=2)
    # Class 1 is best in row 2 and as good in row 4; class 2 nowhere, so it falls back to what was assigned.
    assert chosen.tolist() == [[3, 0], [2, 4], [4, 0]]


def test_an_empty_choice_falls_back_to_what_was_assigned() -> None:
    low = torch.tensor([[0.75, 0.25], [0.5, 0.25]])
    chosen = select_in_neighbourhood(low, torch.tensor([0, 1]), ((), (1, 0)), num_kept=3)
    assert chosen.tolist() == [[0, 1, -1], [1, 0, -1]]
    chosen = select_in_neighbourhood(low, torch.tensor([0, 1]), ((), ()), num_kept=3)
    assert chosen.tolist() == [[0, 1, -1], [-1, -1, -1]]


def test_ties_go_to_the_first_description() -> None:
    chosen = select_in_neighbourhood(torch.ones(9, 2), torch.tensor([1, 0]), ((), ()), num_kept=5)
    assert chosen.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_the_neighbourhood_is_local() -> None:
    caption_scores = torch.tensor([[0.9, 0.8, 0.1, 0.2], [0.1, 0.2, 0.3, 0.9], [0.8, 0.9, 0.1, 0.2]])
    found = select_local(caption_scores, S, ASSIGNED, num_neighbours=2, num_kept=1)
    assert found.neighbours.tolist() == [[0, 1], [3, 2], [1, 0]]
    # Row 0 fits class 3 best of all classes, but images 0 and 2 are about classes 0 and 1.
    assert found.descriptions.tolist() == [[[3], [2]], [[0], [1]], [[2], [3]]]


def test_the_choice_equals_a_slow_oracle() -> None:
    generator = torch.Generator().manual_seed(0)
    # Coarse values, so that there are ties.
    similarity = torch.randint(0, 16, (40, 8), generator=generator) / 16
    assigned = tuple(tuple(torch.randperm(40, generator=generator)[:6].tolist()) for _ in range(8))
    caption_scores = torch.rand(60, 8, generator=generator)
    found = select_local(caption_scores, similarity, assigned, num_neighbours=4, num_kept=3)
    assert torch.equal(found.neighbours, caption_scores.argsort(dim=1, descending=True)[:, :4])
    for near, rows in zip(found.neighbours.tolist(), found.descriptions.tolist(), strict=True):
        for own, row in zip(near, rows, strict=True):
            expected = slow_choice(similarity, near, own, list(assigned[own]), 3)
            assert [d for d in row if d >= 0] == expected
            assert len(row) == 3


def test_the_choice_follows_a_permutation_of_the_classes() -> None:
    similarity, scores = random_unit(30, 6, seed=1), random_unit(20, 6, seed=2)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    assigned = tuple((index,) for index in range(6))
    found = select_local(scores, similarity, assigned)
    turned = select_local(
        scores[:, order], similarity[:, order], tuple(assigned[index] for index in order.tolist())
    )
    assert torch.equal(order[turned.neighbours], found.neighbours)
    assert torch.equal(turned.descriptions, found.descriptions)


def test_fewer_classes_than_neighbours_and_refusals() -> None:
    found = select_local(torch.rand(2, 4), S, ASSIGNED, num_neighbours=9)
    assert found.neighbours.shape == (2, 4)
    assert found.descriptions.shape == (2, 4, 5)
    with pytest.raises(ValueError, match="got 0 neighbours"):
        select_local(torch.rand(2, 4), S, ASSIGNED, num_neighbours=0)
    with pytest.raises(ValueError, match="got 3 captions, similarity with 4 classes"):
        select_local(torch.rand(2, 3), S, ASSIGNED)


def test_a_pool_by_hand() -> None:
    pool = DescriptionPool.of((("red", "small"), (), ("blue", "red")))
    assert pool.descriptions == ("red", "small", "blue")
    assert pool.assigned == ((0, 1), (), (2, 0))


def test_selection_images_are_balanced() -> None:
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1])
    for limit, expected in ((1000, [4, 4]), (2, [2, 2])):
        chosen = selection_images(labels, 2, limit=limit)
        assert torch.bincount(labels[chosen]).tolist() == expected
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert torch.equal(chosen, selection_images(labels, 2, limit=limit))
    assert len({tuple(selection_images(labels, 2, limit=2, seed=seed).tolist()) for seed in range(20)}) > 3
    with pytest.raises(ValueError, match="class 2 has none"):
        selection_images(labels, 3)


def test_class_similarity_by_hand_and_by_a_slow_oracle() -> None:
    images, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([0, 1, 0])
    found = class_similarity(torch.tensor([[1.0, 0.0], [0.8, 0.6]]), images, labels, 2)
    torch.testing.assert_close(found, torch.tensor([[0.8, 0.0], [0.88, 0.6]]))
    images, descriptions = random_unit(12, 8, seed=0), random_unit(5, 8, seed=1)
    labels = torch.arange(12) % 3
    expected = [
        [
            sum(float(image @ row) for image, label in zip(images, labels, strict=True) if label == index) / 4
            for index in range(3)
        ]
        for row in descriptions
    ]
    torch.testing.assert_close(class_similarity(descriptions, images, labels, 3), torch.tensor(expected))


def test_class_similarity_is_computed_in_fp32() -> None:
    images, descriptions = random_unit(64, 16, seed=0).half(), random_unit(5, 16, seed=1).half()
    labels = torch.arange(64) % 2
    found = class_similarity(descriptions, images, labels, 2)
    assert found.dtype == torch.float32
    exact = torch.stack([(descriptions.double() @ images[labels == c].double().T).mean(1) for c in (0, 1)], 1)
    torch.testing.assert_close(found.double(), exact, atol=1e-7, rtol=0)


@pytest.mark.parametrize("block", [1, 10**6])
def test_local_scores_equal_a_slow_oracle(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(selection, "_NUMBERS_PER_BLOCK", block)
    images, captions, descriptions = (random_unit(size, 8, seed=size) for size in (9, 4, 6))
    caption_scores = images @ captions.T
    chosen = select_local(caption_scores, S, ASSIGNED, num_neighbours=3, num_kept=3)
    found = local_scores(chosen, caption_scores, images, descriptions)
    for n, image in enumerate(images):
        for place, index in enumerate(found.neighbours[n].tolist()):
            assert found.names[n, place] == caption_scores[n, index]
            own = [float(image @ descriptions[d]) for d in chosen.descriptions[n, place].tolist() if d >= 0]
            expected = sum(own) / len(own) if own else float(caption_scores[n, index])
            assert float(found.descriptions[n, place]) == pytest.approx(expected, abs=1e-6)


def test_a_class_without_any_description_is_scored_by_its_name() -> None:
    images, caption_scores = torch.eye(2), torch.tensor([[0.3, 0.2], [0.1, 0.4]])
    similarity = torch.tensor([[0.9, 0.1]])
    chosen = select_local(caption_scores, similarity, ((0,), ()), num_neighbours=2)
    found = local_scores(chosen, caption_scores, images, torch.tensor([[0.6, 0.8]]))
    assert found.neighbours.tolist() == [[0, 1], [1, 0]]
    torch.testing.assert_close(found.descriptions, torch.tensor([[0.6, 0.2], [0.4, 0.8]]))


def test_predictions_and_the_choice_of_the_weight_by_hand() -> None:
    scores = LocalScores(
        neighbours=torch.tensor([[2, 0], [1, 2], [0, 1]]),
        names=torch.tensor([[0.3, 0.2], [0.4, 0.3], [0.5, 0.4]]),
        descriptions=torch.tensor([[0.1, 0.4], [0.2, 0.4], [0.1, 0.15]]),
    )
    # Descriptions turn image 0 round below weight 3, image 1 below 2 and image 2 below 0.5.
    assert scores.predictions(0).tolist() == [0, 2, 1]
    assert scores.predictions(1).tolist() == [0, 2, 0]
    assert scores.predictions(2.5).tolist() == [0, 1, 0]
    assert scores.predictions(4).tolist() == [2, 1, 0]
    weight, sweep = choose_weight(scores, torch.tensor([0, 1, 0]), weights=(0.0, 1.0, 2.5, 2.75, 4.0))
    assert weight == 2.5
    assert sweep == {
        0.0: pytest.approx(1 / 3),
        1.0: pytest.approx(2 / 3),
        2.5: 1.0,
        2.75: 1.0,
        4.0: pytest.approx(2 / 3),
    }
    assert len(DEFAULT_WEIGHTS) == 160
    assert (DEFAULT_WEIGHTS[1], DEFAULT_WEIGHTS[-1]) == (0.25, 39.75)
    with pytest.raises(ValueError, match="got 0 and 3"):
        choose_weight(scores, torch.tensor([0, 1, 0]), weights=())


def test_a_large_weight_leaves_the_captions_alone() -> None:
    images, captions, descriptions = (random_unit(size, 8, seed=size) for size in (30, 4, 6))
    caption_scores = images @ captions.T
    chosen = select_local(caption_scores, S, ASSIGNED)
    found = local_scores(chosen, caption_scores, images, descriptions)
    assert torch.equal(found.predictions(1e6), caption_scores.argmax(dim=1))


def test_named_pairs_by_hand() -> None:
    chosen = selection.Selection(
        neighbours=torch.tensor([[1, 0], [1, 2]]),
        descriptions=torch.tensor([[[4, 5, -1], [-1, -1, -1]], [[4, 5, -1], [4, 0, 1]]]),
    )
    named = NamedPairs.of(chosen)
    assert named.pairs.tolist() == [[0, -1], [1, 4], [1, 5], [2, 0], [2, 1], [2, 4]]
    assert named.pairs[named.index][0, :, :, 1].tolist() == [[4, 5, 4], [-1, -1, -1]]
    assert named.pairs[named.index][1, :, :, 0].tolist() == [[1, 1, 1], [2, 2, 2]]
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    features = torch.tensor([[0.6, 0.8], [0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
    # Image 0 and class 1: the cosines 0, 1 and, repeated, 0.
    torch.testing.assert_close(named.scores(images, features), torch.tensor([[1 / 3, 0.6], [2 / 3, 0.8]]))
    largest = named.scores(images, features, largest=True)
    torch.testing.assert_close(largest, torch.tensor([[1.0, 0.6], [1.0, 1.0]]))
    assert best_neighbours(chosen.neighbours, largest).tolist() == [1, 1]


def test_named_scores_equal_a_slow_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_NUMBERS_PER_BLOCK", 200)
    images, captions = random_unit(9, 8, seed=1), random_unit(4, 8, seed=2)
    chosen = select_local(images @ captions.T, S, ASSIGNED, num_neighbours=2, num_kept=3)
    named = NamedPairs.of(chosen)
    features = random_unit(len(named.pairs), 8, seed=3)
    of_pair = {tuple(pair): row for pair, row in zip(named.pairs.tolist(), features, strict=True)}
    found = named.scores(images, features)
    for n, image in enumerate(images):
        for place, index in enumerate(chosen.neighbours[n].tolist()):
            own = [d for d in chosen.descriptions[n, place].tolist() if d >= 0] or [-1]
            filled = [own[j % len(own)] for j in range(3)]
            expected = sum(float(image @ of_pair[(index, d)]) for d in filled) / 3
            assert float(found[n, place]) == pytest.approx(expected, abs=1e-6)
