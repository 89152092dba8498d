from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from clipkit.zeroshot import few_shot
from clipkit.zeroshot.few_shot import nearest_mean_scores, nearest_neighbour_scores, split_shots
from hand_features import at, random_rows
from sklearn.neighbors import KNeighborsClassifier

from clipkit.metrics import topk_accuracy

LABELS = torch.tensor([0] * 30 + [1] * 9 + [2] * 12)


@pytest.mark.parametrize(("shots", "num_validation"), [(1, (1, 1, 1)), (3, (3, 3, 3)), (8, (4, 1, 4))])
def test_shots_and_others_to_choose_by(shots: int, num_validation: tuple[int, ...]) -> None:
    training, validation = split_shots(LABELS, 3, shots, seed=0)
    assert torch.bincount(LABELS[training]).tolist() == [shots] * 3
    assert torch.bincount(LABELS[validation]).tolist() == list(num_validation)
    assert not set(training.tolist()) & set(validation.tolist())


def test_a_fifth_is_held_out_of_all() -> None:
    labels = torch.cat([LABELS, torch.tensor([3, 4, 4])])
    training, validation = split_shots(labels, 5, 0, seed=0)
    assert torch.bincount(labels[validation], minlength=5).tolist() == [6, 1, 2, 0, 1]
    assert sorted(training.tolist() + validation.tolist()) == list(range(len(labels)))


def test_draws_follow_the_seed() -> None:
    first, again, other = (split_shots(LABELS, 3, 4, seed=seed)[0].tolist() for seed in (0, 0, 1))
    assert first == again != other
    drawn = [split_shots(LABELS, 3, 4, seed=seed)[0] for seed in range(60)]
    assert torch.cat(drawn).unique().numel() == len(LABELS)


def test_too_few_images_are_told() -> None:
    with pytest.raises(
        ValueError, match=r"9 shots need 10 training images of each class.*smallest class has 9"
    ):
        split_shots(LABELS, 3, 9, seed=0)
    with pytest.raises(ValueError, match="at least two training images"):
        split_shots(torch.arange(3), 3, 0, seed=0)


def test_nearest_mean_by_hand() -> None:
    # The mean of class 0 is at 45 degrees, that of class 1 at 180.
    scores = nearest_mean_scores(at(45, 135), at(0, 90, 180), torch.tensor([0, 0, 1]), 2)
    expected = torch.tensor([[1.0, -(0.5**0.5)], [0.0, 0.5**0.5]])
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)


def test_neighbours_by_hand() -> None:
    train, labels = at(0, 10, 40, 170), torch.tensor([0, 1, 1, 2])
    scores = nearest_neighbour_scores(at(2), train, labels, 3, num_neighbours=3)
    assert scores.argmax(dim=1).tolist() == [1]
    assert scores.floor().tolist() == [[1.0, 2.0, 0.0]]
    # With one neighbour each, the nearer one is ahead, although its class comes later.
    scores = nearest_neighbour_scores(at(9), train, labels, 3, num_neighbours=2)
    assert scores.argmax(dim=1).tolist() == [1]


@pytest.mark.parametrize("num_neighbours", [1, 5])
def test_neighbours_vote_as_those_of_scikit_learn(
    num_neighbours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_shot, "_SCORES_PER_BLOCK", 1000)
    means = random_rows(6, 8, seed=9)
    labels, truth = torch.arange(120) % 6, torch.arange(200) % 6
    train = F.normalize(means[labels] + random_rows(120, 8, seed=1), dim=-1)
    test = F.normalize(means[truth] + random_rows(200, 8, seed=2), dim=-1)
    votes = nearest_neighbour_scores(test, train, labels, 6, num_neighbours=num_neighbours)
    reference = KNeighborsClassifier(num_neighbours, metric="cosine").fit(train.numpy(), labels.numpy())
    expected = torch.from_numpy(reference.predict_proba(test.numpy())) * num_neighbours
    assert torch.equal(votes.round(), expected.float())
    assert 0.5 < topk_accuracy(votes, truth) < 1
