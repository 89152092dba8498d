"""What made vectors cost an index beside what VIBE measured on LAION's.

Costs are counted: vectors that a graph compares with a query, and vectors in the lists that an
inverted file of as many lists has to visit, centroids included. VIBE (k = 100, 1.0 M x 512 vectors of LAION's
images, one core) reports queries a second; ratios are what can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from clipkit.retrieval.index_faiss import SearchSettings, VectorIndex
from clipkit.retrieval.index_tune import recall_of
from search_machine import distance_cost

RECALLS = (0.90, 0.95, 0.99)
NUM_QUERIES = 200
VIBE = {"hnsw": (1014, 578, 265), "ivf": (327, 175, 47)}
"""Queries a second with text at RECALLS."""
VIBE_CODES = 642
"""Of faiss's inverted file of 4-bit codes whose candidates are compared again, at recall 0.95."""
VIBE_TEXT_OVER_IMAGE = 2.4
"""How much longer hnswlib takes for a text than for an image, at recall 0.95."""

Curve = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class CodesPoint:
    """One setting of codes whose candidates are compared again."""

    recall: float
    seconds: float
    """Of a query, on one thread."""
    nprobe: int
    k_factor: int


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


def codes_curve(index: VectorIndex, queries: np.ndarray, neighbours: np.ndarray) -> list[CodesPoint]:
    """Codes whose candidates are compared again: the settings of which none is both slower and worse."""
    k = neighbours.shape[1]
    points = []
    for nprobe in (16, 32, 64, 128, 256):
        for k_factor in (2, 4, 8, 16, 32):
            settings = SearchSettings(nprobe=nprobe, k_factor=k_factor)
            began = time.process_time()
            _, found = index.search(queries, k, settings)
            seconds = (time.process_time() - began) / len(queries)
            recall = recall_of(found, neighbours, k)
            points.append(CodesPoint(recall=recall, seconds=seconds, nprobe=nprobe, k_factor=k_factor))
    points.sort(key=lambda point: point.seconds)
    best = np.maximum.accumulate([point.recall for point in points])
    return [point for point, so_far in zip(points, best, strict=True) if point.recall == so_far]


def codes_bytes(index: VectorIndex, point: CodesPoint, k: int) -> float:
    """Bytes that a query reads, with lists of mean length: centroids, codes, and candidates (fp16)."""
    assert index.num_lists is not None
    dim = index.embed_dim
    codes = point.nprobe / index.num_lists * len(index) * dim / 4
    return 4 * dim * index.num_lists + codes + 2 * dim * point.k_factor * k


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
    at = {key: cost_at(curve, 0.95) for key, curve in curves.items()}
    rows = [
        f"| {name} | {kind} | "
        + " | ".join(f"{cost_at(curve, recall):,.0f}" for recall in RECALLS)
        + (" | " + " / ".join(map(str, VIBE[name])) if kind == "text" else " | ")
        + " |"
        for (name, kind), curve in curves.items()
    ]
    texts = np.load(work / "text_queries.npy")[:NUM_QUERIES]
    neighbours = np.load(work / "text_neighbours.npy")[:NUM_QUERIES]
    graph_seconds = cost_at(graph_curve(graph, texts, neighbours, timed=True), 0.95)
    points = codes_curve(VectorIndex(whole), texts, neighbours)
    codes = next((point for point in points if point.recall >= 0.95), points[-1])
    num_graph, num_lists = at["hnsw", "text"], at["ivf", "text"]
    megabytes = {
        "graph": num_graph * 4 * whole.d / 1e6,
        "inverted file": num_lists * 4 * whole.d / 1e6,
        "codes": codes_bytes(VectorIndex(whole), codes, neighbours.shape[1]) / 1e6,
    }
    cost = distance_cost()
    graph_rate, lists_rate = VIBE["hnsw"][1], VIBE["ivf"][1]
    return (
        "## Calibration\n\n"
        "Vectors compared for a query, k = 100, and VIBE's queries a second.\n\n"
        "| index | queries | recall 0.90 | 0.95 | 0.99 | VIBE at these |\n|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n\n| at recall 0.95 | here | VIBE |\n|---|---|---|\n"
        f"| inverted file / graph, text | {num_lists / num_graph:.2f} (vectors) "
        f"| {graph_rate / lists_rate:.2f} (time) |\n"
        f"| text / image, graph | {num_graph / at['hnsw', 'image']:.2f} (vectors) "
        f"| {VIBE_TEXT_OVER_IMAGE} (time) |\n\n"
        "Bytes read for a text at recall 0.95: "
        + ", ".join(f"{name} {size:.1f} MB" for name, size in megabytes.items())
        + f" (nprobe {codes.nprobe}, k_factor {codes.k_factor}: recall {codes.recall:.3f}).\n\n"
        "## The machine's part\n\n"
        "| nanoseconds for a vector of 2 KiB | here | what VIBE's rates come to with the counts above |\n"
        "|---|---|---|\n"
        f"| of a graph, searched | {1e9 * graph_seconds / num_graph:.0f} "
        f"| {1e9 / graph_rate / num_graph:.0f} |\n"
        f"| at random places | {cost.anywhere:.0f} | |\n"
        f"| in order | {cost.in_order:.0f} | {1e9 / lists_rate / num_lists:.0f} (inverted file) |\n"
        f"| in the cache | {cost.cached:.0f} | |\n\n"
        f"Codes / graph, text, queries a second: {1 / codes.seconds:,.0f} / {1 / graph_seconds:,.0f} = "
        f"{graph_seconds / codes.seconds:.2f} here, {VIBE_CODES} / {graph_rate} = "
        f"{VIBE_CODES / graph_rate:.2f} in VIBE; with a graph at VIBE's rate and codes at ours it would be "
        f"{1 / codes.seconds / graph_rate:.2f}.\n"
    )
