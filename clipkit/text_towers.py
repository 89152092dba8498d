"""Text towers: features from fewer columns, and token features of any layer.

Captions are padded to the context length. In a causal tower that pools at the end-of-text token, no column
after that token can reach the result, so the columns after the last one of the batch need not be computed.
open_clip's towers add the whole position table and cannot take fewer columns; the short forward below is
theirs with the table and the mask cut to the columns that are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TowerOutput:
    """What one forward of a tower gives.

    `tokens[i]` belongs to the i-th requested layer; neither pooled nor token features are L2-normalised.
    """

    pooled: Tensor
    """(B, D), the embedding in the joint space."""
    tokens: tuple[Tensor, ...]
    """Per requested layer (B, N, C), before the tower's final norm and projection, without class token."""
    grid: tuple[int, int] | None
    """(rows, columns) of the image tokens, row by row; N = rows * columns. None for text."""


def resolve_layers(layers: Sequence[int], count: int) -> list[int]:
    """Layer indices from 0, negative ones counted from the last.

    Raises:
        ValueError: an index outside the tower, or none at all.
    """
    if not layers or any(not -count <= layer < count for layer in layers):
        raise ValueError(f"layers must lie in [{-count}, {count - 1}], got {tuple(layers)}")
    return [layer % count for layer in layers]


def open_clip_text(model: nn.Module) -> Any | None:
    """The module that holds open_clip's own text tower: `model.text`, or `model` itself in class CLIP.

    None where the text tower is a transformers model.
    """
    owner = model if hasattr(model, "token_embedding") else getattr(model, "text", None)
    return owner if hasattr(owner, "token_embedding") else None


def has_text(model: nn.Module) -> bool:
    """Whether the model has a text tower at all."""
    return hasattr(model, "token_embedding") or hasattr(model, "text")


def needed_columns(model: nn.Module, text: Tensor) -> int:
    """How many leading columns of `text` decide its features; all of them unless the tower is causal.

    Reads values of `text`, so on an accelerator it waits for the device.

    Args:
        model: an open_clip model with a text tower.
        text: (B, L) int64 token ids.
    """
    return int(needed_lengths(model, text).max()) if text.numel() else text.shape[1]


def needed_lengths(model: nn.Module, text: Tensor) -> Tensor:
    """How many leading columns of each text decide its features; all of them unless the tower is causal.

    Args:
        model: an open_clip model with a text tower.
        text: (B, L) int64 token ids.

    Returns:
        (B,) int64.
    """
    tower = open_clip_text(model)
    pool_type = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    causal = getattr(tower, "attn_mask", None) is not None and getattr(tower, "cls_emb", None) is None
    if not causal or pool_type not in ("argmax", "eos"):
        return torch.full_like(text[:, 0], text.shape[1])
    marks = text if pool_type == "argmax" else text.eq(_eos_id(tower) or 0).int()
    return marks.argmax(dim=-1) + 1


def encode_text(model: Any, text: Tensor) -> Tensor:
    """Text features, not normalised. `text` (B, L) may have fewer columns than the context length.

    Raises:
        ValueError: more columns than the tower has positions.
    """
    tower = open_clip_text(model)
    if tower is not None and text.shape[1] > tower.context_length:
        raise ValueError(f"the text has {text.shape[1]} columns, the model reads {tower.context_length}")
    if tower is None or text.shape[1] == tower.context_length or getattr(tower, "cls_emb", None) is not None:
        features: Tensor = model.encode_text(text, normalize=False)
        return features
    hidden, mask = _embed(tower, text)
    return _project(tower, tower.transformer(hidden, attn_mask=mask), text)


def text_tokens(model: Any, text: Tensor, layers: Sequence[int] = (-1,)) -> TowerOutput:
    """Pooled text features and the token features of some layers, from one forward.

    Args:
        model: an open_clip model with a text tower (its own, or a transformers encoder).
        text: (B, L) int64 token ids.
        layers: layer indices; negative ones count from the last block.

    Returns:
        Tokens (B, L, width) of every layer as the block leaves them, before the final norm.

    Raises:
        ValueError: a layer that the tower does not have.
    """
    tower = open_clip_text(model)
    if tower is None:
        return _hf_text_tokens(model.text, text, layers)
    wanted = resolve_layers(layers, len(tower.transformer.resblocks))
    if getattr(tower, "cls_emb", None) is not None:
        result = tower.forward_intermediates(text, indices=sorted(set(wanted)), output_fmt="NLC")
        pooled, found = result["text_features"], result["text_intermediates"]
    else:
        hidden, mask = _embed(tower, text)
        hidden, found = tower.transformer.forward_intermediates(
            hidden, attn_mask=mask, indices=sorted(set(wanted))
        )
        pooled = _project(tower, hidden, text)
    by_layer = dict(zip(sorted(set(wanted)), found, strict=True))
    return TowerOutput(pooled, tuple(by_layer[layer] for layer in wanted), None)


def _embed(tower: Any, text: Tensor) -> tuple[Tensor, Tensor | None]:
    """Token plus position embeddings (B, L, width), and the causal mask (L, L) if the tower has one."""
    columns = text.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    hidden = tower.token_embedding(text).to(dtype) + tower.positional_embedding[:columns].to(dtype)
    mask = tower.attn_mask
    return hidden, None if mask is None else mask[:columns, :columns]


def _project(tower: Any, hidden: Tensor, text: Tensor) -> Tensor:
    """Final norm, pooling and projection: (B, L, width) -> (B, D)."""
    from open_clip.transformer import text_global_pool

    pool_type = getattr(tower, "text_pool_type", None) or tower.pool_type
    pooled: Tensor = text_global_pool(tower.ln_final(hidden), text, pool_type, eos_token_id=_eos_id(tower))
    return project_pooled(tower, pooled)


def project_pooled(tower: Any, pooled: Tensor) -> Tensor:
    """Pooled text features after the final norm (B, width) -> (B, D) in the joint space."""
    if tower.text_projection is None:
        return pooled
    if isinstance(tower.text_projection, nn.Linear):
        projected: Tensor = tower.text_projection(pooled)
        return projected
    projection: Tensor = tower.text_projection
    return pooled @ projection


def _eos_id(tower: Any) -> int | None:
    eos_id: int | None = getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))
    return eos_id


def _hf_text_tokens(tower: Any, text: Tensor, layers: Sequence[int]) -> TowerOutput:
    """The same of open_clip's `HFTextEncoder`, whose layers transformers returns after the embeddings."""
    mask = (text != tower.config.pad_token_id).long()
    output = tower.transformer(input_ids=text, attention_mask=mask, output_hidden_states=True)
    blocks = output.hidden_states[1:]
    wanted = resolve_layers(layers, len(blocks))
    pooled = tower.proj(tower.pooler(output, mask))
    return TowerOutput(pooled, tuple(blocks[layer] for layer in wanted), None)


def resize_context(model: nn.Module, context_length: int) -> None:
    """Give an open_clip text tower another number of positions, in place, by linear interpolation.

    Raises:
        ValueError: the tower cannot be resized (a class token at the end, or a transformers encoder).
    """
    from open_clip.model import resize_text_pos_embed

    tower = open_clip_text(model)
    if tower is None or getattr(tower, "cls_emb", None) is not None:
        raise ValueError("context_length: the position embeddings of this text tower cannot be resized")
    if context_length < 2:
        raise ValueError(f"context_length must be at least 2, got {context_length}")
    old: nn.Parameter = tower.positional_embedding
    state = {"positional_embedding": old.detach()}
    target = nn.Module()
    target.positional_embedding = nn.Parameter(old.new_empty(context_length, old.shape[1]))
    resize_text_pos_embed(state, target)
    tower.positional_embedding = nn.Parameter(state["positional_embedding"], requires_grad=old.requires_grad)
    tower.context_length = context_length
    if hasattr(tower, "num_pos"):
        tower.num_pos = context_length
    if tower.attn_mask is not None:
        ones = torch.full((context_length, context_length), float("-inf"), device=old.device)
        tower.attn_mask = ones.triu_(1)
