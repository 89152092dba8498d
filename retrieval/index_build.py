"""Build an index from a folder of embeddings."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from clipkit.console import Meter, progress

from .index import IDS_NAME, checked_unit_rows
from .index_faiss import ROWS_PER_BLOCK, VectorIndex
from .index_metadata import write_part
from .index_tune import RecallReport, make_queries, tune, write_report
from .index_versions import Draft, new_version
from .new_rows import Modality, Vectors
from .rows import EmbeddingRows
from .store import EmbeddingFolder

_FLAT_BELOW = 10_000
_TRAINING_ROWS_PER_LIST = 100
_MIN_TRAINING_ROWS = 20_000


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """How an index is built."""

    kind: str = "auto"
    """`flat` is exact; `hnsw` a graph; anything else a string of `faiss.index_factory`. `auto` is flat below
    10,000 rows, else an inverted file of 4-bit codes whose candidates are compared again by their vectors."""
    embed: Literal["auto", "image", "text", "both"] = "auto"
    """Which are indexed: by default those of images where the folder has any, else of texts."""
    memory_gb: float | None = None
    """What `auto` may use for vectors; by default half of the machine's."""
    recall: float = 0.95
    """Goal of tuning, against the exact search."""
    recall_at: int = 10
    """The k of that recall."""
    num_queries: int = 1000
    """Captions (or, where there are none, images) to tune and measure with; one half for each."""
    seed: int = 0
    """Of the draws of training rows and queries."""

    def __post_init__(self) -> None:
        if not 0 < self.recall <= 1:
            raise ValueError(f"--recall must be in (0, 1], got {self.recall}")
        for name in ("recall_at", "num_queries"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.memory_gb is not None and self.memory_gb <= 0:
            raise ValueError(f"--memory-gb must be above 0, got {self.memory_gb}")


def build_index(
    embeddings: str | Path,
    out: str | Path,
    settings: IndexSettings | None = None,
    *,
    replace: bool = False,
    show: bool = False,
) -> dict[str, RecallReport]:
    """Build an index; when this is interrupted, what was at `out` before is untouched.

    Args:
        embeddings: a folder of `clipkit embed` or clip-retrieval.
        out: folder of the index.
        settings: how.
        replace: whether an index at `out` may be replaced.
        show: show progress on stderr.

    Returns:
        What tuning found, by `image` and `text`.

    Raises:
        ValueError: the folder is damaged or empty, its rows are not normalised, or the settings do not fit.
        OSError: another process is writing to `out`, or faiss is not installed.
    """
    settings = settings or IndexSettings()
    folder = EmbeddingFolder.open(embeddings)
    if not folder.num_rows:
        raise ValueError(f"{folder.path} has no rows to index")
    modalities = modalities_of(folder, settings)
    with new_version(Path(out)) as draft:
        if draft.previous is not None and not replace:
            raise ValueError(f"{out} has an index already: add --replace, or use `clipkit index add`")
        reports: dict[str, RecallReport] = {}
        for modality in modalities:
            index, factory = _trained(required_rows(folder, modality), settings, show=show)
            with progress(f"{modality}s", folder.num_rows, show=show) as meter:
                add_rows(index, required_rows(folder, modality), f"{modality} embedding", meter)
            reports[modality] = _tuned(folder, modality, index, factory, settings)
            index.write(draft.folder / f"{modality}.index")
        np.save(draft.folder / IDS_NAME, np.arange(folder.num_rows))
        for number, table in enumerate(folder.tables()):
            write_part(draft.folder, number, table)
        _describe(draft, folder, reports)
        write_report(draft.folder, reports)
    return reports


def add_rows(index: VectorIndex, rows: Vectors, name: str, meter: Meter | None = None) -> None:
    """Append all rows, block by block.

    Raises:
        ValueError: a row is not finite or not normalised.
    """
    for block in rows.blocks(ROWS_PER_BLOCK):
        index.add(checked_unit_rows(block, index.embed_dim, name))
        if meter is not None:
            meter.advance(len(block))


def choose_factory(num_rows: int, embed_dim: int, kind: str, memory_bytes: float) -> str:
    """The faiss factory string for a kind of `IndexSettings`.

    Args:
        num_rows: N.
        embed_dim: D.
        kind: `auto`, `flat`, `hnsw`, or a factory string.
        memory_bytes: what `auto` may use.
    """
    if kind == "flat" or (kind == "auto" and num_rows < _FLAT_BELOW):
        return "Flat"
    if kind == "hnsw":
        return "HNSW32,Flat"
    if kind != "auto":
        return kind
    lists = 2 ** round(np.log2(1.6 * num_rows**0.5))
    if embed_dim % 2:
        return f"IVF{lists},SQfp16"
    codes = f"IVF{lists},PQ{embed_dim // 2}x4fs"
    bytes_of_codes = embed_dim / 4 + 8
    if num_rows * (bytes_of_codes + 2 * embed_dim) <= memory_bytes:
        return f"{codes},Refine(SQfp16)"
    if num_rows * (bytes_of_codes + embed_dim) <= memory_bytes:
        return f"{codes},Refine(SQ8)"
    return codes


def required_rows(folder: EmbeddingFolder, modality: Modality) -> EmbeddingRows:
    """The embeddings of images or of captions.

    Raises:
        ValueError: the folder has none.
    """
    rows = folder.vectors(modality)
    if rows is None:
        raise ValueError(f"{folder.path} has no {modality} embeddings: choose --embed otherwise")
    return rows


def modalities_of(folder: EmbeddingFolder, settings: IndexSettings) -> tuple[Modality, ...]:
    """Which vectors of a folder the settings ask for."""
    if settings.embed == "both":
        return ("image", "text")
    if settings.embed == "auto":
        return ("text",) if folder.image_embeddings is None else ("image",)
    return (settings.embed,)


def _trained(rows: EmbeddingRows, settings: IndexSettings, *, show: bool) -> tuple[VectorIndex, str]:
    num_rows, embed_dim = rows.shape
    memory = _half_of_memory() if settings.memory_gb is None else settings.memory_gb * 1e9
    factory = choose_factory(num_rows, embed_dim, settings.kind, memory)
    index = VectorIndex.make(factory, embed_dim)
    wanted = max(_TRAINING_ROWS_PER_LIST * (index.num_lists or 0), _MIN_TRAINING_ROWS)
    chosen = np.random.default_rng(settings.seed).permutation(num_rows)[:wanted]
    with progress(f"training {factory}", 1, show=show) as meter:
        index.train(checked_unit_rows(rows.take(np.sort(chosen)), embed_dim, "training row"))
        meter.advance()
    return index, factory


def _half_of_memory() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    except (ValueError, OSError):
        return 4e9


def _tuned(
    folder: EmbeddingFolder, modality: Modality, index: VectorIndex, factory: str, settings: IndexSettings
) -> RecallReport:
    base = required_rows(folder, modality)
    others = folder.vectors("text" if modality == "image" else "image")
    queries, exact_rate = make_queries(
        base, others, settings.num_queries, recall_at=settings.recall_at, seed=settings.seed
    )
    return tune(
        index,
        queries,
        factory=factory,
        goal=settings.recall,
        recall_at=settings.recall_at,
        exact_rate=exact_rate,
    )


def _describe(draft: Draft, folder: EmbeddingFolder, reports: dict[str, RecallReport]) -> None:
    made = folder.manifest or {}
    draft.manifest.update(
        model_id=folder.model_id,
        model=made.get("model"),
        embed_dim=folder.embed_dim,
        num_rows=folder.num_rows,
        next_id=folder.num_rows,
        indexes={
            modality: {
                "factory": report.factory,
                "settings": asdict(report.chosen.settings),
                "recall": report.to_json(),
            }
            for modality, report in reports.items()
        },
    )
