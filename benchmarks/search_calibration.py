"""What made vectors cost an index beside what VIBE measured on LAION's.

Costs are counted: vectors that a graph compares with a query, and vectors in the lists that an
inverted file of as many lists has to visit, centroids included. VIBE (k = 100, 1.0 M x 512 vectors of LAION's
images, one core) reports queries a second; ratios are what can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import numpy as np
from clipkit.retrieval.index_faiss import SearchSettings, VectorIndex
from clipkit.retrieval.index_tune import recall_of

RECALLS = (0.90, 0.95, 0.99)
NUM_QUERIES = 200
VIBE = {"hnsw": (1014, 578, 265), "ivf": (327, 175, 47)}
"""Queries a second with text at RECALLS."""
VIBE_CODES = 642
"""Of faiss's inverted file of 4-bit codes whose candidates are compared again, at recall 0.95."""
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


def graph_curve(
    index: faiss.IndexHNSW, queries: np.ndarray, neighbours: np.ndarray, *, timed: bool = False
) -> Curve:
    """Vectors compared with a query (or its seconds on the processor), at rising efSearch."""
    k = neighbours.shape[1]

    def costs(ef_search: int) -> tuple[float, float]:
        index.hnsw.efSearch = ef_search
        faiss.cvar.hnsw_stats.reset()
        began = time.process_time()
        _, found = index.search(queries, k)
        seconds = time.process_time() - began
        cost = seconds if timed else faiss.cvar.hnsw_stats.ndis
        return recall_of(found, neighbours, k), cost / len(queries)

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


def codes_curve(index: VectorIndex, queries: np.ndarray, neighbours: np.ndarray) -> Curve:
    """Seconds a query of codes whose candidates are compared again: the fastest settings for each recall."""
    k = neighbours.shape[1]
    points = []
    for nprobe in (16, 32, 64, 128, 256):
        for k_factor in (2, 4, 8, 16, 32):
            settings = SearchSettings(nprobe=nprobe, k_factor=k_factor)
            began = time.process_time()
            _, found = index.search(queries, k, settings)
            seconds = (time.process_time() - began) / len(queries)
            points.append((recall_of(found, neighbours, k), seconds))
    points.sort(key=lambda point: point[1])
    best = np.maximum.accumulate([recall for recall, _ in points])
    return [point for point, so_far in zip(points, best, strict=True) if point[0] == so_far]


def calibration(work: Path) -> str:
    """Tables from the work folder of `search.py`, whose peer is a graph."""
    faiss.omp_set_num_threads(1)
    whole = faiss.read_index(str(work / "idx/current/image.index"))
    graph, lists = faiss.read_index(str(work / "peer.index")), faiss.extract_index_ivf(whole)
    curves: dict[tuple[str, str], Curve] = {}
    for kind in ("text", "image"):
        queries = np.load(work / f"{kind}_queries.npy")[:NUM_QUERIES]
        neighbours = np.load(work / f"{kind}_neighbours.npy")[:NUM_QUERIES]
        curves["hnsw", kind] = graph_curve(graph, queries, neighbours)
        curves["ivf", kind] = lists_curve(lists, queries, neighbours)
    texts = np.load(work / "text_queries.npy")[:NUM_QUERIES]
    neighbours = np.load(work / "text_neighbours.npy")[:NUM_QUERIES]
    graph_seconds = cost_at(graph_curve(graph, texts, neighbours, timed=True), 0.95)
    codes_seconds = cost_at(codes_curve(VectorIndex(whole), texts, neighbours), 0.95)
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
        f"| codes compared again / graph, text, queries a second | {1 / codes_seconds:,.0f} / "
        f"{1 / graph_seconds:,.0f} = {graph_seconds / codes_seconds:.2f} "
        f"| {VIBE_CODES} / {VIBE['hnsw'][1]} = {VIBE_CODES / VIBE['hnsw'][1]:.2f} |\n"
        f"| text / image, graph | {at['hnsw', 'text'] / at['hnsw', 'image']:.2f} | {VIBE_TEXT_OVER_IMAGE} |\n"
    )
