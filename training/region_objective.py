"""The losses of a run with regions: those of images and captions, and those of the region head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipkit.distributed import all_reduce_mean
from clipkit.regions.base import Contrast, RegionBatch, RegionHead

from .objective import Objective

IN_NATS = ("clip", "region_text", "image_query")
"""The losses that have this unit; the others are of fractions of the image."""


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """Named losses of this rank, and what each counts."""

    losses: dict[str, Tensor]
    """Scalars."""
    weights: dict[str, Tensor | float]
    """Of all losses but the first, which counts 1."""
    figures: dict[str, Tensor]
    """What else is worth logging of this rank's batch; scalars."""

    def total(self) -> Tensor:
        """The weighted sum."""
        first, *others = self.losses
        total = self.losses[first]
        for name in others:
            total = total + self.weights[name] * self.losses[name]
        return total


@dataclass(frozen=True, kw_only=True)
class RegionObjective:
    """L_CLIP + share * sum of the weighted region losses (CLOC, arXiv:2410.02746, section 3.1).

    `share` is that of the images with regions among all images whose pairs the loss is taken over, so that
    batches without regions are harmless. The image query of GRAIN (arXiv:2412.04429) is contrasted with the
    captions of all images, and so has no such share.
    """

    contrastive: Objective
    """Of images and captions; its settings have the weights."""

    def __call__(
        self, features: Mapping[str, Tensor], batch: Mapping[str, Any], head: RegionHead
    ) -> LossTerms:
        """The losses of this rank, whose means over ranks are those of all. Collective.

        Args:
            features: what `DualEncoder.forward` gives with regions.
            batch: `text` (b, L), `boxes` (R, 4) and `box_index` (R,).
            head: of the model.
        """
        device, group = features["image_features"].device, self.contrastive.group
        boxes, box_index = (batch[name].to(device, non_blocking=True) for name in ("boxes", "box_index"))
        losses = {"clip": self.contrastive(features, batch["text"])}
        regions = RegionBatch(boxes=boxes, box_index=box_index, phrase_features=features["phrase_features"])
        how = self.contrastive.config
        contrast = Contrast(group=group, kernel=how.kernel, exchange=how.exchange)
        losses |= head.losses(features, regions, features["logit_scale"], contrast)
        share = all_reduce_mean(_share_with_regions(batch).to(device), group)
        weights: dict[str, Tensor | float] = {
            name: share * how.weight(name) for name in losses if name != "clip"
        }
        if "query_image_features" in features:
            # Of the decoder in fp32, whatever the precision of the towers.
            by_query = {
                **features,
                "image_features": features["query_image_features"],
                "text_features": features["text_features"].float(),
            }
            losses["image_query"] = self.contrastive(by_query, batch["text"])
            weights["image_query"] = how.weight("image_query")
        per_image = torch.tensor(len(boxes) / len(batch["text"]), device=device)
        return LossTerms(losses=losses, weights=weights, figures={"regions_per_image": per_image})


def _share_with_regions(batch: Mapping[str, Any]) -> Tensor:
    """Images with regions over all images of this rank."""
    return torch.tensor(len(torch.unique(batch["box_index"])) / len(batch["text"]))
