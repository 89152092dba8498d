"""Symmetric softmax contrastive loss (InfoNCE, as in CLIP) over the pairs of a group of ranks."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from clipkit.distributed import Group
from clipkit.exchange import ExchangeName
from clipkit.losses.dense import softmax_sums
from clipkit.losses.inputs import check_inputs, negative_logits
from clipkit.losses.kernels import KernelName, choose_kernel
from clipkit.losses.pairs import Pairs, label_pairs, of_images_alone, with_softmax_targets
from clipkit.losses.tiled import SoftmaxSums

Directions = Literal["both", "image_to_text"]


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    pairs: Pairs | None = None,
    label_smoothing: float = 0.0,
    directions: Directions = "both",
    group: Group = None,
    kernel: KernelName = "auto",
    exchange: ExchangeName = "gather",
) -> Tensor:
    """Symmetric InfoNCE over the pairs of a group of ranks (CLIP, arXiv:2103.00020, Figure 3).

    The loss of an image is the cross-entropy of the softmax over all texts of the group, with a target spread
    evenly over its positives (`L_out` of supervised contrastive learning, arXiv:2004.11362, Equation 2); the
    loss of a text is the same over all images. The data-parallel mean of the gradients of this value is the
    gradient of the single-process loss over all pairs of a group, averaged over groups, for both towers and
    for the logit scale.

    Args:
        image_features: (N, D), rows L2-normalised; any floating dtype, logits are at least fp32.
        text_features: (N, D), rows L2-normalised; row i is the caption of image i.
        logit_scale: scalar > 0, inverse temperature, already exponentiated.
        pairs: other positives, left-out pairs, negatives, weights, unequal N; None is a plain batch.
        label_smoothing: this part of every target is spread evenly over all columns that are not left out.
        directions: `both`, or images against texts alone: then the loss is the image's, without the half.
        group: ranks whose pairs are negatives of each other; None is the world.
        kernel: `dense` holds all logits, `tiled` and `triton` a tile of them; `auto` picks.
        exchange: how text features travel, at once (`gather`) or from neighbour to neighbour (`ring`).

    Returns:
        Scalar in nats, whose mean over the ranks is the weighted mean over all pairs of half the image's and
        half the text's loss; with diagonal positives, this rank's own part of that.

    Raises:
        ValueError: the features do not pair up, a setting is out of range, the device cannot run the kernel.
    """
    pairs = pairs or Pairs()
    layout = check_inputs(
        image_features, text_features, pairs, group=group, label_smoothing=label_smoothing, exchange=exchange
    )
    device = image_features.device
    chosen = choose_kernel(
        kernel, device, image_features.dtype, num_rows=max(layout.counts), num_columns=layout.num_rows
    )
    with torch.autocast(device.type, enabled=False):
        scale = logit_scale.reshape(()).to(torch.promote_types(image_features.dtype, torch.float32))
        labels = label_pairs(pairs, layout, scale.detach())
        if directions == "image_to_text":
            labels = of_images_alone(labels)
        negatives = pairs.negative_text_features
        num_extra = 0 if negatives is None else negatives.shape[1]
        labels = with_softmax_targets(
            labels, text_features, layout, exchange, label_smoothing=label_smoothing, num_extra=num_extra
        )
        if chosen == "dense":
            sums = softmax_sums(image_features, text_features, scale, labels, layout, exchange)
        else:
            sums = SoftmaxSums.apply(image_features, text_features, scale, labels, layout, chosen, exchange)
        row_log_sums, column_log_sums, on_target = sums
        if negatives is not None:
            extra = negative_logits(image_features, negatives, scale)
            row_log_sums = torch.logaddexp(row_log_sums, extra.logsumexp(1))
            if labels.targets is not None and labels.targets.row_uniform is not None:
                on_target = on_target + extra.sum(1) @ labels.targets.row_uniform
        own_column_weights = labels.column_weights[layout.own]
        loss: Tensor = row_log_sums @ labels.row_weights + column_log_sums @ own_column_weights - on_target
        return loss
