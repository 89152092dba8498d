"""Pairwise sigmoid loss (SigLIP) over the pairs of a group of ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.distributed import Group
from clipkit.exchange import ExchangeName
from clipkit.losses.dense import sigmoid_sum
from clipkit.losses.inputs import check_inputs, negative_logits
from clipkit.losses.kernels import KernelName, choose_kernel
from clipkit.losses.pairs import Pairs, label_pairs
from clipkit.losses.tiled import SigmoidSum


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    pairs: Pairs | None = None,
    label_smoothing: float = 0.0,
    group: Group = None,
    kernel: KernelName = "auto",
    exchange: ExchangeName = "gather",
) -> Tensor:
    """Binary classification of every image-text pair (SigLIP, arXiv:2303.15343, Algorithm 1).

    Every positive pair, on the diagonal or not, is one to be told from all others. The weight of a pair is
    the mean of the weights of its image and its text. The data-parallel mean of the gradients of this value
    is the gradient of the single-process loss over all pairs of a group, averaged over groups.

    Args:
        image_features: (N, D), rows L2-normalised; any floating dtype, logits are at least fp32.
        text_features: (N, D), rows L2-normalised; row i is the caption of image i.
        logit_scale: scalar > 0, already exponentiated.
        logit_bias: scalar added to every logit.
        pairs: other positives, left-out pairs, negatives, weights, unequal N; None is a plain batch.
        label_smoothing: targets 1 and 0 become 1 - `label_smoothing` / 2 and `label_smoothing` / 2.
        group: ranks whose pairs are negatives of each other; None is the world.
        kernel: `dense` holds all logits, `tiled` and `triton` a tile of them; `auto` picks. With the latter
            two, gradients are computed in the forward pass.
        exchange: how text features travel, at once (`gather`) or from neighbour to neighbour (`ring`).

    Returns:
        Scalar in nats: over this rank's images, the mean of the sum over all texts of the group.

    Raises:
        ValueError: the features do not pair up, a setting is out of range, the device cannot run the kernel;
            in the backward of tiles, this loss counts more on one rank than on another.
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
        dtype = torch.promote_types(image_features.dtype, torch.float32)
        scale, bias = logit_scale.reshape(()).to(dtype), logit_bias.reshape(()).to(dtype)
        labels = label_pairs(pairs, layout, scale.detach())
        features = image_features, text_features, scale, bias
        if chosen == "dense":
            loss = sigmoid_sum(*features, labels, layout, exchange, label_smoothing=label_smoothing)
        else:
            if not torch.is_grad_enabled():  # or the gradients would be computed all the same
                features = image_features.detach(), text_features.detach(), scale.detach(), bias.detach()
            loss = SigmoidSum.apply(*features, labels, layout, chosen, exchange, label_smoothing)
        if pairs.negative_text_features is not None:
            extra = negative_logits(image_features, pairs.negative_text_features, scale) + bias
            losses = -F.logsigmoid(-extra) - label_smoothing / 2 * extra
            loss = loss + losses.sum(1) @ labels.row_weights * 2
        return loss
