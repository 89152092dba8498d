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
    """Recall, mean and median rank both ways, every caption of an image a positive (Karpathy's protocol).

    Args:
        image_features: (N, D), L2-normalised.
        text_features: (T, D), L2-normalised.
        image_of_text: (T,) int64, the image that each text describes; every image has at least one text.
        ks: the K of R@K.

    Returns:
        `text_to_image_R@K`, `image_to_text_R@K` as fractions, `..._mean_rank` and `..._median_rank` (1 is
        perfect).
    """
    ranks_to_image, ranks_to_text = retrieval_ranks(image_features, text_features, image_of_text)
    metrics: dict[str, float] = {}
    for direction, ranks in (("text_to_image", ranks_to_image), ("image_to_text", ranks_to_text)):
        metrics |= {f"{direction}_R@{k}": recall_at_k(ranks, k) for k in ks}
        metrics[f"{direction}_mean_rank"] = mean_rank(ranks)
        metrics[f"{direction}_median_rank"] = median_rank(ranks)
    return metrics


def retrieval_ranks(
    image_features: Tensor, text_features: Tensor, image_of_text: Tensor
) -> tuple[Tensor, Tensor]:
    """Rank of the image of each text, and of the best text of each image.

    Arguments as of `retrieval_metrics`.

    Returns:
        (T,) and (N,) int64, 0 where a positive comes first.
    """
    texts = torch.arange(text_features.shape[0])
    image_of_text = image_of_text.cpu()
    to_image = positive_ranks(text_features, image_features, torch.stack([texts, image_of_text], dim=1))
    to_text = positive_ranks(image_features, text_features, torch.stack([image_of_text, texts], dim=1))
    return to_image, to_text


def mean_rank(ranks: Tensor) -> float:
    """Mean of (Q,) zero-based ranks, counted from 1."""
    return float(ranks.double().mean()) + 1


def median_rank(ranks: Tensor) -> float:
    """Median of (Q,) zero-based ranks, counted from 1; halfway between the middle two of an even number."""
    ordered, half = ranks.sort().values, ranks.numel() // 2
    return float(ordered[[half - 1 + ranks.numel() % 2, half]].double().mean()) + 1


def label_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """Rank of the label of each row among its logits.

    Works through the rows in blocks, so memory beyond the result stays flat in their number.

    Args:
        logits: (N, C).
        labels: (N,) int64 in [0, C).

    Returns:
        (N,) int64, 0 where the label has the highest logit.
    """
    classes = torch.arange(logits.shape[1])
    ranks = torch.empty(labels.shape[0], dtype=torch.int64)
    block = max(1, _SCORES_PER_BLOCK // max(1, logits.shape[1]))
    for start in range(0, labels.shape[0], block):
        scores, own = logits[start : start + block].cpu(), labels[start : start + block].cpu()[:, None]
        label_scores = scores.gather(1, own)
        ahead = ~(scores <= label_scores) & (classes != own) | (scores == label_scores) & (classes < own)
        ranks[start : start + block] = ahead.sum(dim=1)
    return ranks


def topk_accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Fraction of rows whose label is among the `k` highest logits.

    Args:
        logits: (N, C).
        labels: (N,) int64 in [0, C).
        k: at most C.
    """
    return recall_at_k(label_ranks(logits, labels), k)


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """(C, C) int64 counts, row the true class, column the predicted one."""
    flat = labels.cpu() * num_classes + predictions.cpu()
    return torch.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)
