"""Captions and phrases of regions on their way through the text tower: each once, and without padding.

Many regions of a batch are called the same, and phrases are shorter than captions. Where the tower allows it
captions and distinct phrases stand one after the other in few rows, behind one start token, and a mask keeps
each from seeing the others (`clipkit.packed_texts`), which changes no feature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkit.packed_texts import Packed, Row, can_pack, encode_packed, pack
from clipkit.text_towers import encode_text, needed_columns, needed_lengths

if TYPE_CHECKING:
    from clipkit.dual_encoder import DualEncoder

_ROW_TOKENS = 64
"""About as many tokens has a row; more would cost more in attention than they save in padding."""


@dataclass(frozen=True)
class RegionTexts:
    """Captions and phrases of a batch, as the text tower takes them."""

    parts: tuple[Tensor | Packed, ...]
    """All of them packed, or captions and distinct phrases, (T, L) int64 each."""
    caption_row: Tensor
    """(B,) int64: which row of the features of all parts belongs to each image."""
    phrase_row: Tensor
    """(R,) int64: the same of each region."""

    def to(self, device: torch.device) -> RegionTexts:
        """The same on another device."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        parts = tuple(
            moved(part) if isinstance(part, Tensor) else Packed(**_moved_fields(part, moved))
            for part in self.parts
        )
        return RegionTexts(parts, moved(self.caption_row), moved(self.phrase_row))


def _moved_fields(packed: Packed, moved: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {field.name: moved(getattr(packed, field.name)) for field in dataclasses.fields(packed)}


def prepare_texts(model: nn.Module, text: Tensor, region_text: Tensor) -> RegionTexts:
    """Find the distinct phrases and lay them out with the captions.

    Args:
        model: an open_clip model with a text tower.
        text: (B, L) int64 on the CPU, the captions.
        region_text: (R, L) int64 on the CPU, the phrases; R may be 0.
    """
    distinct, row = torch.unique(region_text, dim=0, return_inverse=True)
    if not can_pack(model):
        captions, phrases = (tokens[:, : needed_columns(model, tokens)] for tokens in (text, distinct))
        return RegionTexts((captions, phrases), torch.arange(len(text)), len(text) + row)
    tokens = torch.cat([text, distinct])
    lengths = needed_lengths(model, tokens).numpy()
    packed = pack(_fill_rows(tokens.numpy(), lengths), tokens.numpy(), lengths)
    place = packed.texts.argsort()
    return RegionTexts((packed,), place[: len(text)], place[len(text) :][row])


def encode_texts(model: DualEncoder, texts: RegionTexts) -> tuple[Tensor, Tensor]:
    """Features of the captions (B, D) and of the phrase of each region (R, D), L2-normalised."""
    device = model.logit_scale.device
    # Not by `model.encode_text`, whose calls FSDP orders its collectives by.
    features = [
        encode_text(model.model, part.to(device))
        if isinstance(part, Tensor)
        else encode_packed(model.model, part)
        for part in texts.parts
    ]
    normed = F.normalize(torch.cat(features), dim=-1)
    return normed[texts.caption_row], normed[texts.phrase_row]


def _fill_rows(tokens: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> list[Row]:
    """Texts in rows of like length, which share no more than their first token.

    Each text, the longest first, goes to the row that has the fewest tokens yet.
    """
    prefix = int((tokens[:, 0] == tokens[0, 0]).all())
    own = lengths - prefix
    texts: list[list[int]] = [[] for _ in range(max(1, round(int(own.sum()) / _ROW_TOKENS)))]
    totals = np.full(len(texts), prefix)
    for text in np.argsort(-own, kind="stable").tolist():
        shortest = int(totals.argmin())
        texts[shortest].append(text)
        totals[shortest] += own[text]
    return [Row(tuple(row), prefix, int(total)) for row, total in zip(texts, totals, strict=True) if row]
