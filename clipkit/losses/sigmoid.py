"""Pairwise sigmoid loss over the global batch (SigLIP)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.distributed import Group, all_gather_with_grad, rank
from clipkit.losses.inputs import at_least_fp32, check_paired


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    group: Group = None,
) -> Tensor:
    """Binary classification of every image-text pair (SigLIP, arXiv:2303.15343, Algorithm 1).

    Only the text features travel between ranks: nothing is normalised over rows or columns.

    Args:
        image_features: (N, D), rows L2-normalised, N equal on every rank.
        text_features: (N, D), rows L2-normalised; row i is the caption of image i.
        logit_scale: scalar > 0, already exponentiated.
        logit_bias: scalar added to every logit.
        group: ranks whose pairs are negatives of each other; None is the world.

    Returns:
        Scalar in nats: summed over the W N texts, mean over this rank's N images.

    Raises:
        ValueError: the two feature shapes differ.
    """
    check_paired(image_features, text_features)
    all_text_features = at_least_fp32(all_gather_with_grad(text_features, group))
    num_local = image_features.shape[0]
    own = torch.arange(num_local, device=image_features.device)
    with torch.autocast(image_features.device.type, enabled=False):
        scale, bias = at_least_fp32(logit_scale), at_least_fp32(logit_bias)
        logits = scale * at_least_fp32(image_features) @ all_text_features.T + bias
        signs = torch.full_like(logits, -1.0)
        signs[own, own + rank(group) * num_local] = 1.0
        return -F.logsigmoid(signs * logits).sum() / num_local
