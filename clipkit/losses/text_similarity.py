"""Which texts are so alike that one is no negative of what the other belongs to."""

from __future__ import annotations

import torch
from torch import Tensor

_PRODUCTS = 2**24
"""Cosines that are held at one time."""


@torch.no_grad()
def similar_texts(rows: Tensor, columns: Tensor, max_similarity: float) -> Tensor:
    """Whether texts have a cosine above a limit, in at least fp32.

    Args:
        rows: (R, D), L2-normalised.
        columns: (C, D), L2-normalised.
        max_similarity: cosine.

    Returns:
        (R, C) bool.
    """
    similar = torch.empty(rows.shape[0], columns.shape[0], dtype=torch.bool, device=rows.device)
    num_rows = max(1, _PRODUCTS // max(1, columns.shape[0]))
    for start in range(0, rows.shape[0], num_rows):
        part = slice(start, start + num_rows)
        torch.gt(_cosines(rows[part], columns), max_similarity, out=similar[part])
    return similar


def _cosines(rows: Tensor, columns: Tensor) -> Tensor:
    dtype = torch.promote_types(rows.dtype, torch.float32)
    if rows.is_cuda and rows.dtype != dtype:  # by tensor cores, with sums in fp32
        return torch.mm(rows, columns.T, out_dtype=dtype)
    return rows.to(dtype) @ columns.to(dtype).T
