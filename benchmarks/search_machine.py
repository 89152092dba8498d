"""What a machine takes to compare a query with a vector of 512 fp32 numbers, by where the vector lies.

A graph visits vectors all over the memory, an inverted file those of a list in order. The first costs the
latency of the memory and of the translation of addresses, which differ more between machines than arithmetic
does; so they, and not the vectors alone, decide how a graph ranks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

EMBED_DIM = 512
_ROWS_AT_ONCE = 20_000
_REPEATS = 15
_CACHED_ROWS = 400


@dataclass(frozen=True, kw_only=True)
class DistanceCost:
    """Nanoseconds of one thread for a vector, the median of repeats."""

    anywhere: float
    in_order: float
    cached: float


def distance_cost(num_rows: int = 1_000_000, *, seed: int = 0) -> DistanceCost:
    """Compare a query with vectors at random places, with consecutive ones, and with few again and again.

    Args:
        num_rows: N; the table takes 2 KiB a row.
        seed: of the places.
    """
    rng = np.random.default_rng(seed)
    index = faiss.IndexFlatIP(EMBED_DIM)
    for _ in range(0, num_rows, _ROWS_AT_ONCE):
        index.add(rng.standard_normal((min(_ROWS_AT_ONCE, num_rows), EMBED_DIM), dtype=np.float32))
    query = rng.standard_normal((1, EMBED_DIM), dtype=np.float32)
    faiss.omp_set_num_threads(1)

    def cost(places: Callable[[], npt.NDArray[np.int64]]) -> float:
        return statistics.median(_nanoseconds(index, query, places()) for _ in range(_REPEATS))

    count = min(_ROWS_AT_ONCE, index.ntotal)
    return DistanceCost(
        anywhere=cost(lambda: rng.integers(0, index.ntotal, count)),
        in_order=cost(lambda: np.arange(count) + rng.integers(0, index.ntotal - count + 1)),
        cached=cost(lambda: rng.integers(0, min(_CACHED_ROWS, index.ntotal), count)),
    )


def _nanoseconds(
    index: faiss.IndexFlatIP, query: npt.NDArray[np.float32], places: npt.NDArray[np.int64]
) -> float:
    similarities = np.empty((1, len(places)), np.float32)
    began = time.process_time()
    index.compute_distance_subset(
        1, faiss.swig_ptr(query), len(places), faiss.swig_ptr(similarities), faiss.swig_ptr(places)
    )
    return 1e9 * (time.process_time() - began) / len(places)
