"""Matrix products by oneDNN on a CPU.

In fp32 `torch.mm` takes another library, which on AMD processors is up to a fifth slower for tiles. The
operator is the one that torch's own compiler emits; where it is missing or has changed, `torch.mm` serves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def times_transposed(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right.T`: (R, K), (C, K) -> (R, C), a new tensor."""
    if left.device.type == "cpu" and left.dtype == torch.float32 and (linear := _onednn_linear()):
        return linear(left, right)
    return left @ right.T


@functools.cache
def _onednn_linear() -> Callable[[Tensor, Tensor], Tensor] | None:
    """The operator, if it does here what it is meant to."""

    def linear(left: Tensor, right: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
        return product

    probe = torch.arange(6, dtype=torch.float32).view(2, 3)
    try:
        return linear if torch.equal(linear(probe, probe), probe @ probe.T) else None
    except (AttributeError, RuntimeError, TypeError):
        return None
