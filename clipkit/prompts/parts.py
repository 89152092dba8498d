"""The parts of a tower that prompts attach to, found in open_clip's, timm's and transformers' towers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from clipkit.text_towers import open_clip_text

_LAYER_LISTS = ("layer", "layers", "block", "h")
"""What transformers calls the blocks of an encoder."""


@dataclass(frozen=True)
class TowerParts:
    """A transformer tower: (B, N, width) tokens go through the entry and then the blocks."""

    entry: nn.Module
    """Of a text tower the token embedding, whose output gets the positions; of an image tower the module
    that takes the patches with their positions."""
    blocks: tuple[nn.Module, ...]
    width: int
    owner: nn.Module
    """Holds the blocks."""


def image_parts(model: Any) -> TowerParts:
    """The parts of the image tower of an open_clip model.

    Raises:
        ValueError: it is no plain transformer (a ResNet, a ConvNeXt, a windowed or rotary one).
    """
    visual = model.visual
    if hasattr(visual, "transformer") and hasattr(visual, "ln_pre"):
        stack = visual.transformer
        return TowerParts(visual.ln_pre, _batch_first(stack), visual.conv1.out_channels, stack)
    trunk: Any = getattr(visual, "trunk", None)
    if _is_plain_timm(trunk):
        return TowerParts(trunk.norm_pre, tuple(trunk.blocks), trunk.embed_dim, trunk)
    raise ValueError(
        f"image prompts need a plain vision transformer (open_clip's ViT or timm's VisionTransformer), this "
        f"image tower is a {type(trunk or visual).__name__}: use coop, cocoop, tip-adapter or clip-adapter"
    )


def text_parts(model: Any) -> TowerParts:
    """The parts of the text tower of an open_clip model, its own or one of transformers.

    Raises:
        ValueError: its blocks cannot be found.
    """
    tower = open_clip_text(model)
    if tower is not None:
        embedding = tower.token_embedding
        stack = tower.transformer
        return TowerParts(embedding, _batch_first(stack), embedding.embedding_dim, stack)
    encoder = getattr(model, "text", None)
    transformer = getattr(encoder, "transformer", None)
    if transformer is not None and hasattr(transformer, "get_input_embeddings"):
        stack = getattr(transformer, "encoder", transformer)
        blocks = next((getattr(stack, name) for name in _LAYER_LISTS if hasattr(stack, name)), None)
        embedding = transformer.get_input_embeddings()
        if blocks is not None:
            return TowerParts(embedding, tuple(blocks), embedding.embedding_dim, transformer)
    raise ValueError(
        f"text prompts need a transformer with a list of blocks, this text tower is a "
        f"{type(transformer or encoder).__name__}: use tip-adapter or clip-adapter"
    )


def checked_depth(depth: int, *towers: TowerParts) -> int:
    """A number of prompted blocks that all the towers have.

    Raises:
        ValueError: it is below 1 or above the number of blocks of one.
    """
    most = min(len(tower.blocks) for tower in towers)
    if not 1 <= depth <= most:
        raise ValueError(
            f"depth must be 1 to {most} for the towers of this model, got {depth}: set depth={most}"
        )
    return depth


def _batch_first(transformer: Any) -> tuple[nn.Module, ...]:
    if not getattr(transformer, "batch_first", True):
        raise ValueError("prompts need towers with batch_first=True, which open_clip makes by default")
    blocks: Sequence[nn.Module] = transformer.resblocks
    return tuple(blocks)


def _is_plain_timm(trunk: Any) -> bool:
    """Whether a timm trunk is a VisionTransformer, whose blocks take any number of tokens."""
    from timm.models import VisionTransformer

    return isinstance(trunk, VisionTransformer)
