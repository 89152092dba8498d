"""How much of the exact result an index finds, how fast, and the settings that reach a goal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipkit.charts import line_chart
from clipkit.page import Page

from .index import nearest
from .index_faiss import SearchSettings, VectorIndex
from .rows import EmbeddingRows, Float32s, Int64s

Float64s = npt.NDArray[np.float64]

KS = (1, 10, 100)
_K_FACTORS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_MIN_EF_SEARCH, _MAX_EF_SEARCH = 16, 1024
_STEPS_PER_DOUBLING = 4
"""Of nprobe or ef_search, around where the goal is reached."""
_TIMED_ALONE = 64
"""Queries that the best settings are timed with one by one."""
_FINALISTS = 3
_REPEATS = 3
_QUERIES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Vectors that an index is measured with, and what an exact search finds for them."""

    kind: str
    """`text` or `image`: what they are embeddings of."""
    vectors: Float32s
    """(Q, D), rows L2-normalised."""
    neighbours: Int64s
    """(Q, K) positions, the best first."""
    own: Int64s | None = None
    """(Q,) position of the query itself in the index, which is not counted; None where it is not in it."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One setting of an index on the same queries."""

    settings: SearchSettings
    recall: Mapping[str, float]
    """Recall@k by k: the share of the k exact neighbours that are among the first k found."""
    recall_error: float = 0.0
    """Standard error, over queries, of the recall that is the goal's."""
    queries_per_second: float
    """Of a search for as many as the goal's recall counts, in one batch, on all threads of faiss."""
    milliseconds: float | None = None
    """Of a query that comes alone; None where that was not measured."""


@dataclass(frozen=True, kw_only=True)
class RecallReport:
    """What tuning an index found."""

    factory: str
    num_rows: int
    query_kind: str
    num_queries: int
    goal: float
    recall_at: int
    chosen: Measured
    """Measured on queries that the choice was not made with, where there are enough."""
    exact_queries_per_second: float
    reaches_goal: bool
    curve: tuple[Measured, ...] = field(default=())
    """Settings of which none is both slower and worse than another, from fast to thorough."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def to_text(self) -> str:
        """One line."""
        recalls = ", ".join(f"recall@{k} {value:.3f}" for k, value in self.chosen.recall.items())
        used = {name: value for name, value in asdict(self.chosen.settings).items() if value is not None}
        settings = ", ".join(f"{name} {value}" for name, value in used.items())
        exact = f" (exact: {self.exact_queries_per_second:,.0f})" if settings else ""
        return (
            f"{self.factory}{f' ({settings})' if settings else ''}: {recalls} of the exact search on "
            f"{self.num_queries} {self.query_kind} queries, {self.chosen.queries_per_second:,.0f} queries/s"
            f"{exact}"
        )


def make_queries(
    base: EmbeddingRows, texts: EmbeddingRows | None, num_queries: int, *, recall_at: int = 10, seed: int = 0
) -> tuple[Queries, float]:
    """Draw queries and search for them exactly.

    Args:
        base: what the index holds.
        texts: captions, none of which the index was built from; where there are none, rows of `base` are the
            queries.
        num_queries: at most so many.
        recall_at: as many neighbours are needed.
        seed: of the draw.

    Returns:
        The queries, and how many of them an exact search answers in a second.
    """
    source = base if texts is None else texts
    chosen = np.random.default_rng(seed).permutation(len(source))[:num_queries]
    vectors = source.take(chosen)
    own = chosen if texts is None else None
    k = min(len(base), max(*KS, recall_at) + (own is not None))
    began = time.perf_counter()
    _, neighbours = nearest(vectors, numbered_blocks(base.blocks()), k)
    seconds = time.perf_counter() - began
    if own is not None:
        neighbours = without(neighbours, own)
    kind = "image" if texts is None else "text"
    return Queries(kind=kind, vectors=vectors, neighbours=neighbours, own=own), len(vectors) / seconds


def numbered_blocks(blocks: Iterable[Float32s]) -> Iterator[tuple[Int64s, Float32s]]:
    """Blocks with the positions of their rows."""
    start = 0
    for block in blocks:
        yield np.arange(start, start + len(block)), block
        start += len(block)


def tune(
    index: VectorIndex, queries: Queries, *, factory: str, goal: float, recall_at: int, exact_rate: float
) -> RecallReport:
    """The fastest settings that reach a recall, found on one half of the queries and measured on the other.

    Args:
        index: with all its rows.
        queries: at least one.
        factory: how the index was made, for the report.
        goal: recall to reach, in (0, 1].
        recall_at: the k of that recall.
        exact_rate: queries per second of the exact search, for the report.

    Returns:
        The report; where no settings reach the goal, the most thorough ones are chosen.
    """
    half = len(queries.vectors) // 2 or 1
    first, second = _part(queries, slice(None, half)), _part(queries, slice(half, None))
    measured = _explore(index, first, goal, recall_at)
    at = str(recall_at)
    reaching = [one for one in measured if _surely_reaches(one, goal, at)]
    if reaching:
        fastest = sorted(reaching, key=lambda one: -one.queries_per_second)[:_FINALISTS]
        best = min(fastest, key=lambda one: _milliseconds_alone(index, first, one.settings, recall_at))
    else:
        best = max(measured, key=lambda one: one.recall[at])
    held_out = second if len(second.vectors) else first
    chosen = replace(
        measure(index, held_out, best.settings, recall_at),
        milliseconds=_milliseconds_alone(index, held_out, best.settings, recall_at),
    )
    return RecallReport(
        factory=factory,
        num_rows=len(index),
        query_kind=queries.kind,
        num_queries=len(second.vectors) or len(first.vectors),
        goal=goal,
        recall_at=recall_at,
        chosen=chosen,
        exact_queries_per_second=exact_rate,
        reaches_goal=best.recall[at] >= goal,
        curve=_frontier(measured, str(recall_at)),
    )


def measure(
    index: VectorIndex, queries: Queries, settings: SearchSettings, recall_at: int, ks: Sequence[int] = KS
) -> Measured:
    """Recall and speed of one setting.

    Recall@k is that of a search for `k`: a search for more looks at more candidates.

    Args:
        index: with all its rows.
        queries: at least one.
        settings: how thorough.
        recall_at: the speed is that of a search for so many.
        ks: recalls that are wanted beside recall@`recall_at`.
    """
    began = time.perf_counter()
    found = {recall_at: _find(index, queries, recall_at, settings)}
    seconds = time.perf_counter() - began
    recalls = _recalls(found[recall_at], queries.neighbours, recall_at)
    found |= {k: _find(index, queries, k, settings) for k in ks if k != recall_at}
    return Measured(
        settings=settings,
        recall={str(k): recall_of(found[k], queries.neighbours, k) for k in sorted(found)},
        recall_error=float(recalls.std() / len(recalls) ** 0.5),
        queries_per_second=len(queries.vectors) / seconds,
    )


def _explore(index: VectorIndex, queries: Queries, goal: float, recall_at: int) -> list[Measured]:
    """Settings from fast to thorough: doubling until the goal is reached, then in small steps around there.

    More lists need fewer candidates and fewer lists more, so the small steps follow that edge.
    """
    at = str(recall_at)
    k_factors = _K_FACTORS if index.refines else (None,)
    most = _widest(index)
    measured: list[Measured] = []

    def reaches(width: int, k_factor: int | None) -> bool:
        settings = _settings_of(index, width, k_factor)
        measured.append(measure(index, queries, settings, recall_at, ks=()))
        return _surely_reaches(measured[-1], goal, at)

    width = min(_MIN_EF_SEARCH if index.is_graph else 1, most)
    while not reaches(width, k_factors[-1]) and width < most:
        width = min(2 * width, most)
    place = len(k_factors) - 1
    for wider in _steps(width, most):
        while place >= 0 and reaches(wider, k_factors[place]):
            place -= 1
        if place < 0:
            break
    return measured


def _surely_reaches(measured: Measured, goal: float, at: str) -> bool:
    """Whether a recall is a standard error above the goal: the fastest of many is else a lucky one."""
    return measured.recall[at] - measured.recall_error >= goal


def _steps(width: int, most: int) -> list[int]:
    """Widths from above half of `width`, which did not do, to four times, none above `most`."""
    powers = np.arange(1 - _STEPS_PER_DOUBLING, 2 * _STEPS_PER_DOUBLING + 1) / _STEPS_PER_DOUBLING
    return sorted({min(max(round(width * 2**power), 1), most) for power in powers.tolist()})


def _widest(index: VectorIndex) -> int:
    return _MAX_EF_SEARCH if index.is_graph else index.num_lists or 1


def _settings_of(index: VectorIndex, width: int, k_factor: int | None) -> SearchSettings:
    if index.is_graph:
        return SearchSettings(ef_search=width)
    return SearchSettings(nprobe=width if index.num_lists else None, k_factor=k_factor)


def _milliseconds_alone(
    index: VectorIndex, queries: Queries, settings: SearchSettings, recall_at: int
) -> float:
    """Of one query in a search of its own: the mean over queries, of the best of some repeats."""
    some = queries.vectors[:_TIMED_ALONE]
    k = min(recall_at, len(index))
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        for row in range(len(some)):
            index.search(some[row : row + 1], k, settings)
        seconds.append(time.perf_counter() - began)
    return 1e3 * min(seconds) / len(some)


def _find(index: VectorIndex, queries: Queries, k: int, settings: SearchSettings) -> Int64s:
    has_own = queries.own is not None
    _, found = index.search(queries.vectors, min(k + has_own, len(index)), settings)
    return found if queries.own is None else without(found, queries.own)


def recall_of(found: Int64s, neighbours: Int64s, k: int) -> float:
    """Share of the first `k` exact neighbours that are among the first `k` found, in the mean over queries.

    Args:
        found: (Q, >= k or all) positions; -1 counts as nothing.
        neighbours: (Q, >= k or all) positions of the exact search.
        k: at least 1.
    """
    return float(_recalls(found, neighbours, k).mean()) if len(neighbours) else 0.0


def _recalls(found: Int64s, neighbours: Int64s, k: int) -> Float64s:
    """(Q,) the share of each query."""
    exact = neighbours[:, :k]
    shares = np.empty(len(exact))
    for start in range(0, len(exact), _QUERIES_AT_ONCE):
        some = slice(start, start + _QUERIES_AT_ONCE)
        shares[some] = (found[some, :k, None] == exact[some, None]).any(axis=1).mean(axis=1)
    return shares


def without(positions: Int64s, own: Int64s) -> Int64s:
    """Rows of positions less one of each: that of the query itself, else the last."""
    is_own = positions == own[:, None]
    is_own[~is_own.any(axis=1), -1] = True
    kept: Int64s = positions[~is_own].reshape(len(positions), -1)
    return kept


def write_report(folder: Path, reports: Mapping[str, RecallReport]) -> None:
    """Write the picture of recall against speed as a page, `recall.html`."""
    page = Page("Recall of the index", "Against the exact search over the same vectors.")
    for modality, report in reports.items():
        page.section(f"{modality}.index", report.to_text())
        at = str(report.recall_at)
        points = [(1e6 / one.queries_per_second, one.recall[at]) for one in report.curve]
        if len(points) > 1:
            title = f"recall@{at}, goal {report.goal:g}"
            page.charts([line_chart(title, {"": points}, x_label="µs a query, in a batch")])
        page.table(
            ("nprobe", "ef_search", "k_factor", f"recall@{at}", "queries/s"),
            [_row(one, at) for one in report.curve],
        )
    page.write(folder / "recall.html")


def _row(one: Measured, at: str) -> list[str]:
    settings = ("" if value is None else str(value) for value in asdict(one.settings).values())
    return [*settings, f"{one.recall[at]:.4f}", f"{one.queries_per_second:,.0f}"]


def _frontier(measured: Sequence[Measured], at: str) -> tuple[Measured, ...]:
    best, kept = -1.0, []
    for one in sorted(measured, key=lambda one: -one.queries_per_second):
        if one.recall[at] > best:
            best = one.recall[at]
            kept.append(one)
    return tuple(kept)


def _part(queries: Queries, places: slice) -> Queries:
    return Queries(
        kind=queries.kind,
        vectors=queries.vectors[places],
        neighbours=queries.neighbours[places],
        own=None if queries.own is None else queries.own[places],
    )
