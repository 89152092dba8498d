"""Where the projections of a transformer tower are: in open_clip's, timm's and transformers' towers.

open_clip keeps query, key and value of a block in one raw parameter (`in_proj_weight`), timm in one linear
layer (`qkv`), transformers in three layers. A projection is therefore some rows of a parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from clipkit.text_towers import open_clip_text

KINDS = ("q", "k", "v", "out", "mlp")
"""Query, key, value, what the heads' results go through, and the two layers of a feed-forward network."""

_FUSED = re.compile(r"(in_proj_weight|qkv\.weight)$")
_ALONE = {
    "q": re.compile(r"\b(q_proj|query|q_lin|q)\.weight$"),
    "k": re.compile(r"\b(k_proj|key|k_lin|k)\.weight$"),
    "v": re.compile(r"\b(v_proj|value|v_lin|v)\.weight$"),
    "out": re.compile(r"(\battn\.proj|\bout_proj|\bout_lin|\bo|attention\.output\.dense)\.weight$"),
    "mlp": re.compile(
        r"(\bmlp\.(c_fc|c_proj|fc1|fc2)|\bintermediate\.dense|(?<!attention\.)\boutput\.dense"
        r"|\bDenseReluDense\.\w+|\bffn\.lin\d)\.weight$"
    ),
}
_POOLERS = ("attn_pool.", "head.")
"""What timm's trunks call attention that is no block."""


@dataclass(frozen=True)
class Projection:
    """Some rows of a weight."""

    weight: str
    """The name of the parameter in the open_clip model."""
    kind: str
    """One of `KINDS`."""
    first_row: int
    num_rows: int
    num_columns: int


def projections(model: Any, tower: str, kinds: Sequence[str]) -> tuple[Projection, ...]:
    """The projections of a tower.

    Args:
        model: an open_clip model.
        tower: "image" or "text".
        kinds: some of `KINDS`.

    Raises:
        ValueError: the tower has none of one of the kinds.
    """
    prefix, blocks = _image_blocks(model) if tower == "image" else _text_blocks(model)
    named = [] if blocks is None else [(name, p) for name, p in blocks.named_parameters() if p.ndim == 2]
    found = [
        place
        for name, weight in named
        if not name.startswith(_POOLERS)
        for place in _places(f"{prefix}{name}", weight.shape[0], weight.shape[1])
        if place.kind in kinds
    ]
    missing = [kind for kind in kinds if kind not in {place.kind for place in found}]
    if missing:
        owner: nn.Module = blocks or (model.visual if tower == "image" else model)
        raise ValueError(
            f"lora finds no projections {', '.join(missing)} in the {tower} tower, a {type(owner).__name__}: "
            f"set towers to {'text' if tower == 'image' else 'image'}, set other targets, or use tip-adapter "
            "or clip-adapter"
        )
    return tuple(found)


def _places(name: str, num_rows: int, num_columns: int) -> Iterator[Projection]:
    """The projections that a weight holds."""
    if _FUSED.search(name):
        size = num_rows // 3
        for number, kind in enumerate("qkv"):
            yield Projection(name, kind, number * size, size, num_columns)
    for kind, pattern in _ALONE.items():
        if pattern.search(name):
            yield Projection(name, kind, 0, num_rows, num_columns)


def _image_blocks(model: Any) -> tuple[str, nn.Module | None]:
    """The module with the blocks of the image tower, and what its parameters' names begin with."""
    for name in ("transformer", "trunk"):
        found = getattr(model.visual, name, None)
        if found is not None:
            return f"visual.{name}.", found
    return "", None


def _text_blocks(model: Any) -> tuple[str, nn.Module | None]:
    owner = open_clip_text(model) or getattr(model, "text", None)
    return ("" if owner is model else "text.") + "transformer.", getattr(owner, "transformer", None)
