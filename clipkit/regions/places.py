"""Places in an image as vectors: sines and cosines, as in DETR (arXiv:2005.12872, section A.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.losses.inputs import at_least_fp32

_TEMPERATURE = 10_000.0


def with_places(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens that say where they are: each normalised, plus the encoding of its centre.

    A tower trained for its pooled features keeps little of the positions of its tokens.

    Args:
        tokens: (B, h * w, C), row by row, C a multiple of 4.
        grid: (h, w).

    Returns:
        (B, h * w, C).
    """
    width = tokens.shape[-1]
    return F.layer_norm(tokens, (width,)) + point_encoding(token_centres(grid, tokens.device), width).to(
        tokens
    )


def token_centres(grid: tuple[int, int], device: torch.device) -> Tensor:
    """(h * w, 2) fp32: x and y of the centres of an h x w grid of tokens, row by row, as fractions."""
    y, x = ((torch.arange(size, device=device) + 0.5) / size for size in grid)
    return torch.cartesian_prod(y, x).flip(-1)


def point_encoding(points: Tensor, width: int) -> Tensor:
    """Sines and cosines of points.

    Args:
        points: (R, 2), x and y as fractions.
        width: C, a multiple of 4.

    Returns:
        (R, C) fp32, or fp64 of fp64: C / 2 numbers of x, then as many of y. Those of a coordinate p are the
        C / 4 sines of 2 pi p r_i with the rates r_i = 10000^(-4i / C), then the cosines.
    """
    rates = torch.exp(torch.arange(width // 4, device=points.device) * (-4 * math.log(_TEMPERATURE) / width))
    angles = 2 * math.pi * at_least_fp32(points)[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
