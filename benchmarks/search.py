"""Search by text among a million image vectors, against the index that autofaiss builds.

    python benchmarks/search.py --work work --peer-python peer/bin/python
    python benchmarks/search.py --work work --peer-python peer/bin/python --steps compare

The vectors are made (`search_vectors.py`). Both build from one folder of embeddings, within the same memory;
autofaiss by its own choice, ours by `--kind auto`. Queries are texts that neither has seen, one at a time on
one thread, in turns. autofaiss's efSearch is the least that reaches the recall on these queries; ours is what
`clipkit index build` has chosen with captions, or the least nprobe above it that reaches the recall here.

A second process has autofaiss's index in huge pages, which a graph gains by and nobody gets by default (ours
stays mapped from its file). Steps leave files in the work folder and can run alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
from clipkit.retrieval.index import SearchIndex, nearest
from clipkit.retrieval.index_build import IndexSettings, build_index
from clipkit.retrieval.index_faiss import SearchSettings
from clipkit.retrieval.index_tune import recall_of
from report import write_result
from search_calibration import calibration
from search_vectors import VectorSource, read_images, write_embedding_folder

PEER = Path(__file__).with_name("search_peer.py")
K, NUM_NEIGHBOURS = 10, 100
NUM_QUERIES = 500
GOAL = 0.95
_QUERY_BATCH = 10**6
"""Number of a batch of vectors that no folder has."""


def make_vectors(work: Path, num_rows: int) -> None:
    """Embeddings, queries of both kinds, and what an exact search finds for them."""
    source = VectorSource()
    write_embedding_folder(source, work / "emb", num_rows)
    queries = source.batch(_QUERY_BATCH, NUM_QUERIES)
    images = read_images(work / "emb")
    for kind, vectors in (("text", queries.texts), ("image", queries.images)):
        np.save(work / f"{kind}_queries.npy", vectors)
        _, found = nearest(vectors, [(np.arange(num_rows), images)], NUM_NEIGHBOURS)
        np.save(work / f"{kind}_neighbours.npy", found)


def build_peer(work: Path, peer_python: str, memory_gb: float) -> None:
    command = [peer_python, str(PEER), str(work / "emb"), str(work / "peer.index"), f"{memory_gb}G"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    facts = json.loads(output.splitlines()[-1])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    facts["processor_seconds"] = used.ru_utime + used.ru_stime
    (work / "peer.json").write_text(json.dumps(facts))


def build_ours(work: Path, memory_gb: float) -> None:
    began, began_processor = time.perf_counter(), time.process_time()
    report = build_index(work / "emb", work / "idx", IndexSettings(memory_gb=memory_gb), replace=True)[
        "image"
    ]
    facts = {
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - began_processor,
        "bytes": (work / "idx/current/image.index").stat().st_size,
        "index": report.to_text(),
    }
    (work / "ours.json").write_text(json.dumps(facts))


class Peer:
    """autofaiss's index in its own process; with `huge_pages` glibc asks the kernel for pages of 2 MiB."""

    def __init__(self, work: Path, peer_python: str, *, huge_pages: bool = False) -> None:
        found = f"peer{'_huge' if huge_pages else ''}.found.npy"
        self._found = work / found
        names = (work / "peer.index", work / "text_queries.npy", self._found)
        self._process = subprocess.Popen(
            [peer_python, str(PEER), *map(str, names), "answer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if huge_pages else {}),
        )
        self._read()

    def search(self, parameters: str = "") -> tuple[float, np.ndarray]:
        """Seconds of all queries one by one, and what was found; by default with the last parameters."""
        assert self._process.stdin is not None
        self._process.stdin.write(parameters + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._read())["seconds"]), np.load(self._found)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def least_that_reaches(recall: Callable[[int], float], goal: float, most: int = 8192) -> int | None:
    """The smallest whole number, of those up to `most`, at which a rising recall reaches a goal."""
    low, high = 1, most
    if recall(high) < goal:
        return None
    while low < high:
        middle = int((low * high) ** 0.5)
        low, high = (low, middle) if recall(middle) >= goal else (middle + 1, high)
    return high


def compare(work: Path, peer_python: str, rounds: int) -> str:
    neighbours = np.load(work / "text_neighbours.npy")
    queries = np.load(work / "text_queries.npy")
    faiss.omp_set_num_threads(1)
    peer, index = Peer(work, peer_python), SearchIndex.open(work / "idx")
    facts = {name: json.loads((work / f"{name}.json").read_text()) for name in ("peer", "ours")}
    as_built = peer.search()
    name = "efSearch" if facts["peer"]["index_key"].startswith("HNSW") else "nprobe"
    most = 4096
    least = least_that_reaches(
        lambda value: recall_of(peer.search(f"{name}={value}")[1], neighbours, K), GOAL, most
    )
    setting = f"{name}={least or most}"

    def with_nprobe(nprobe: int) -> SearchSettings:
        return replace(index.settings, nprobe=nprobe)

    nprobe = least_that_reaches(
        lambda value: recall_of(index.search(queries, K, settings=with_nprobe(value)).ids, neighbours, K),
        GOAL,
        1024,
    )
    ours_as_built = recall_of(index.search(queries, K).ids, neighbours, K)
    wider = max(nprobe or 1024, index.settings.nprobe or 1)
    huge = Peer(work, peer_python, huge_pages=True)
    found: dict[str, np.ndarray] = {}
    milliseconds: dict[str, list[float]] = {"peer": [], "huge": [], "ours": []}
    for _ in range(rounds):
        for which, process in (("peer", peer), ("huge", huge)):
            seconds, found[which] = process.search(setting)
            milliseconds[which].append(1e3 * seconds / len(queries))
        began = time.perf_counter()
        found["ours"] = np.concatenate(
            [index.search(query[None], K, settings=with_nprobe(wider)).ids for query in queries]
        )
        milliseconds["ours"].append(1e3 * (time.perf_counter() - began) / len(queries))
    peer.close()
    huge.close()
    names = {
        "peer": f"autofaiss: {facts['peer']['index_key']}, {setting}",
        "huge": "the same in huge pages",
        "ours": f"clipkit auto, nprobe={wider}",
    }
    rows = [
        _row(names[which], recall_of(found[which], neighbours, K), times, facts.get(which, facts["peer"]))
        for which, times in milliseconds.items()
    ]
    as_built_recall = recall_of(as_built[1], neighbours, K)
    return (
        f"| index | recall@{K} | ms a query (range) | build, s | of processors, s | GB |\n"
        "|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\n{_ratio(milliseconds, 'peer')} times as fast, and {_ratio(milliseconds, 'huge')} with the "
        f"graph in huge pages; {len(queries)} text queries, {rounds} rounds in turns, one thread.\n"
        f"As autofaiss tunes it ({facts['peer']['index_param']}): recall {as_built_recall:.3f}, "
        f"{1e3 * as_built[0] / len(queries):.2f} ms.\n"
        f"As ours is built (nprobe={index.settings.nprobe}): recall {ours_as_built:.4f}; its report:\n"
        f"{facts['ours']['index']}.\n"
        f"Build times are of one run each. faiss {faiss.__version__}.\n"
    )


def _ratio(milliseconds: dict[str, list[float]], which: str) -> str:
    ratios = [a / b for a, b in zip(milliseconds[which], milliseconds["ours"], strict=True)]
    return f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"


def _row(name: str, recall: float, milliseconds: list[float], facts: dict[str, float]) -> str:
    middle = statistics.median(milliseconds)
    spread = f"{min(milliseconds):.2f} to {max(milliseconds):.2f}"
    return (
        f"| {name} | {recall:.4f} | {middle:.2f} ({spread}) "
        f"| {facts['seconds']:.0f} | {facts['processor_seconds']:.0f} | {facts['bytes'] / 1e9:.2f} |"
    )


STEPS = ("vectors", "peer", "ours", "calibration", "compare")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--peer-python", required=True, help="Python of an environment with autofaiss")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--num-rows", type=int, default=1_000_000)
    parser.add_argument("--memory-gb", type=float, default=4.0, help="what either index may use")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    work = chosen.work
    work.mkdir(parents=True, exist_ok=True)
    if "vectors" in chosen.steps:
        make_vectors(work, chosen.num_rows)
    if "peer" in chosen.steps:
        build_peer(work, chosen.peer_python, chosen.memory_gb)
    if "ours" in chosen.steps:
        build_ours(work, chosen.memory_gb)
    if "calibration" in chosen.steps:
        (work / "calibration.md").write_text(calibration(work))
    if "compare" in chosen.steps:
        body = compare(work, chosen.peer_python, chosen.rounds)
        if (work / "calibration.md").exists():
            body += "\n" + (work / "calibration.md").read_text()
        write_result(
            "search",
            f"Search by text among {chosen.num_rows:,} vectors against autofaiss",
            body,
            command=sys.argv,
        )


if __name__ == "__main__":
    main()
