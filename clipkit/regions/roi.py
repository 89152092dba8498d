"""RoIAlign on the tokens of an image tower: the control of region heads, which learns a projection alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkit.losses.inputs import at_least_fp32
from clipkit.losses.region import MAX_TEXT_SIMILARITY, region_loss
from clipkit.regions.base import WITH_ALL_RANKS, Contrast, RegionBatch, RegionHead, check_settings

_SAMPLES = 2
"""Samples of a bin in each direction."""


@dataclass(frozen=True, kw_only=True)
class RoIAlignConfig:
    """Settings of the control."""

    num_bins: int = 3
    """Of a box, in each direction."""
    max_text_similarity: float = MAX_TEXT_SIMILARITY
    """Cosine above which two phrases are no negatives of each other; 1 for no such filter."""

    def __post_init__(self) -> None:
        check_settings(self, fractions=("max_text_similarity",))


class RoIAlign(RegionHead):
    """Tokens sampled in a box (Mask R-CNN, arXiv:1703.06870), their mean, a norm and a projection.

    It is the row "Prompter -> RoI pooling" in the ablations of CLOC (arXiv:2410.02746, Table 3).
    """

    kind: ClassVar[str] = "roi-align"
    Config: ClassVar[type] = RoIAlignConfig

    def __init__(self, width: int, embed_dim: int, config: RoIAlignConfig | None = None) -> None:
        """Make a head with random weights.

        Args:
            width: C of the tower's tokens.
            embed_dim: D of the joint space.
            config: its settings.
        """
        super().__init__()
        self.config = config or RoIAlignConfig()
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, tokens: Tensor, grid: tuple[int, int], regions: RegionBatch) -> dict[str, Tensor]:
        """`region_features` (R, D), see `RegionHead`."""
        return {"region_features": self.encode_regions(tokens, grid, regions.boxes, regions.box_index)}

    def losses(
        self,
        rows: Mapping[str, Tensor],
        regions: RegionBatch,
        logit_scale: Tensor,
        contrast: Contrast = WITH_ALL_RANKS,
    ) -> dict[str, Tensor]:
        """`region_text`, see `RegionHead`."""
        loss = region_loss(
            rows["region_features"],
            at_least_fp32(regions.phrase_features),
            logit_scale,
            max_text_similarity=self.config.max_text_similarity,
            group=contrast.group,
            kernel=contrast.kernel,
            exchange=contrast.exchange,
        )
        return {"region_text": loss}

    def encode_regions(
        self, tokens: Tensor, grid: tuple[int, int], boxes: Tensor, box_index: Tensor
    ) -> Tensor:
        """See `RegionHead`."""
        pooled = pool_boxes(tokens, grid, boxes, box_index, num_bins=self.config.num_bins)
        return F.normalize(at_least_fp32(self.projection(self.norm(pooled))), dim=-1)

    def ground(self, tokens: Tensor, grid: tuple[int, int], phrase_features: Tensor, index: Tensor) -> Tensor:
        """Refused: pooling a given box says nothing of where a phrase is."""
        raise ValueError("a roi-align head cannot ground phrases: train a prompter or a query decoder")


def pool_boxes(
    tokens: Tensor, grid: tuple[int, int], boxes: Tensor, box_index: Tensor, *, num_bins: int = 3
) -> Tensor:
    """Mean of the tokens in boxes: (R, C), bilinear samples at `num_bins` x `num_bins` bins of each box.

    Args:
        tokens: (B, N, C), row by row of a grid.
        grid: (rows, columns).
        boxes: (R, 4) xyxy fractions.
        box_index: (R,) int64 in [0, B).
        num_bins: in each direction.
    """
    from torchvision.ops import roi_align

    rows, columns = grid
    maps = at_least_fp32(tokens).transpose(1, 2).reshape(len(tokens), -1, rows, columns)
    scaled = boxes.to(maps) * maps.new_tensor([columns, rows, columns, rows])
    rois = torch.cat([box_index[:, None].to(scaled), scaled], dim=1)
    pooled: Tensor = roi_align(maps, rois, num_bins, sampling_ratio=_SAMPLES, aligned=True)
    return pooled.mean(dim=(2, 3))
