"""An index that is searched: vectors of images (or texts), their ids, and their metadata.

    idx/current/
      image.index, text.index      faiss, inner product; row = position
      ids.npy                      (N,) int64: the id at each position, -1 where it was removed
      metadata/metadata_*.arrow    row = position; also as parquet
      clipkit.json                 model id, settings, counts, sha256 of every file

`image.index` and `metadata/` are clip-retrieval's: its `back` reads the folder `idx/current`, and a folder of
its making (`image.index`, `metadata/*.parquet`) can be opened here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .filters import Filter
from .index_faiss import ROWS_PER_BLOCK, Bools, SearchSettings, VectorIndex
from .index_metadata import METADATA, IndexMetadata
from .index_versions import CURRENT, changed_sizes, current_version, read_manifest
from .new_rows import Modality
from .rows import Float32s, Int64s

IDS_NAME = "ids.npy"
NOT_FOUND = -1
_EXACT_UP_TO = 20_000
"""Rows that a condition leaves, up to which all of them are compared."""
_QUERIES_AT_ONCE = 64
_MAX_MASKS = 32
_MAX_NORM_ERROR = 1e-2


@dataclass(frozen=True, kw_only=True)
class Hits:
    """What was found for Q queries; the best first, equally similar ones by rising id."""

    ids: Int64s
    """(Q, k); -1 where there were fewer."""
    similarities: Float32s
    """(Q, k) cosines; -inf where there were fewer."""


class SearchIndex:
    """One version of an index; it does not change, and threads may share it. See `SearchIndex.open`."""

    def __init__(
        self,
        path: Path,
        vectors: VectorIndex,
        ids: Int64s,
        metadata: IndexMetadata,
        manifest: Mapping[str, Any],
        about: Mapping[str, Any],
    ) -> None:
        self.path = path
        """As it was opened."""
        self.manifest = manifest
        """What `clipkit.json` holds; empty for an index of another tool."""
        self._vectors, self._metadata, self._ids = vectors, metadata, ids
        present = np.flatnonzero(ids >= 0)
        self._alive = None if len(present) == len(ids) else ids >= 0
        self._places = present[np.argsort(ids[present], kind="stable")]
        # Held, since gathering all of them for ten rows takes longer than reading those.
        self._known: Int64s = ids[self._places]
        self._masks: dict[Filter, Bools] = {}
        self.factory: str = about.get("factory", "")
        """String of `faiss.index_factory`; empty for an index of another tool."""
        self.settings = SearchSettings(**about.get("settings", {}))
        """How thorough searches are, as tuned."""

    @classmethod
    def open(cls, path: str | Path, *, modality: Modality | None = None) -> SearchIndex:
        """Open the current version, mapping files where faiss can; checksums are read by `index check` only.

        Args:
            path: a folder of `clipkit index`, or one with image.index (or text.index) and metadata/.
            modality: which vectors to search; by default those of images where there are any.

        Raises:
            FileNotFoundError: there is no index.
            ValueError: it is damaged or not complete.
            OSError: faiss is not installed.
        """
        root = Path(path)
        while True:
            version = current_version(root)
            try:
                return cls._open(root, version or root, modality)
            except (FileNotFoundError, ValueError):
                # A writer may have replaced the version while it was being opened.
                if current_version(root) == version:
                    raise

    @classmethod
    def _open(cls, root: Path, folder: Path, modality: Modality | None) -> SearchIndex:
        own = (folder / IDS_NAME).is_file() or folder != root
        manifest = read_manifest(folder) if own else {}
        if own and (problems := changed_sizes(folder, manifest)):
            raise ValueError(f"{problems[0]}: the index is damaged, build it again")
        if not any(folder.glob("*.index")):
            raise FileNotFoundError(f"there is no index at {folder}: build one with `clipkit index build`")
        kind = modality or _only_modality(folder)
        file = folder / f"{kind}.index"
        if not file.exists():
            raise FileNotFoundError(f"{folder} has no {kind}.index: build one with `clipkit index build`")
        vectors = VectorIndex.read(file, mapped=True)
        metadata = IndexMetadata.open(folder)
        ids = np.load(folder / IDS_NAME) if own else np.arange(len(vectors))
        if not len(vectors) == len(ids) == len(metadata):
            raise ValueError(
                f"{folder} does not belong together: {len(vectors)} vectors, {len(ids)} ids, {len(metadata)} "
                f"rows of {METADATA}"
            )
        about = manifest["indexes"][kind] if own else {}
        return cls(root, vectors, ids, metadata, manifest, about)

    @property
    def model_id(self) -> str | None:
        """Of the model that made the vectors; None where the index does not say."""
        return self.manifest.get("model_id")

    @property
    def model_source(self) -> str | None:
        """What that model was loaded from; None where the index does not say."""
        return self.manifest.get("model") or None

    @property
    def embed_dim(self) -> int:
        """Width D."""
        return self._vectors.embed_dim

    @property
    def num_rows(self) -> int:
        """Rows that can be found."""
        return len(self._places)

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the metadata."""
        return self._metadata.columns

    @property
    def version(self) -> int:
        """Rises with every change; 0 for an index of another tool."""
        return int(self.manifest.get("version", 0))

    @property
    def ids(self) -> Int64s:
        """(num_rows,) all ids, rising."""
        found: Int64s = self._known.copy()
        return found

    def is_current(self) -> bool:
        """Whether no newer version has been written since this one was opened."""
        version = current_version(self.path)
        return version is None or version.name in (CURRENT, f"v{self.version:06d}")

    def search(
        self,
        queries: Float32s,
        k: int,
        *,
        where: Filter | None = None,
        settings: SearchSettings | None = None,
    ) -> Hits:
        """The most similar rows.

        With a condition that few rows fulfil, all of those are compared; else the search is as much wider as
        there are fewer rows to be found. Where it still finds fewer than `k`, all rows are compared.

        Args:
            queries: (Q, D), rows L2-normalised.
            k: at least 1.
            where: a condition on metadata.
            settings: how thorough; by default as tuned.

        Raises:
            ValueError: queries of another shape, not finite or not normalised; an unknown column.
        """
        rows = checked_unit_rows(queries, self.embed_dim, "query")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        allowed = self._allowed(where)
        num_allowed = len(self._ids) if allowed is None else int(allowed.sum())
        num_wanted = min(k, num_allowed)
        similarities = np.full((len(rows), k), -np.inf, np.float32)
        ids = np.full((len(rows), k), NOT_FOUND, np.int64)
        if not num_wanted or not len(rows):
            return Hits(ids=ids, similarities=similarities)
        chosen = self.settings if settings is None else settings
        if where is not None and num_allowed <= _EXACT_UP_TO:
            found, positions = self._compare_all(rows, num_wanted, allowed)
        else:
            chosen = chosen.widened(len(self._ids) / num_allowed)
            found, positions = self._vectors.search(rows, num_wanted, chosen, allowed)
            short = np.flatnonzero((positions < 0).any(axis=1))
            if len(short):
                found[short], positions[short] = self._compare_all(rows[short], num_wanted, allowed)
        # Stable by id within equal similarities.
        found_ids = self._ids[positions]
        order = np.lexsort((found_ids, -found), axis=1)
        similarities[:, :num_wanted] = np.take_along_axis(found, order, axis=1)
        ids[:, :num_wanted] = np.take_along_axis(found_ids, order, axis=1)
        return Hits(ids=ids, similarities=similarities)

    def exact(self, queries: Float32s, k: int) -> Hits:
        """As `search`, by comparing every stored vector."""
        num_wanted = min(k, self.num_rows)
        found, positions = self._compare_all(queries, num_wanted, self._alive)
        return Hits(ids=self._ids[positions], similarities=found)

    def metadata(
        self, ids: Sequence[int] | Int64s, columns: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Rows of metadata in the order of `ids`.

        Raises:
            ValueError: an id or a column that there is not.
        """
        return self._metadata.take(self._positions(ids), columns)

    def vectors(self, ids: Sequence[int] | Int64s) -> Float32s:
        """(n, D) stored vectors; decoded from codes where the index keeps nothing better.

        Raises:
            ValueError: an id that there is not.
        """
        return self._vectors.vectors(self._positions(ids))

    @property
    def keeps_vectors(self) -> bool:
        """Whether `vectors` gives what was added, up to rounding to fp16."""
        return self._vectors.keeps_vectors

    def _positions(self, ids: Sequence[int] | Int64s) -> Int64s:
        wanted = np.asarray(ids, np.int64)
        known = self._known
        places = np.minimum(np.searchsorted(known, wanted), max(len(known) - 1, 0))
        unknown = wanted[known[places] != wanted] if len(known) else wanted
        if len(unknown):
            raise ValueError(f"there is no row with id {unknown[0]} in {self.path}")
        positions: Int64s = self._places[places] if len(known) else np.empty(0, np.int64)
        return positions

    def _allowed(self, where: Filter | None) -> Bools | None:
        if where is None:
            return self._alive
        mask = self._masks.get(where)
        if mask is None:
            mask = self._metadata.mask(where)
            if self._alive is not None:
                mask &= self._alive
            if len(self._masks) >= _MAX_MASKS:
                self._masks = {}
            self._masks[where] = mask
        return mask

    def _compare_all(self, rows: Float32s, k: int, allowed: Bools | None) -> tuple[Float32s, Int64s]:
        places = np.arange(len(self._ids)) if allowed is None else np.flatnonzero(allowed)
        blocks = (
            (
                places[start : start + ROWS_PER_BLOCK],
                self._vectors.vectors(places[start : start + ROWS_PER_BLOCK]),
            )
            for start in range(0, len(places), ROWS_PER_BLOCK)
        )
        return nearest(rows, blocks, k)


def nearest(queries: Float32s, blocks: Any, k: int) -> tuple[Float32s, Int64s]:
    """The `k` most similar of all rows, by comparing every one; ties go to the row that comes first.

    Args:
        queries: (Q, D).
        blocks: (positions (n,), rows (n, D)) one after another, at least `k` rows in all.
        k: at least 1.

    Returns:
        (Q, k) similarities and positions, the best first.
    """
    starts = range(0, len(queries), _QUERIES_AT_ONCE)
    parts = [queries[start : start + _QUERIES_AT_ONCE] for start in starts]
    best = [(np.empty((len(part), 0), np.float32), np.empty((len(part), 0), np.int64)) for part in parts]
    for positions, rows in blocks:
        for number, part in enumerate(parts):
            best[number] = _better(*best[number], part @ rows.T, positions, k)
    return np.concatenate([part[0] for part in best]), np.concatenate([part[1] for part in best])


def _better(
    best: Float32s, best_places: Int64s, scores: Float32s, positions: Int64s, k: int
) -> tuple[Float32s, Int64s]:
    """The `k` highest of those known (Q, <= k), sorted, and of new scores (Q, n); of equal ones the first."""
    num_queries, num_best = best.shape
    k = min(k, num_best + scores.shape[1])
    if num_best == k:
        rows, columns = np.nonzero(scores > best[:, -1:])
    else:
        num_new = min(k, scores.shape[1])
        lowest = np.partition(scores, -num_new, axis=1)[:, -num_new, None]
        rows, columns = np.nonzero(scores >= lowest)
    rows = np.concatenate([np.repeat(np.arange(num_queries), num_best), rows])
    values = np.concatenate([best.ravel(), scores[rows[best.size :], columns]])
    places = np.concatenate([best_places.ravel(), positions[columns]])
    order = np.lexsort((-values, rows))
    firsts = np.searchsorted(rows[order], np.arange(num_queries))
    chosen = order[firsts[:, None] + np.arange(k)]
    return values[chosen], places[chosen]


def checked_unit_rows(rows: Float32s, embed_dim: int, name: str) -> Float32s:
    """Rows as contiguous fp32.

    Raises:
        ValueError: not (n, embed_dim), or a row is not finite or not L2-normalised.
    """
    if rows.ndim != 2 or rows.shape[1] != embed_dim:
        raise ValueError(f"expected a {name} of shape (n, {embed_dim}), got {rows.shape}")
    unit = np.ascontiguousarray(rows, np.float32)
    norms = np.sqrt(np.einsum("nd,nd->n", unit, unit))
    bad = np.flatnonzero(~(np.abs(norms - 1) <= _MAX_NORM_ERROR))
    if len(bad):
        raise ValueError(
            f"{name} {bad[0]} has norm {norms[bad[0]]:.3g}, expected L2-normalised rows (norm 1)"
        )
    return unit


def _only_modality(folder: Path) -> Modality:
    return "image" if (folder / "image.index").exists() else "text"
