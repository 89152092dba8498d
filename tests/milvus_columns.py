"""Metadata of all kinds, with gaps, for the tests of collections of Milvus."""

from __future__ import annotations

from typing import Any

import numpy as np
from index_folders import images_of

NUM_ROWS = 60
METADATA: dict[str, list[Any]] = {
    "size": [None if row % 7 == 0 else row for row in range(NUM_ROWS)],
    "score": [None if row % 11 == 0 else row / 4 - 5 for row in range(NUM_ROWS)],
    "safe": [None if row % 5 == 0 else row % 2 == 0 for row in range(NUM_ROWS)],
    "a note": [
        ["100% \\ sure", "a_b", 'the "dog"', "it's", "DOG\tx", None][row % 6] for row in range(NUM_ROWS)
    ],
    "tags": [None if row % 3 == 0 else ["x", str(row)] for row in range(NUM_ROWS)],
    "vector": [row % 4 for row in range(NUM_ROWS)],
    "empty": [None] * NUM_ROWS,
}


def queries_of(count: int, seed: int = 9) -> np.ndarray:
    return images_of(count, seed).astype(np.float32)
