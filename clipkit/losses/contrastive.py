"""Symmetric softmax contrastive loss over the global batch (InfoNCE, as in CLIP)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.distributed import Group, all_gather_with_grad, rank, world_size
from clipkit.losses.inputs import at_least_fp32, check_paired


def clip_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, *, group: Group = None
) -> Tensor:
    """Symmetric InfoNCE over the pairs of all ranks (CLIP, arXiv:2103.00020, Figure 3).

    Each rank scores its own rows against the gathered columns of both towers, so the logits take
    2 x N x (W N) per rank. The data-parallel mean of the gradients of this value is the gradient of the
    single-process loss over all W N pairs, for both towers and for the logit scale.

    Args:
        image_features: (N, D), rows L2-normalised, N equal on every rank.
        text_features: (N, D), rows L2-normalised; row i is the caption of image i.
        logit_scale: scalar > 0, inverse temperature, already exponentiated.
        group: ranks whose pairs are negatives of each other; None is the world.

    Returns:
        Scalar in nats: the mean of the image-to-text and text-to-image losses over this rank's rows.

    Raises:
        ValueError: the two feature shapes differ.
    """
    check_paired(image_features, text_features)
    all_image_features = at_least_fp32(all_gather_with_grad(image_features, group))
    all_text_features = at_least_fp32(all_gather_with_grad(text_features, group))
    num_local = image_features.shape[0]
    labels = torch.arange(num_local, device=image_features.device) + rank(group) * num_local
    with torch.autocast(image_features.device.type, enabled=False):
        scale = at_least_fp32(logit_scale)
        logits_per_image = scale * at_least_fp32(image_features) @ all_text_features.T
        if world_size(group) == 1:
            logits_per_text = logits_per_image.T
        else:
            logits_per_text = scale * at_least_fp32(text_features) @ all_image_features.T
        return (F.cross_entropy(logits_per_image, labels) + F.cross_entropy(logits_per_text, labels)) / 2
