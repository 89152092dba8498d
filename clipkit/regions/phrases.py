"""Phrases of regions on their way through the text tower: each distinct one once, and without padding.

Many regions of a batch are called the same, and phrases are shorter than captions. Where the tower allows it
they stand one after the other in few rows, behind one start token, and a mask keeps each from seeing the
others (`clipkit.packed_texts`), which changes no feature.
"""

from __future__ import annotations

import dataclasses
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
class Phrases:
    """The distinct phrases of some regions, as the text tower takes them."""

    texts: Tensor | Packed
    """(T, L) int64, or the same packed."""
    row: Tensor
    """(R,) int64: which row of the features of `texts` belongs to each region."""

    def to(self, device: torch.device) -> Phrases:
        """The same on another device."""
        if isinstance(self.texts, Tensor):
            texts: Tensor | Packed = self.texts.to(device, non_blocking=True)
        else:
            parts = {field.name: getattr(self.texts, field.name) for field in dataclasses.fields(Packed)}
            texts = Packed(**{name: part.to(device, non_blocking=True) for name, part in parts.items()})
        return Phrases(texts, self.row.to(device, non_blocking=True))


def prepare_phrases(model: nn.Module, region_text: Tensor) -> Phrases:
    """Find the distinct phrases and lay them out.

    Args:
        model: an open_clip model with a text tower.
        region_text: (R, L) int64 on the CPU; R may be 0.
    """
    distinct, row = torch.unique(region_text, dim=0, return_inverse=True)
    if not len(distinct) or not can_pack(model):
        return Phrases(distinct[:, : needed_columns(model, distinct)], row)
    lengths = needed_lengths(model, distinct).numpy()
    packed = pack(_fill_rows(distinct.numpy(), lengths), distinct.numpy(), lengths)
    return Phrases(packed, packed.texts.argsort()[row])


def encode_phrases(model: DualEncoder, phrases: Phrases) -> Tensor:
    """Features of the phrase of each region: (R, D), L2-normalised."""
    # Not by `model.encode_text`: FSDP counts calls of it, and a rank without regions must make the same ones.
    if isinstance(phrases.texts, Tensor):
        features = encode_text(model.model, phrases.texts.to(model.logit_scale.device))
    else:
        features = encode_packed(model.model, phrases.texts)
    return F.normalize(features, dim=-1)[phrases.row]


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
