"""What a contrastive loss costs on one rank, before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clipkit.exchange import ExchangeName
from clipkit.losses.kernels import TILE_SIZES, ResolvedKernel
from clipkit.losses.kernels.tiles import CAST_ELEMENTS

Objective = Literal["softmax", "sigmoid"]

_DENSE_COPIES = {"softmax": 5, "sigmoid": 8}
"""Matrices of the size of all logits that autograd has at its worst moment."""


@dataclass(frozen=True, kw_only=True)
class LossCost:
    """Forward and backward pass of a loss on one rank."""

    memory_bytes: int
    """Largest memory above the features, their gradients included."""
    received_bytes: int
    """What other ranks send: features, gradients, sums of columns. An all-reduce counts as on a ring."""
    flops: int
    """Additions and multiplications in matrix products."""
    num_negatives: int
    """Other texts that an image is compared with."""


def loss_cost(
    objective: Objective,
    kernel: ResolvedKernel,
    exchange: ExchangeName,
    *,
    num_rows: int,
    num_ranks: int,
    embed_dim: int,
    feature_bytes: int = 4,
) -> LossCost:
    """Cost of `clip_loss` (softmax) or `siglip_loss` (sigmoid) on plain pairs.

    Args:
        objective: which of the two.
        kernel: not `auto`.
        exchange: how features travel.
        num_rows: pairs on each rank.
        num_ranks: ranks of the group.
        embed_dim: width of the features.
        feature_bytes: size of one number of the features.
    """
    is_half = feature_bytes < 4
    others, is_dense = num_ranks - 1, kernel == "dense"
    num_columns, own = num_rows * num_ranks, num_rows * embed_dim
    num_passes = 1 if is_dense or objective == "sigmoid" else 2
    num_products = 3 if is_dense or objective == "sigmoid" else 4

    received = num_passes * others * own * feature_bytes
    hops = num_ranks if exchange == "ring" and others else others
    received += hops * own * 4
    if objective == "softmax":
        received += (4 if is_dense else 5) * others * num_rows * 4

    if is_dense:
        memory = _DENSE_COPIES[objective] * num_rows * num_columns * 4 + own * 4
        # Features of other ranks, and the copies of half precisions in fp32.
        memory += num_columns * embed_dim * 4 if others or is_half else 0
        memory += own * 4 if is_half else 0
    else:
        tile_size = TILE_SIZES[kernel]
        width = num_rows if exchange == "ring" else num_columns
        tile = min(tile_size, num_rows) * min(tile_size, width)
        # Logits, a buffer or two; then the scaled images of a tile, and a product with its gradient.
        num_buffers = 2 if objective == "softmax" else 3
        memory = tile * (feature_bytes if kernel == "triton" else num_buffers * 4) + own * 4
        memory += 2 * min(tile_size, num_rows) * embed_dim * 4 if kernel == "tiled" else 0
        memory += _exchanged(exchange, num_ranks, own, feature_bytes)
        memory += min(own, CAST_ELEMENTS) * 4 if is_half else 0
    return LossCost(
        memory_bytes=memory,
        received_bytes=received,
        flops=2 * num_products * num_rows * num_columns * embed_dim,
        num_negatives=num_columns - 1,
    )


def _exchanged(exchange: ExchangeName, num_ranks: int, own: int, feature_bytes: int) -> int:
    """Bytes of other ranks' features, and of the gradients that come and go, while tiles are visited."""
    if num_ranks == 1:
        return own * 4
    if exchange == "gather":
        return num_ranks * own * (feature_bytes + 4)
    # The block at hand and the next one; the gradient of this one, and two of the last, going and coming.
    return own * (2 * feature_bytes + 3 * 4)
