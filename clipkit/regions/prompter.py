"""The Prompter of CLOC: one light transformer layer that turns tokens and a prompt into features of a region.

A prompt is a box or a phrase (arXiv:2410.02746, section 3.2). No code was published; where the paper is
silent, this is our choice: corners are encoded as in DETR (arXiv:2005.12872, section A.4) and projected each
by a layer of its own, the layer normalises its inputs, and its outputs are normalised before they are pooled.

Two choices differ from the paper, and can be undone. It takes the mean of all outputs, of which a prompt is
one in fifty or more; here only the outputs of prompts count, and only they are computed. And it leaves it to
the tower to tell where a token is; here tokens have the same encoding of their place as corners. Trained for
a short while, a Prompter without these hears next to nothing of its prompts, see `benchmarks/results`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkit.losses.grounding import corner_loss
from clipkit.losses.inputs import at_least_fp32
from clipkit.losses.region import MAX_TEXT_SIMILARITY, region_loss
from clipkit.regions.base import WITH_ALL_RANKS, Contrast, RegionBatch, RegionHead, check_settings
from clipkit.regions.places import point_encoding, with_places


@dataclass(frozen=True, kw_only=True)
class PrompterConfig:
    """Settings of the Prompter."""

    num_heads: int = 1
    """Attention heads of the layer."""
    mlp_ratio: float = 4.0
    """Width of the layer's perceptron over that of the tower."""
    max_text_similarity: float = MAX_TEXT_SIMILARITY
    """Cosine above which two phrases are no negatives of each other; 1 for no such filter."""
    with_grounding: bool = True
    """Whether it also learns where phrases are; else it refuses to ground."""
    pools_prompts: bool = True
    """Take the mean of the outputs of the prompts; else, as published, of prompts and tokens."""
    places_tokens: bool = True
    """Give tokens, normalised, the encoding of their centre; else, as published, none."""

    def __post_init__(self) -> None:
        check_settings(self, fractions=("max_text_similarity",))


class Prompter(RegionHead):
    """Prompts before the tokens, one layer, the mean of outputs, a projection."""

    kind: ClassVar[str] = "prompter"
    Config: ClassVar[type] = PrompterConfig

    def __init__(self, width: int, embed_dim: int, config: PrompterConfig | None = None) -> None:
        """Make a Prompter with random weights.

        Args:
            width: C of the tower's tokens, a multiple of 4.
            embed_dim: D of the joint space.
            config: its settings.
        """
        super().__init__()
        if width % 4:
            raise ValueError(f"a Prompter needs a tower whose width is a multiple of 4, got {width}")
        self.config = config or PrompterConfig()
        mlp_width = self.config.mlp_ratio * width
        if not 1 <= mlp_width < 2**31:
            raise ValueError(
                f"mlp_ratio must make 1 to 2**31 units of a width of {width}, got {self.config.mlp_ratio:g}"
            )
        self.width = width
        self.corners = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.layer = PromptedLayer(
            width,
            self.config.num_heads,
            int(mlp_width),
            prompts_only=self.config.pools_prompts,
        )
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        if self.config.with_grounding:
            self.phrase = nn.Linear(embed_dim, width)
            self.box = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4))

    def forward(self, tokens: Tensor, grid: tuple[int, int], regions: RegionBatch) -> dict[str, Tensor]:
        """`region_features` (R, D) and, with grounding, `grounded_boxes` (R, 4); see `RegionHead`."""
        read = self._read(tokens, grid)
        rows = {"region_features": self._encode(read, regions.boxes, regions.box_index)}
        if self.config.with_grounding:
            rows["grounded_boxes"] = self._predict(read, regions.phrase_features, regions.box_index)
        return rows

    def losses(
        self,
        rows: Mapping[str, Tensor],
        regions: RegionBatch,
        logit_scale: Tensor,
        contrast: Contrast = WITH_ALL_RANKS,
    ) -> dict[str, Tensor]:
        """`region_text` and, with grounding, `grounding`; see `RegionHead`."""
        found = {
            "region_text": region_loss(
                rows["region_features"],
                at_least_fp32(regions.phrase_features),
                logit_scale,
                max_text_similarity=self.config.max_text_similarity,
                group=contrast.group,
                kernel=contrast.kernel,
                exchange=contrast.exchange,
            )
        }
        if self.config.with_grounding:
            found["grounding"] = corner_loss(rows["grounded_boxes"], regions.boxes, group=contrast.group)
        return found

    def encode_regions(
        self, tokens: Tensor, grid: tuple[int, int], boxes: Tensor, box_index: Tensor
    ) -> Tensor:
        """See `RegionHead`."""
        return self._encode(self._read(tokens, grid), boxes, box_index)

    def ground(self, tokens: Tensor, grid: tuple[int, int], phrase_features: Tensor, index: Tensor) -> Tensor:
        """See `RegionHead`."""
        if not self.config.with_grounding:
            raise ValueError("this prompter was trained without grounding: train one with_grounding")
        boxes = self._predict(self._read(tokens, grid), phrase_features, index).clamp(0, 1)
        first, second = boxes[:, :2], boxes[:, 2:]
        # Corners that come out in the wrong order still span a box.
        return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=-1)

    def _read(self, tokens: Tensor, grid: tuple[int, int]) -> ReadTokens:
        if self.config.places_tokens:
            tokens = with_places(tokens, grid)
        return self.layer.read(tokens)

    def _encode(self, read: ReadTokens, boxes: Tensor, index: Tensor) -> Tensor:
        corners = zip(self.corners, (boxes[:, :2], boxes[:, 2:]), strict=True)
        prompts = [project(point_encoding(corner, self.width).to(read.tokens)) for project, corner in corners]
        pooled = self._pool(read, torch.stack(prompts, dim=1), index)
        return F.normalize(at_least_fp32(self.projection(pooled)), dim=-1)

    def _predict(self, read: ReadTokens, phrase_features: Tensor, index: Tensor) -> Tensor:
        prompts = self.phrase(phrase_features.to(read.tokens))[:, None]
        predicted: Tensor = self.box(self._pool(read, prompts, index))
        return at_least_fp32(predicted)

    def _pool(self, read: ReadTokens, prompts: Tensor, index: Tensor) -> Tensor:
        """Tokens of B images and (R, P, C) prompts for images `index` -> (R, C)."""
        pooled: Tensor = self.norm(self.layer.answer(read, prompts, index)).mean(dim=1)
        return pooled


@dataclass(frozen=True)
class ReadTokens:
    """What a `PromptedLayer` computes of tokens once, whatever they are asked."""

    tokens: Tensor
    """(B, N, C)."""
    qkv: Tensor
    """(B, N, 3C): queries, keys and values."""


class PromptedLayer(nn.Module):
    """A pre-norm transformer layer over prompts and the tokens of an image.

    Several prompts of one image see the same tokens, whose norms, queries, keys and values are computed once.
    Where all outputs are wanted and there is one head, so is the projection of what attention gives: a
    weighted sum of values and then a matrix is the same as the matrix first.

    Args:
        width: C.
        num_heads: of the attention.
        mlp_width: of the perceptron.
        prompts_only: compute the outputs of prompts alone.
    """

    def __init__(self, width: int, num_heads: int, mlp_width: int, *, prompts_only: bool = False) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is no multiple of {num_heads} heads")
        self.num_heads, self.prompts_only = num_heads, prompts_only
        self.projects_values = num_heads == 1 and not prompts_only
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_width), nn.GELU(), nn.Linear(mlp_width, width))

    def forward(self, tokens: Tensor, prompts: Tensor, index: Tensor) -> Tensor:
        """(B, N, C), (R, P, C) and (R,) int64 in [0, B) -> (R, P + N, C), prompts first, or (R, P, C)."""
        return self.answer(self.read(tokens), prompts, index)

    def read(self, tokens: Tensor) -> ReadTokens:
        """(B, N, C), for any number of `answer`."""
        return ReadTokens(tokens, self._qkv(tokens))

    def answer(self, read: ReadTokens, prompts: Tensor, index: Tensor) -> Tensor:
        """See `forward`."""
        hidden = prompts if self.prompts_only else torch.cat([prompts, read.tokens[index]], dim=1)
        of_prompts = self._qkv(prompts)
        width = prompts.shape[-1]
        # Queries of tokens are not copied where nothing is asked for them.
        keys_and_values = torch.cat([of_prompts[..., width:], read.qkv[..., width:][index]], dim=1)
        queries = of_prompts[..., :width]
        if not self.prompts_only:
            queries = torch.cat([queries, read.qkv[..., :width][index]], dim=1)
        q, k, v = (self._heads(part) for part in (queries, *torch.split(keys_and_values, width, dim=-1)))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        hidden = hidden + (attended + self.out.bias if self.projects_values else self.out(attended))
        result: Tensor = hidden + self.mlp(self.norm_2(hidden))
        return result

    def _heads(self, rows: Tensor) -> Tensor:
        """(R, L, C) -> (R, heads, L, C / heads)."""
        num_rows, length, width = rows.shape
        return rows.reshape(num_rows, length, self.num_heads, width // self.num_heads).transpose(1, 2)

    def _qkv(self, rows: Tensor) -> Tensor:
        qkv: Tensor = self.qkv(self.norm_1(rows))
        if not self.projects_values:
            return qkv
        queries_and_keys, values = torch.split(qkv, [2 * rows.shape[-1], rows.shape[-1]], dim=-1)
        return torch.cat([queries_and_keys, F.linear(values, self.out.weight)], dim=-1)
