"""The distinct beginnings of some texts, each of which a causal tower need compute once.

In a causal tower a token depends on those before it alone, so what it becomes is decided by the beginning of
its text that ends with it. Texts that begin alike have these beginnings in common.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]

_NONE = -1
"""Behind the end of a text: no token, and before all of them."""


@dataclass(frozen=True, kw_only=True)
class Beginnings:
    """N beginnings of T texts, the longest of L tokens. Texts stand in the order of their tokens."""

    order: Int64s
    """(T,) number of each text as it was given."""
    tokens: Int64s
    """(N,) the last token of each beginning."""
    positions: Int64s
    """(N,) the place of that token in its text, from 0."""
    paths: Int64s
    """(T, L) the beginning that ends at each token; behind the end of a text any number below N."""
    first: Int64s
    """(N,) where each beginning stands first in the flattened `paths`."""
    last: Int64s
    """(T,) where each text ends in the flattened `paths`."""


def beginnings(tokens: Int64s, lengths: Int64s) -> Beginnings:
    """Find them.

    Args:
        tokens: (T, columns), not negative, T at least 1.
        lengths: (T,) leading tokens that count, at least 1.
    """
    columns = np.arange(lengths.max())
    tokens = np.where(columns < lengths[:, None], tokens[:, : len(columns)], _NONE)
    order = np.lexsort(tokens.T[::-1])
    tokens, lengths = tokens[order], lengths[order]
    is_new = tokens != _NONE
    # In this order a text that shares a beginning with any before it shares it with the one just before.
    is_new[1:] &= np.logical_or.accumulate(tokens[1:] != tokens[:-1], axis=1)
    paths = np.zeros(tokens.shape, np.int64)
    paths[is_new] = np.arange(is_new.sum())
    return Beginnings(
        order=order,
        tokens=tokens[is_new],
        positions=np.nonzero(is_new)[1],
        paths=np.maximum.accumulate(paths, axis=0),
        first=np.flatnonzero(is_new),
        last=np.arange(len(tokens)) * len(columns) + lengths - 1,
    )
