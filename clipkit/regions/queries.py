"""The query decoder of GRAIN: a few queries that find regions by themselves, and one for the whole image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkit.losses.grounding import as_corners, box_loss, match, paired_giou
from clipkit.losses.inputs import at_least_fp32
from clipkit.losses.region import MAX_TEXT_SIMILARITY, region_loss
from clipkit.regions.base import WITH_ALL_RANKS, Contrast, RegionBatch, RegionHead, check_settings
from clipkit.regions.places import with_places


@dataclass(frozen=True, kw_only=True)
class QueryDecoderConfig:
    """Settings of the query decoder; the other defaults are GRAIN's (arXiv:2412.04429, and its code)."""

    num_queries: int = 5
    """Regions that an image can have; one more query is for the image."""
    num_layers: int = 6
    num_heads: int = 8
    mlp_width: int = 2048
    dropout: float = 0.1
    places_tokens: bool = True
    """Give tokens, normalised, the encoding of their centre; else, as published, none."""
    max_text_similarity: float = MAX_TEXT_SIMILARITY
    """Cosine above which two phrases are no negatives of each other; 1, as published, for no such filter."""
    is_local: bool = False
    """Contrast regions with all texts of this rank alone and in one direction, as the published code does,
    instead of with those of all ranks in both."""

    def __post_init__(self) -> None:
        check_settings(self, fractions=("dropout", "max_text_similarity"))


@dataclass(frozen=True)
class FoundRegions:
    """What the queries of each image found."""

    features: Tensor
    """(B, Q, D) fp32, L2-normalised."""
    boxes: Tensor
    """(B, Q, 4) xyxy fractions."""
    image_features: Tensor
    """(B, D) fp32, L2-normalised: the image query's."""


class QueryDecoder(RegionHead):
    """Pre-norm decoder layers over the tokens; heads for boxes, regions and the image."""

    kind: ClassVar[str] = "query-decoder"
    Config: ClassVar[type] = QueryDecoderConfig

    def __init__(self, width: int, embed_dim: int, config: QueryDecoderConfig | None = None) -> None:
        """Make a decoder with random weights.

        Args:
            width: C of the tower's tokens, with `places_tokens` a multiple of 4.
            embed_dim: D of the joint space, and the decoder's width.
            config: its settings.
        """
        super().__init__()
        self.config = config = config or QueryDecoderConfig()
        if config.places_tokens and width % 4:
            raise ValueError(
                f"a query decoder needs a tower whose width is a multiple of 4, got {width}; "
                "or take places_tokens=False"
            )
        self.memory = nn.Linear(width, embed_dim, bias=False)
        self.queries = nn.Parameter(torch.randn(config.num_queries + 1, embed_dim))
        self.layers = nn.ModuleList(
            DecoderLayer(embed_dim, config.num_heads, config.mlp_width, config.dropout)
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.box = nn.Sequential(
            nn.Linear(embed_dim, embed_dim),
            nn.ReLU(),
            nn.Linear(embed_dim, embed_dim),
            nn.ReLU(),
            nn.Linear(embed_dim, 4),
        )
        self.region_projection = nn.Parameter(torch.randn(embed_dim, embed_dim) * embed_dim**-0.5)
        self.image_projection = nn.Parameter(torch.randn(embed_dim, embed_dim) * embed_dim**-0.5)

    def find(self, tokens: Tensor, grid: tuple[int, int]) -> FoundRegions:
        """(B, h * w, C) tokens of an h x w grid -> the regions of each image and its own features."""
        memory = self.memory(with_places(tokens, grid) if self.config.places_tokens else tokens)
        places = self.queries.to(memory).expand(len(tokens), -1, -1)
        hidden = torch.zeros_like(places)
        for layer in self.layers:
            hidden = layer(hidden, places, memory)
        hidden = self.norm(hidden)
        regions, image = hidden[:, :-1], hidden[:, -1]
        return FoundRegions(
            features=F.normalize(at_least_fp32(regions @ self.region_projection.to(regions)), dim=-1),
            boxes=as_corners(at_least_fp32(self.box(regions)).sigmoid()),
            image_features=F.normalize(at_least_fp32(image @ self.image_projection.to(image)), dim=-1),
        )

    def forward(self, tokens: Tensor, grid: tuple[int, int], regions: RegionBatch) -> dict[str, Tensor]:
        """`query_features` (B, Q, D), `query_boxes` (B, Q, 4), `query_image_features` (B, D), of every image.

        The last are the image query's, to be contrasted with captions. See `RegionHead`.
        """
        found = self.find(tokens, grid)
        return {
            "query_features": found.features,
            "query_boxes": found.boxes,
            "query_image_features": found.image_features,
        }

    def losses(
        self,
        rows: Mapping[str, Tensor],
        regions: RegionBatch,
        logit_scale: Tensor,
        contrast: Contrast = WITH_ALL_RANKS,
    ) -> dict[str, Tensor]:
        """`box` and `region_text` of the matched queries, see `RegionHead`."""
        boxes = rows["query_boxes"]
        pairs = match(boxes, regions.boxes, regions.box_index)
        texts = at_least_fp32(regions.phrase_features[pairs.box])
        features = rows["query_features"][pairs.image, pairs.query]
        return {
            "box": box_loss(boxes[pairs.image, pairs.query], regions.boxes[pairs.box], group=contrast.group),
            "region_text": self._region_loss(features, texts, logit_scale, contrast),
        }

    def _region_loss(
        self, features: Tensor, texts: Tensor, logit_scale: Tensor, contrast: Contrast
    ) -> Tensor:
        if not self.config.is_local:
            return region_loss(
                features,
                texts,
                logit_scale,
                max_text_similarity=self.config.max_text_similarity,
                group=contrast.group,
                kernel=contrast.kernel,
                exchange=contrast.exchange,
            )
        logits = logit_scale * features @ texts.T
        total = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="sum")
        return total / max(1, len(logits))

    def encode_regions(
        self, tokens: Tensor, grid: tuple[int, int], boxes: Tensor, box_index: Tensor
    ) -> Tensor:
        """Features of the queries whose boxes are nearest to the given ones by GIoU, see `RegionHead`."""
        found = self.find(tokens, grid)
        own = found.boxes[box_index]
        nearness = paired_giou(own, boxes.to(own)[:, None].expand_as(own))
        return found.features[box_index, nearness.argmax(dim=1)]

    def ground(self, tokens: Tensor, grid: tuple[int, int], phrase_features: Tensor, index: Tensor) -> Tensor:
        """The boxes of the queries whose features fit the phrases best, see `RegionHead`."""
        found = self.find(tokens, grid)
        fits = torch.einsum("pqd,pd->pq", found.features[index], at_least_fp32(phrase_features))
        return found.boxes[index, fits.argmax(dim=1)].clamp(0, 1)


class DecoderLayer(nn.Module):
    """Self-attention of queries, cross-attention to the memory, a perceptron; each normalised before.

    Queries have places, which are added for attention; to the memory nothing is added (as in GRAIN's code).
    """

    def __init__(self, width: int, num_heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(width, num_heads, dropout=dropout, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(width, num_heads, dropout=dropout, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(mlp_width, width)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, places: Tensor, memory: Tensor) -> Tensor:
        """(B, Q, D) queries, (B, Q, D) their places and (B, N, D) memory -> (B, Q, D)."""
        first, second, third = self.norms
        normed = first(hidden)
        queries = normed + places
        hidden = hidden + self.dropout(self.self_attention(queries, queries, normed, need_weights=False)[0])
        queries = second(hidden) + places
        hidden = hidden + self.dropout(self.cross_attention(queries, memory, memory, need_weights=False)[0])
        result: Tensor = hidden + self.dropout(self.mlp(third(hidden)))
        return result
