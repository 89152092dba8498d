"""What `tiled` computes, with all logits at once and derivatives left to autograd: the reference to read."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clipkit.distributed import all_reduce_max
from clipkit.exchange import ExchangeName, RowLayout, all_rows_with_grad, sum_to_owners_with_grad
from clipkit.losses.inputs import at_least_fp32
from clipkit.losses.kernels.tiles import IGNORED_LOGIT
from clipkit.losses.pairs import PairLabels


def softmax_sums(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    labels: PairLabels,
    layout: RowLayout,
    exchange: ExchangeName,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `tiled.SoftmaxSums` computes."""
    all_text_features = all_rows_with_grad(text_features, layout, exchange)
    labels = labels.without_similar_texts(text_features, all_text_features)
    logits = logit_scale * at_least_fp32(image_features) @ all_text_features.T
    if labels.has_diagonal_targets:
        on_target = logits.diagonal(labels.diagonal) @ labels.diagonal_targets()
    else:
        on_target = (logits * labels.target_matrix()).sum()
    kept = labels.kept()
    if kept is not None:
        logits = logits.masked_fill(~kept, IGNORED_LOGIT)
    return logits.logsumexp(1), _column_log_sum_exp(logits, layout), on_target


def _column_log_sum_exp(logits: Tensor, layout: RowLayout) -> Tensor:
    """Log-sum-exp of this rank's columns over the rows of all ranks."""
    if layout.num_ranks == 1:
        return logits.logsumexp(0)
    largest = all_reduce_max(logits.logsumexp(0), layout.group)
    sums = sum_to_owners_with_grad((logits - largest).exp().sum(0), layout)
    return largest[layout.own] + sums.log()


def sigmoid_sum(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    labels: PairLabels,
    layout: RowLayout,
    exchange: ExchangeName,
    *,
    label_smoothing: float,
) -> Tensor:
    """What `tiled.SigmoidSum` computes."""
    all_text_features = all_rows_with_grad(text_features, layout, exchange)
    labels = labels.without_similar_texts(text_features, all_text_features)
    logits = logit_scale * at_least_fp32(image_features) @ all_text_features.T + logit_bias
    wrongness = logits * (1 - 2 * labels.positive().to(logits.dtype))
    losses = -F.logsigmoid(-wrongness) - label_smoothing / 2 * wrongness
    kept = labels.kept()
    if kept is not None:
        losses = losses * kept
    return (losses * (labels.row_weights[:, None] + labels.column_weights)).sum()
