"""Metrics of classification beyond accuracy, as pure functions; ties and NaN as in `clipkit.metrics`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.metrics import label_ranks

_LOGITS_PER_BLOCK = 2**24


def class_recalls(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean of the values of each class's images: their recall, where a value says whether an image is right.

    Args:
        values: (N,), such as 1 where the answer is right and else 0.
        labels: (N,) int64 in [0, C).
        num_classes: C.

    Returns:
        (C,) fp64, NaN for a class without images.
    """
    sums = torch.bincount(labels.cpu(), weights=values.double().cpu(), minlength=num_classes)
    return sums / torch.bincount(labels.cpu(), minlength=num_classes)


def mean_per_class_recall(values: Tensor, labels: Tensor, num_classes: int) -> float:
    """Mean of `class_recalls` over the classes that have images, scikit-learn's balanced accuracy."""
    return float(class_recalls(values, labels, num_classes).nanmean())


def expected_calibration_error(logits: Tensor, labels: Tensor, *, num_bins: int = 15) -> float:
    """How far confidence is from accuracy, on average (Guo et al., arXiv:1706.04599, equation 3).

    Images are put into bins of equal width by their largest probability; bin m holds (m-1)/M < p <= m/M.

    Args:
        logits: (N, C), scaled as the softmax takes them. A row with NaN counts as sure and wrong.
        labels: (N,) int64 in [0, C).
        num_bins: M.

    Returns:
        Mean over the images of |accuracy - mean confidence| of their bin, in [0, 1].
    """
    is_right = (label_ranks(logits, labels) == 0).double()
    rows = max(1, _LOGITS_PER_BLOCK // max(1, logits.shape[1]))
    blocks = [block.double().softmax(dim=1).amax(dim=1).cpu() for block in torch.split(logits, rows)]
    confidence = torch.cat(blocks).nan_to_num(nan=1.0)
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)[1:-1]
    bins = torch.bucketize(confidence, edges)
    gaps = torch.bincount(bins, weights=is_right - confidence, minlength=num_bins)
    return float(gaps.abs().sum()) / labels.shape[0]


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes, the second of which is taken for the first."""

    label: int
    """The true class."""
    prediction: int
    count: int
    """Images of the true class with this wrong answer."""
    share: float
    """Of all images of the true class."""


def confused_pairs(predictions: Tensor, labels: Tensor, *, top: int = 10) -> list[ConfusedPair]:
    """The most frequent wrong answers.

    Args:
        predictions: (N,) int64 classes.
        labels: (N,) int64 classes.
        top: most pairs that are returned.

    Returns:
        The pairs, by falling count; of equally frequent ones the lower classes first.
    """
    predictions, labels = predictions.cpu(), labels.cpu()
    wrong = predictions != labels
    answers = torch.stack([labels[wrong], predictions[wrong]], dim=1)
    pairs, counts = torch.unique(answers, dim=0, return_counts=True)
    totals = torch.bincount(labels)
    order = counts.argsort(descending=True, stable=True)[:top]
    return [
        ConfusedPair(label, prediction, count, count / int(totals[label]))
        for (label, prediction), count in zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
    ]
