from __future__ import annotations

import pytest
import torch

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
        "image_to_text_R@1": 0.5,
        "image_to_text_R@2": 1.0,
        "image_to_text_mean_rank": 1.5,
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


def test_confusion_matrix_by_hand() -> None:
    matrix = metrics.confusion_matrix(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 1]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
