"""What every loss checks and casts before it starts."""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.distributed import Group
from clipkit.exchange import EXCHANGES, RowLayout
from clipkit.losses.pairs import Pairs


def at_least_fp32(x: Tensor) -> Tensor:
    """Cast half precisions up; fp32 and fp64 stay.

    Logits need it: bf16 values near 100 are multiples of 0.5, an error of 28 % after exp.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_inputs(
    image_features: Tensor,
    text_features: Tensor,
    pairs: Pairs,
    *,
    group: Group,
    label_smoothing: float,
    exchange: str,
) -> RowLayout:
    """Refuse what does not make a batch of pairs; returns where its rows are.

    Raises:
        ValueError: the features do not pair up row by row, or a setting is out of its range.
    """
    if image_features.shape != text_features.shape or image_features.ndim != 2:
        raise ValueError(
            "image_features and text_features must both be (N, D) and pair up row by row, got "
            f"{tuple(image_features.shape)} and {tuple(text_features.shape)}"
        )
    if image_features.dtype != text_features.dtype:
        raise ValueError(
            "image_features and text_features must have one dtype, got "
            f"{image_features.dtype} and {text_features.dtype}"
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    if exchange not in EXCHANGES:
        raise ValueError(f"unknown exchange {exchange!r}; choose from {', '.join(EXCHANGES)}")
    negatives = pairs.negative_text_features
    if negatives is not None and (negatives.ndim != 3 or negatives.shape[::2] != image_features.shape):
        num_rows, embed_dim = image_features.shape
        raise ValueError(
            f"pairs.negative_text_features must be ({num_rows}, K, {embed_dim}), got {tuple(negatives.shape)}"
        )
    return RowLayout.of(image_features, group, pairs.row_counts)


def negative_logits(image_features: Tensor, negatives: Tensor, logit_scale: Tensor) -> Tensor:
    """Logits of each image with its own negative texts: (N, D), (N, K, D) -> (N, K)."""
    return logit_scale * torch.einsum("nd,nkd->nk", at_least_fp32(image_features), at_least_fp32(negatives))
