"""Evaluation metrics as pure functions of features, scores and ground truth.

Rankings break ties by the lower index, as a stable sort does, and NaN ranks first, so a model whose features
have collapsed scores at chance, and one that is destroyed not at all, and neither at 100 %.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SCORES_PER_BLOCK = 2**26


def positive_ranks(query_features: Tensor, item_features: Tensor, positives: Tensor) -> Tensor:
    """Rank of the best positive item of each query, by inner product.

    Works through the queries in blocks, so memory stays flat in their number.

    Args:
        query_features: (Q, D).
        item_features: (M, D), normalised like the queries.
        positives: (P, 2) int64, rows (query index, item index); every query has at least one.

    Returns:
        (Q,) int64, 0 where a positive comes first.

    Raises:
        ValueError: a query has no positive.
    """
    num_queries, num_items = query_features.shape[0], item_features.shape[0]
    has_positive = torch.zeros(num_queries, dtype=torch.bool)
    has_positive[positives[:, 0]] = True
    if not bool(has_positive.all()):
        missing = int((~has_positive).nonzero()[0])
        raise ValueError(f"every query needs a positive item, query {missing} has none")
    ranks = torch.empty(num_queries, dtype=torch.int64)
    block = max(1, _SCORES_PER_BLOCK // max(1, num_items))
    indices = torch.arange(num_items)
    for start in range(0, num_queries, block):
        scores = (query_features[start : start + block] @ item_features.T).cpu()
        in_block = (positives[:, 0] >= start) & (positives[:, 0] < start + block)
        rows, items = positives[in_block, 0] - start, positives[in_block, 1]
        is_positive = torch.zeros_like(scores, dtype=torch.bool)
        is_positive[rows, items] = True
        best = scores.masked_fill(~is_positive, -torch.inf).max(dim=1)
        # "not worse" rather than "better", so that NaN never counts as a right answer.
        not_worse = ~(scores <= best.values[:, None]) & ~is_positive
        tied_before = (scores == best.values[:, None]) & (indices < best.indices[:, None])
        ranks[start : start + block] = (not_worse | tied_before).sum(dim=1)
    return ranks


def recall_at_k(ranks: Tensor, k: int) -> float:
    """Fraction of queries with a positive among the first `k` items.

    Args:
        ranks: (Q,) zero-based ranks of the best positive, from `positive_ranks`.
        k: at least 1.
    """
    return float((ranks < k).double().mean())


def retrieval_metrics(
    image_features: Tensor, text_features: Tensor, image_of_text: Tensor, *, ks: tuple[int, ...] = (1, 5, 10)
) -> dict[str, float]:
    """Recall and mean rank both ways, every caption of an image a positive (Karpathy's protocol).

    Args:
        image_features: (N, D), L2-normalised.
        text_features: (T, D), L2-normalised.
        image_of_text: (T,) int64, the image that each text describes; every image has at least one text.
        ks: the K of R@K.

    Returns:
        `text_to_image_R@K`, `image_to_text_R@K` as fractions, and `..._mean_rank` (1 is perfect).
    """
    texts = torch.arange(text_features.shape[0])
    image_of_text = image_of_text.cpu()
    to_image = positive_ranks(text_features, image_features, torch.stack([texts, image_of_text], dim=1))
    to_text = positive_ranks(image_features, text_features, torch.stack([image_of_text, texts], dim=1))
    metrics: dict[str, float] = {}
    for direction, ranks in (("text_to_image", to_image), ("image_to_text", to_text)):
        metrics |= {f"{direction}_R@{k}": recall_at_k(ranks, k) for k in ks}
        metrics[f"{direction}_mean_rank"] = float(ranks.double().mean()) + 1
    return metrics


def topk_accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Fraction of rows whose label is among the `k` highest logits.

    Args:
        logits: (N, C).
        labels: (N,) int64 in [0, C).
        k: at most C.
    """
    own = torch.stack([torch.arange(labels.shape[0]), labels.cpu()], dim=1)
    scores = logits.cpu()
    label_scores = scores[own[:, 0], own[:, 1]][:, None]
    classes = torch.arange(scores.shape[1])
    is_own = classes == own[:, 1:]
    ahead = ~(scores <= label_scores) & ~is_own | (scores == label_scores) & (classes < own[:, 1:])
    return recall_at_k(ahead.sum(dim=1), k)


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(C, C) int64 counts, row the true class, column the predicted one."""
    flat = labels.cpu() * num_classes + predictions.cpu()
    return torch.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)
