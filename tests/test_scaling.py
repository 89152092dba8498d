"""The arithmetic of docs/scaling.md, done again."""

from __future__ import annotations

import math
import re
from pathlib import Path

import faiss
import pytest
from clipkit.retrieval.index_build import choose_factory

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
SIZES = (10_000_000, 100_000_000, 5_000_000_000)
D, LINKS, CANDIDATES = 512, 64, 128
BYTES = {
    "PQ 4 bit alone": D // 4 + 8,
    "DISKANN, memory": 4 * D // 8,
    "fp16": 2 * D,
    "PQ and fp16 (folder, `auto`)": D // 4 + 8 + 2 * D,
    "fp32 (`flat`)": 4 * D,
    "HNSW and fp32 (`hnsw`)": 4 * D + 4 * LINKS + 8,
    "DISKANN, disk": 4096 * math.ceil((4 * D + 4 + 4 * 56) / 4096),
}
NODE = 0.7 * 256 * 2**30
BANDWIDTH, READS = 100e9, 1e6


def nodes(name: str, size: int) -> int:
    return math.ceil(size * BYTES[name.replace("disk", "memory")] / NODE)


def rows() -> dict[str, list[str]]:
    lines = re.findall(r"^\| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    return {cells[0]: cells[1:] for cells in (line.split(" | ") for line in lines)}


def test_sizes_and_nodes() -> None:
    for name, size in BYTES.items():
        counts = [str(nodes(name, number)) for number in SIZES]
        gigabytes = [f"{number * size / 1e9:,.2f} GB" for number in SIZES]
        assert rows()[name] == [f"{size:,}", *gigabytes, *counts]


def ceilings(bytes_a_segment: int, index: str, cost: float, budget: float) -> list[float]:
    per_segment = bytes_a_segment / (4 * D)
    parts = [math.ceil(size / nodes(index, size) / per_segment) for size in SIZES]
    return [budget / (part * cost) for part in parts]


def test_speeds() -> None:
    walk = CANDIDATES * LINKS * 4 * D
    graph = "HNSW and fp32 (`hnsw`)"
    expected = {
        "`flat`": [BANDWIDTH / (size / nodes("fp32 (`flat`)", size) * 4 * D) for size in SIZES],
        "`hnsw`, segments of 1 GiB": ceilings(2**30, graph, walk, BANDWIDTH),
        "`hnsw`, segments of 16 GiB": ceilings(2**34, graph, walk, BANDWIDTH),
        "`diskann`, segments of 2 GiB": ceilings(2**31, "DISKANN, disk", CANDIDATES, READS),
    }
    lists = [2 ** round(math.log2(1.6 * size**0.5)) for size in SIZES]
    folder = [
        BANDWIDTH / (size * 32 / count * BYTES["PQ 4 bit alone"] + count * 4 * D)
        for size, count in zip(SIZES, lists, strict=True)
    ]
    expected["folder, `auto`, one machine"] = folder[:2]
    for name, values in expected.items():
        found = [float(cell.replace(",", "")) for cell in rows()[name][: len(values)]]
        assert found == pytest.approx(values, rel=5e-3), name


def test_the_figures_are_those_of_the_indexes() -> None:
    factory = choose_factory(SIZES[0], D, "auto", math.inf)
    assert factory == "IVF4096,PQ256x4fs,Refine(SQfp16)"
    index = faiss.index_factory(D, factory, faiss.METRIC_INNER_PRODUCT)
    codes = faiss.downcast_index(index.base_index)
    assert codes.code_size + 8 == BYTES["PQ 4 bit alone"]
    assert faiss.downcast_index(index.refine_index).sa_code_size() == BYTES["fp16"]
