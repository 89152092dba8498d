from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from clipkit import metrics


def test_ranks_by_hand() -> None:
    queries = torch.eye(3)
    items = torch.tensor([[0.9, 0.1, 0.5], [0.5, 0.8, 0.9], [0.1, 0.9, 0.1]])
    # Query 0 likes items 0 > 1 > 2, query 1 items 2 > 1 > 0, query 2 items 1 > 0 > 2.
    positives = torch.tensor([[0, 1], [0, 2], [1, 0], [2, 1]])
    assert metrics.positive_ranks(queries, items, positives).tolist() == [1, 2, 0]


def test_retrieval_by_hand_with_two_captions_of_an_image() -> None:
    images = torch.eye(2)
    texts = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    result = metrics.retrieval_metrics(images, texts, torch.tensor([0, 0, 1]), ks=(1, 2))
    # Captions 0 and 2 find their image first, caption 1 (of image 0) second; both images find a caption first
    # except image 1, whose caption 2 comes behind caption 1.
    assert result == {
        "text_to_image_R@1": pytest.approx(2 / 3),
        "text_to_image_R@2": 1.0,
        "text_to_image_mean_rank": pytest.approx(4 / 3),
        "text_to_image_median_rank": 1.0,
        "image_to_text_R@1": 0.5,
        "image_to_text_R@2": 1.0,
        "image_to_text_mean_rank": 1.5,
        "image_to_text_median_rank": 1.5,
    }


def test_equal_to_a_slow_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_SCORES_PER_BLOCK", 100)
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(30, 4, generator=generator), torch.randn(75, 4, generator=generator)
    image_of_text = torch.cat([torch.arange(30), torch.randint(30, (45,), generator=generator)])
    result = metrics.retrieval_metrics(images, texts, image_of_text)
    scores = texts @ images.T
    hits = [int(image_of_text[t]) in scores[t].topk(5).indices.tolist() for t in range(75)]
    assert result["text_to_image_R@5"] == pytest.approx(sum(hits) / 75)
    hits = [
        any(int(image_of_text[t]) == i for t in scores[:, i].topk(10).indices.tolist()) for i in range(30)
    ]
    assert result["image_to_text_R@10"] == pytest.approx(sum(hits) / 30)


def test_equal_to_the_definition_of_clip_benchmark() -> None:
    """Recall of a query above 0, over a matrix of positives, is recall@K."""
    generator = torch.Generator().manual_seed(1)
    images, texts = torch.randn(40, 8, generator=generator), torch.randn(90, 8, generator=generator)
    image_of_text = torch.cat([torch.arange(40), torch.randint(40, (50,), generator=generator)])
    positives = torch.zeros(90, 40, dtype=torch.bool)
    positives[torch.arange(90), image_of_text] = True
    to_image, to_text = metrics.retrieval_ranks(images, texts, image_of_text)
    for ranks, scores, truth in (
        (to_image, texts @ images.T, positives),
        (to_text, images @ texts.T, positives.T),
    ):
        for k in (1, 5, 10):
            found = truth.gather(1, scores.topk(k, dim=1).indices).sum(dim=1) / truth.sum(dim=1)
            assert metrics.recall_at_k(ranks, k) == pytest.approx(float((found > 0).double().mean()))


def test_ranks_by_hand_in_the_mean_and_in_the_middle() -> None:
    assert metrics.median_rank(torch.tensor([7, 0, 2])) == 3.0
    assert metrics.median_rank(torch.tensor([7, 0, 2, 1])) == 2.5
    assert metrics.median_rank(torch.tensor([4])) == 5.0
    assert metrics.mean_rank(torch.tensor([7, 0, 2])) == 4.0
    ranks = torch.randint(1000, (501,), generator=torch.Generator().manual_seed(0))
    assert metrics.median_rank(ranks) == np.median(ranks.numpy()) + 1


def test_collapsed_features_score_at_chance() -> None:
    same = torch.ones(100, 3)
    result = metrics.retrieval_metrics(same, same, torch.arange(100))
    assert result["text_to_image_R@1"] == pytest.approx(0.01)
    assert result["image_to_text_mean_rank"] == pytest.approx(50.5)


def test_nan_is_never_a_right_answer() -> None:
    destroyed = torch.full((20, 3), torch.nan)
    result = metrics.retrieval_metrics(destroyed, destroyed, torch.arange(20))
    assert result["text_to_image_R@10"] == 0.0
    assert metrics.topk_accuracy(destroyed, torch.zeros(20, dtype=torch.int64)) == 0.0


def test_a_query_without_a_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="query 1 has none"):
        metrics.positive_ranks(torch.eye(2), torch.eye(2), torch.tensor([[0, 0]]))


def test_topk_accuracy_by_hand() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 1.0, 0.0]])
    labels = torch.tensor([0, 1, 1])
    assert metrics.topk_accuracy(logits, labels) == pytest.approx(1 / 3)
    assert metrics.topk_accuracy(logits, labels, 2) == 1.0


def test_label_ranks_by_hand_with_ties_and_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_SCORES_PER_BLOCK", 6)  # two rows a block
    logits = torch.tensor(
        [[3.0, 2.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [torch.nan, 5.0, 0.0], [5.0, torch.nan, 0.0]]
    )
    labels = torch.tensor([2, 0, 2, 1, 1])
    assert metrics.label_ranks(logits, labels).tolist() == [2, 0, 2, 1, 2]


def test_topk_accuracy_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 12, generator=generator), torch.randint(12, (200,), generator=generator)
    for k in (1, 3, 5):
        expected = top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k, labels=list(range(12)))
        assert metrics.topk_accuracy(logits, labels, k) == pytest.approx(expected, abs=1e-6)


def test_confusion_matrix_by_hand() -> None:
    matrix = metrics.confusion_matrix(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 1]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
