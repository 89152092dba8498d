"""autofaiss in its own environment: builds an index, then answers about it line by line.

peer/bin/python benchmarks/search_peer.py EMBEDDINGS INDEX MEMORY
builds INDEX, and prints a line of facts
peer/bin/python benchmarks/search_peer.py INDEX QUERIES.npy FOUND.npy answer
for each line of faiss parameters, writes FOUND.npy and prints a line with the seconds
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import faiss
import numpy as np

K = 10


def build(embeddings: str, index_path: str, memory: str) -> None:
    """Build as clip-retrieval does, within a memory."""
    from autofaiss import build_index

    began = time.perf_counter()
    _, infos = build_index(
        f"{embeddings}/img_emb",
        index_path=index_path,
        index_infos_path=f"{index_path}.json",
        max_index_memory_usage=memory,
        current_memory_available="6G",
        metric_type="ip",
        verbose=30,
    )
    seconds = time.perf_counter() - began
    found = {"seconds": seconds, "bytes": Path(index_path).stat().st_size, **infos}
    print(json.dumps({key: value for key, value in found.items() if isinstance(value, str | int | float)}))


def answer(index_path: str, queries_path: str, found_path: str) -> None:
    """Search one query at a time on one thread, with the parameters that are asked for."""
    faiss.omp_set_num_threads(1)
    index = faiss.read_index(index_path)
    queries = np.load(queries_path)
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip():
            faiss.ParameterSpace().set_index_parameters(index, line.strip())
        found = np.empty((len(queries), K), np.int64)
        seconds = np.empty(len(queries))
        for row in range(len(queries)):
            began = time.perf_counter()
            _, places = index.search(queries[row : row + 1], K)
            seconds[row] = time.perf_counter() - began
            found[row] = places[0]
        np.save(found_path, found)
        print(json.dumps({"seconds": seconds.sum()}), flush=True)


if __name__ == "__main__":
    answer(*sys.argv[1:4]) if sys.argv[4:] == ["answer"] else build(*sys.argv[1:])
