"""One query out of several texts and images, each with a weight."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from .rows import Float32s

_WEIGHT = re.compile(r"(.+):(\d+\.?\d*|\.\d+)", re.DOTALL)
_SHORTEST = 1e-4


def parse_weighted(text: str) -> tuple[str, float]:
    """`red car:0.5` -> (`red car`, 0.5); without a number behind a colon the weight is 1.

    Raises:
        ValueError: there is no text, or the weight is 0.
    """
    match = _WEIGHT.fullmatch(text)
    content, weight = (match[1], float(match[2])) if match else (text, 1.0)
    if not content.strip():
        raise ValueError(f"expected a text or a file, with or without a :WEIGHT, got {text!r}")
    if weight == 0 or not np.isfinite(weight):
        raise ValueError(f"the weight of {content!r} must be above 0 and finite, got {text!r}")
    return content, weight


def combine(vectors: Float32s, weights: Sequence[float]) -> Float32s:
    """The L2-normalised weighted sum of unit vectors.

    Args:
        vectors: (n, D), rows L2-normalised.
        weights: n of them; negative ones take away.

    Returns:
        (1, D).

    Raises:
        ValueError: nothing is left of the sum.
    """
    total = np.asarray(weights, np.float32) @ vectors
    norm = float(np.linalg.norm(total))
    if not norm > _SHORTEST:
        raise ValueError("the parts of the query cancel each other out: change their weights")
    query: Float32s = (total / norm)[None].astype(np.float32)
    return query
