"""The tower contract: pooled features and tokens of any layer, their grid, resampling and projection.

One forward gives both. Layers are the blocks of a transformer; of a convolutional tower the stem and the
stages. Negative indices count from the last one, whose tokens are those before the final norm and the
projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkit.text_towers import TowerOutput, resolve_layers, text_tokens

__all__ = [
    "TowerOutput",
    "image_tokens",
    "project_tokens",
    "resample_tokens",
    "resize_image_size",
    "text_tokens",
]


def image_tokens(model: Any, images: Tensor, layers: Sequence[int] = (-1,)) -> TowerOutput:
    """Pooled image features and the patch tokens of some layers, from one forward.

    Args:
        model: an open_clip model; its `visual` is a VisionTransformer, ModifiedResNet or timm tower.
        images: (B, 3, H, W), normalised.
        layers: all of one grid. A transformer's blocks; a ResNet's stem and stages.

    Returns:
        Tokens (B, h * w, C) in row order, class and register tokens left out.

    Raises:
        ValueError: a layer the tower does not have; layers of different grids; a timm tower without
            intermediate features; patches dropped at random (the grid is gone).
    """
    visual = model.visual
    count = _num_layers(visual)
    wanted = resolve_layers(layers, count)
    dropout = getattr(visual, "patch_dropout", None) or getattr(
        getattr(visual, "trunk", None), "patch_drop", None
    )
    if visual.training and dropout is not None and not isinstance(dropout, nn.Identity):
        raise ValueError("tokens have no grid while patches are dropped: call eval() first")
    # open_clip's ModifiedResNet stops at the last layer asked for, pooled features included.
    indices = sorted({*wanted, count - 1})
    result = visual.forward_intermediates(images, indices=indices, output_fmt="NCHW")
    maps = dict(zip(indices, result["image_intermediates"], strict=True))
    chosen = [maps[layer] for layer in wanted]
    grids = {(int(layer.shape[-2]), int(layer.shape[-1])) for layer in chosen}
    if len(grids) > 1:
        raise ValueError(
            f"layers {tuple(layers)} have different grids {sorted(grids)}: ask for one at a time"
        )
    tokens = tuple(layer.flatten(2).transpose(1, 2) for layer in chosen)
    return TowerOutput(result["image_features"], tokens, grids.pop())


def _num_layers(visual: Any) -> int:
    if hasattr(visual, "transformer"):
        return len(visual.transformer.resblocks)
    if hasattr(visual, "attnpool"):
        return 5
    trunk = getattr(visual, "trunk", None)
    if trunk is None or not hasattr(trunk, "forward_intermediates"):
        raise ValueError(f"no token features: {type(trunk or visual).__name__} has no forward_intermediates")
    return len(trunk.feature_info)


def resample_tokens(tokens: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Tokens on another grid: bilinear, computed in fp32, antialiased where the grid shrinks.

    Args:
        tokens: (B, h * w, C), row by row.
        grid: (h, w).
        new_grid: (h', w').

    Returns:
        (B, h' * w', C) in the dtype of `tokens`.

    Raises:
        ValueError: the tokens do not fill the grid.
    """
    batch, count, width = tokens.shape
    if count != grid[0] * grid[1]:
        raise ValueError(f"{count} tokens do not fill a grid of {grid[0]} x {grid[1]}")
    if tuple(grid) == tuple(new_grid):
        return tokens
    maps = tokens.float().transpose(1, 2).reshape(batch, width, *grid)
    maps = F.interpolate(maps, size=tuple(new_grid), mode="bilinear", align_corners=False, antialias=True)
    return maps.flatten(2).transpose(1, 2).to(tokens.dtype)


def project_tokens(model: Any, tokens: Tensor) -> Tensor:
    """Last-layer image tokens in the joint space, by the map that pooled features go through.

    That map acts on each token alone: final norm, then projection. Where a tower pools with attention, or
    applies something non-linear after averaging, there is no such map.

    Args:
        model: an open_clip model.
        tokens: (B, N, C) of the last layer, as `image_tokens` gives them.

    Returns:
        (B, N, D), not normalised.

    Raises:
        ValueError: this tower has no per-token map into the joint space.
    """
    visual = model.visual
    if hasattr(visual, "transformer"):
        averaged_first = visual.final_ln_after_pool and visual.pool_type != "tok"
        if visual.attn_pool is None and not averaged_first:
            normed: Tensor = visual.ln_post(tokens)
            return normed if visual.proj is None else normed @ visual.proj
    elif hasattr(visual, "trunk"):
        projected = _project_timm(visual, tokens)
        if projected is not None:
            return projected
    raise ValueError(
        f"the {type(visual).__name__} image tower pools with attention or norms after pooling: "
        "its tokens have no projection into the joint space"
    )


def _project_timm(visual: Any, tokens: Tensor) -> Tensor | None:
    """Norm and projection of a timm tower with average or token pooling; None where there is no such map."""
    trunk, head = visual.trunk, visual.head
    pool = getattr(trunk, "global_pool", None)
    pool_type = pool if isinstance(pool, str) else getattr(pool, "pool_type", None)
    linear = [*head.children(), getattr(trunk, "fc_norm", nn.Identity())]
    if not all(isinstance(step, nn.Identity | nn.Dropout | nn.Linear) for step in linear):
        return None
    if pool_type not in ("avg", "token") or getattr(trunk, "attn_pool", None) is not None:
        return None
    known_classifier = trunk.get_classifier()
    if not isinstance(known_classifier, nn.Identity | nn.Linear):
        return None
    if hasattr(trunk, "blocks") and isinstance(getattr(trunk, "norm", None), nn.Module):
        tokens = trunk.norm(tokens)
    elif getattr(trunk, "norm", None) is not None or hasattr(trunk, "head_hidden_size_norm"):
        return None
    projected: Tensor = head(known_classifier(tokens))
    return projected


def resize_image_size(model: Any, image_size: int | Sequence[int]) -> tuple[int, int]:
    """Make the image tower read another size, in place; position embeddings are interpolated (bicubic).

    Args:
        model: an open_clip model.
        image_size: (height, width), or one number for both, in pixels.

    Returns:
        The new (height, width).

    Raises:
        ValueError: the size does not fit the patches, or this tower cannot be resized.
    """
    visual = model.visual
    size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
    if min(size) < 1:
        raise ValueError(f"image_size must be positive, got {size[0]} x {size[1]}")
    if hasattr(visual, "transformer"):
        _resize_vit(visual, size)
    elif hasattr(visual, "attnpool"):
        _resize_modified_resnet(visual, size)
    elif isinstance(getattr(visual.head, "pool", None), nn.Module) and hasattr(visual.head.pool, "pos_embed"):
        raise ValueError("image_size: a timm tower with absolute attention pooling cannot be resized")
    else:
        visual.set_input_size(size)
    return size


def _resize_vit(visual: Any, size: tuple[int, int]) -> None:
    patch = visual.patch_size
    if size[0] % patch[0] or size[1] % patch[1]:
        raise ValueError(
            f"image_size {size[0]} x {size[1]} is no multiple of the patch {patch[0]} x {patch[1]}"
        )
    grid = (size[0] // patch[0], size[1] // patch[1])
    visual.positional_embedding = _resize_table(visual.positional_embedding, visual.grid_size, grid)
    visual.grid_size, visual.image_size = grid, size


def _resize_modified_resnet(visual: Any, size: tuple[int, int]) -> None:
    if size[0] != size[1] or size[0] % 32:
        raise ValueError(
            f"image_size of a ResNet must be square and a multiple of 32, got {size[0]} x {size[1]}"
        )
    old = visual.image_size // 32
    grid = (size[0] // 32, size[0] // 32)
    pool = visual.attnpool
    pool.positional_embedding = _resize_table(pool.positional_embedding, (old, old), grid)
    visual.image_size = size[0]


def _resize_table(table: nn.Parameter, old: tuple[int, int], new: tuple[int, int]) -> nn.Parameter:
    """Interpolate a (1 + h * w, C) position table with open_clip's own function."""
    from open_clip.model import resize_pos_embed

    if old[0] != old[1] and tuple(old) != tuple(new):
        raise ValueError(f"position embeddings of a {old[0]} x {old[1]} grid cannot be resized: not square")
    state = {"visual.positional_embedding": table.detach()}
    with torch.no_grad():
        resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=new)))
    return nn.Parameter(state["visual.positional_embedding"], requires_grad=table.requires_grad)
