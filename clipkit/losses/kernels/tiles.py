"""What a kernel has to do with one tile of pairs; the loops over tiles and ranks are the same for all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from clipkit.losses.pairs import PairLabels

LOG2_E = math.log2(math.e)

CAST_ELEMENTS = 2**20
"""Numbers that are cast to fp32 at one time where a whole matrix need not be."""

IGNORED_LOGIT = -1e30
"""Stands for minus infinity, but differences of two of them are no NaN."""


@dataclass(frozen=True)
class PowerSums:
    """`sum_k 2**x_k` for a number of sums, as `total * 2**largest`: like a log-sum-exp, and more precise.

    With the maximum kept apart, a softmax `2**(x - largest) / total` near 1 is exact to the last bit, where
    `2**(x - log2(sum))` has the rounding error of a logit.
    """

    largest: Tensor
    total: Tensor

    @classmethod
    def empty(cls, count: int, like: Tensor) -> PowerSums:
        """Sums of nothing, with the device and dtype of `like`."""
        return cls(like.new_full((count,), IGNORED_LOGIT), like.new_zeros(count))

    def part(self, place: slice) -> PowerSums:
        """Some of the sums; writing to them writes here."""
        return PowerSums(self.largest[place], self.total[place])

    def add_(self, other: PowerSums) -> None:
        """Add terms, in place."""
        largest = torch.maximum(self.largest, other.largest)
        total = self.total * torch.exp2(self.largest - largest)
        self.total.copy_(total + other.total * torch.exp2(other.largest - largest))
        self.largest.copy_(largest)

    def log2(self) -> Tensor:
        """Logarithms of the sums to the base 2."""
        return self.largest + self.total.log2()


class TileKernel(Protocol):
    """Computes tiles of up to `tile_size` images and texts. Results hold until the next call."""

    tile_size: int

    def power_sums(
        self, image: Tensor, text: Tensor, log2_scale: Tensor, labels: PairLabels
    ) -> tuple[PowerSums, PowerSums, Tensor]:
        """Forward pass of the softmax loss.

        Args:
            image: (R, D), a row of the tile each.
            text: (C, D), a column each.
            log2_scale: scalar; logits to the base 2 are this times the products of features.
            labels: of the tile.

        Returns:
            Sums over each row and each column of 2 to the power of the kept logits, and the sum of target
            times logit to the base 2.
        """

    def softmax_gradient(
        self,
        image: Tensor,
        text: Tensor,
        log2_scale: Tensor,
        labels: PairLabels,
        sums: tuple[PowerSums, PowerSums],
        gradients: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        """Backward pass of the softmax loss.

        Args:
            image: (R, D).
            text: (C, D).
            log2_scale: as in `power_sums`.
            labels: of the tile.
            sums: of the rows and columns of the tile, over all of their columns and rows.
            gradients: of the row log-sum-exps (R,), the column ones (C,) and the sum of target times logit.

        Returns:
            (R, C): the gradient of the (natural) logits.
        """

    def sigmoid(
        self,
        image: Tensor,
        text: Tensor,
        scale_and_bias: tuple[Tensor, Tensor],
        labels: PairLabels,
        *,
        label_smoothing: float,
        with_gradient: bool,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Both passes of the sigmoid loss.

        Returns:
            The weighted sum of the losses of kept pairs; if asked for, the (R, C) gradient of the logits and
            its sum.
        """

    def add_product(self, target: Tensor, left: Tensor, right: Tensor) -> None:
        """`target += left @ right`, accumulated in the dtype of `target`."""


def slices(length: int, size: int) -> Iterator[slice]:
    """Cut `range(length)` into parts of up to `size`."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
