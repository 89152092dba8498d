"""What made vectors cost an index beside what VIBE measured on LAION's.

Costs are counted, not timed: vectors that a graph compares with a query, and vectors in the lists that an
inverted file of as many lists has to visit, centroids included. VIBE (k = 100, 1.0 M x 512 vectors of LAION's
images, one core) reports queries a second; its ratios are what can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import numpy as np
from clipkit.retrieval.index_tune import recall_of

RECALLS = (0.90, 0.95, 0.99)
NUM_QUERIES = 200
VIBE = {"hnsw": (1014, 578, 265), "ivf": (327, 175, 47)}
"""Queries a second with text at RECALLS."""
VIBE_TEXT_OVER_IMAGE = 2.4
"""How much longer hnswlib takes for a text than for an image, at recall 0.95."""

Curve = list[tuple[float, float]]


def cost_at(curve: Sequence[tuple[float, float]], recall: float) -> float:
    """Cost at a recall on a curve of (recall, cost), both rising; nan beyond its end.

    Between two points the logarithm of the cost is linear in recall.
    """
    recalls = [point[0] for point in curve]
    if recall > recalls[-1]:
        return float("nan")
    return float(np.exp(np.interp(recall, recalls, np.log([point[1] for point in curve]))))


def rising(costs: Callable[[int], tuple[float, float]], values: Sequence[int]) -> Curve:
    """(recall, cost) at rising values, until nearly all is found."""
    curve: Curve = []
    for value in values:
        curve.append(costs(value))
        if curve[-1][0] > 0.995:
            break
    return curve


def graph_curve(index: faiss.IndexHNSW, queries: np.ndarray, neighbours: np.ndarray) -> Curve:
    """Vectors compared with a query, at rising efSearch."""
    k = neighbours.shape[1]

    def costs(ef_search: int) -> tuple[float, float]:
        index.hnsw.efSearch = ef_search
        faiss.cvar.hnsw_stats.reset()
        _, found = index.search(queries, k)
        return recall_of(found, neighbours, k), faiss.cvar.hnsw_stats.ndis / len(queries)

    return rising(costs, [k * 2**power // 2 for power in range(1, 8)])


def lists_curve(index: faiss.IndexIVF, queries: np.ndarray, neighbours: np.ndarray) -> Curve:
    """Vectors and centroids compared with a query by uncompressed lists, at rising nprobe.

    What is found is what lies in the lists that are visited, so no vectors are needed.
    """
    lists = index.invlists
    sizes = np.array([lists.list_size(number) for number in range(index.nlist)])
    list_of = np.empty(index.ntotal, np.int64)
    for number, size in enumerate(sizes.tolist()):
        if size:
            list_of[faiss.rev_swig_ptr(lists.get_ids(number), size)] = number
    _, order = index.quantizer.search(queries, index.nlist)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(index.nlist)[None], axis=1)
    rank_of_neighbour = np.take_along_axis(ranks, list_of[neighbours], axis=1)
    num_seen = np.cumsum(sizes[order], axis=1).mean(axis=0) + index.nlist
    probes = sorted({round(1.2**power) for power in range(1, 60) if 1.2**power <= index.nlist})
    return rising(
        lambda nprobe: (float((rank_of_neighbour < nprobe).mean()), float(num_seen[nprobe - 1])), probes
    )


def calibration(work: Path) -> str:
    """Tables from the work folder of `search.py`, whose peer is a graph."""
    graph = faiss.downcast_index(faiss.read_index(str(work / "peer.index")))
    lists = faiss.extract_index_ivf(faiss.read_index(str(work / "idx/current/image.index")))
    curves: dict[tuple[str, str], Curve] = {}
    for kind in ("text", "image"):
        queries = np.load(work / f"{kind}_queries.npy")[:NUM_QUERIES]
        neighbours = np.load(work / f"{kind}_neighbours.npy")[:NUM_QUERIES]
        curves["hnsw", kind] = graph_curve(graph, queries, neighbours)
        curves["ivf", kind] = lists_curve(lists, queries, neighbours)
    rows = [
        f"| {name} | {kind} | "
        + " | ".join(f"{cost_at(curve, recall):,.0f}" for recall in RECALLS)
        + (" | " + " / ".join(map(str, VIBE[name])) if kind == "text" else " | ")
        + " |"
        for (name, kind), curve in curves.items()
    ]
    at = {key: cost_at(curve, 0.95) for key, curve in curves.items()}
    theirs = VIBE["hnsw"][1] / VIBE["ivf"][1]
    return (
        "## Calibration\n\n"
        "Vectors compared for a query, k = 100, and VIBE's queries a second.\n\n"
        "| index | queries | recall 0.90 | 0.95 | 0.99 | VIBE at these |\n|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n\n| at recall 0.95 | here | VIBE |\n|---|---|---|\n"
        f"| inverted file / graph, text | {at['ivf', 'text'] / at['hnsw', 'text']:.2f} (vectors) "
        f"| {theirs:.2f} (time) |\n"
        f"| text / image, graph | {at['hnsw', 'text'] / at['hnsw', 'image']:.2f} | {VIBE_TEXT_OVER_IMAGE} |\n"
    )
