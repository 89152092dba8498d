"""Region-text contrast: regions and phrases of the whole global batch, however many each image has."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from clipkit.distributed import Group, gather_counts
from clipkit.exchange import ExchangeName
from clipkit.losses.contrastive import clip_loss
from clipkit.losses.inputs import at_least_fp32
from clipkit.losses.kernels import KernelName
from clipkit.losses.pairs import Pairs

Directions = Literal["both", "region_to_text"]

MAX_TEXT_SIMILARITY = 0.9
"""Phrases more alike than this are no negatives of each other (CLOC, arXiv:2410.02746, section 3.1)."""


def region_loss(
    region_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    max_text_similarity: float = MAX_TEXT_SIMILARITY,
    directions: Directions = "both",
    group: Group = None,
    kernel: KernelName = "auto",
    exchange: ExchangeName = "gather",
) -> Tensor:
    """Symmetric InfoNCE over the regions of a group of ranks (CLOC, arXiv:2410.02746, Equation 2).

    The number of regions may differ from rank to rank and be 0. Pairs of a region and the phrase of another
    are left out where the two phrases have a cosine above `max_text_similarity`, which no gradient goes
    through.

    Args:
        region_features: (R, D), rows L2-normalised.
        text_features: (R, D), rows L2-normalised; row i is the phrase of region i.
        logit_scale: scalar > 0, inverse temperature, already exponentiated.
        max_text_similarity: cosine; 1 leaves nothing out.
        directions: `both`, or regions against texts alone, as the code of GRAIN has it (arXiv:2412.04429).
        group: ranks whose regions are negatives of each other; None is the world.
        kernel: see `clip_loss`.
        exchange: see `clip_loss`.

    Returns:
        Scalar in nats; its mean over ranks is the mean over all regions of the group. 0, with gradients of 0,
        where the group has none.

    Raises:
        ValueError: see `clip_loss`.
    """
    counts = gather_counts(region_features.shape[0], region_features.device, group)
    if sum(counts) == 0:
        return at_least_fp32(region_features.sum() + text_features.sum() + logit_scale.sum() * 0)
    return clip_loss(
        region_features,
        text_features,
        logit_scale,
        pairs=Pairs(max_text_similarity=max_text_similarity, row_counts=counts),
        directions="both" if directions == "both" else "image_to_text",
        group=group,
        kernel=kernel,
        exchange=exchange,
    )
