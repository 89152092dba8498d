"""Add, remove and replace rows of an index without building it anew.

Removed rows keep their position and have no id; when they are many, and the index keeps the vectors of the
others, those are written anew without them. Ids are never used twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .index import IDS_NAME, NOT_FOUND
from .index_build import add_rows
from .index_faiss import ROWS_PER_BLOCK, VectorIndex
from .index_metadata import IndexMetadata, write_part
from .index_versions import Draft, current_version, new_version, read_manifest
from .new_rows import NewRows
from .rows import Int64s
from .store import EmbeddingFolder

PATH_COLUMN = "image_path"
SHARD_COLUMN = "shard"
_REMOVED_SHARE = 0.2
"""From which on the others are written anew."""


def add(path: str | Path, embeddings: str | Path) -> Int64s:
    """Add the rows of a folder of embeddings; as `add_new`."""
    return add_new(path, EmbeddingFolder.open(embeddings))


def add_new(path: str | Path, rows: NewRows) -> Int64s:
    """Add rows.

    Returns:
        (N,) their ids, in the order of the rows.

    Raises:
        ValueError: they are of another model or width, lack embeddings that the index holds, or some are in
            the index already.
        OSError: another process is writing.
    """
    with _change(path) as change:
        change.check_fits(rows)
        known = change.ids_of_names()
        twice = [name for name in row_names(rows) if name in known]
        if twice:
            raise ValueError(
                f"{len(twice)} rows of {rows.path} are in the index already, the first is {twice[0]}: use "
                "`clipkit index update`"
            )
        change.keep(change.ids >= 0)
        ids = change.fresh_ids(rows.num_rows)
        change.append(rows, ids)
    return ids


def update(path: str | Path, embeddings: str | Path) -> int:
    """Replace the rows that have the same `row_name`; they keep their ids.

    Returns:
        How many.

    Raises:
        ValueError: as of `add`; or a row of the folder is not in the index, or more than once.
        OSError: another process is writing.
    """
    folder = EmbeddingFolder.open(embeddings)
    with _change(path) as change:
        change.check_fits(folder)
        names = row_names(folder)
        if None in names:
            raise ValueError(f"{folder.path} has rows without {PATH_COLUMN}, which cannot be looked up")
        ids = change.find([name for name in names if name is not None])
        change.keep((change.ids >= 0) & ~np.isin(change.ids, ids))
        change.append(folder, ids)
    return folder.num_rows


def remove(path: str | Path, *, ids: Sequence[int] = (), paths: Sequence[str] = ()) -> int:
    """Remove rows by id or by `row_name`.

    Returns:
        How many.

    Raises:
        ValueError: there is no such row.
        OSError: another process is writing.
    """
    with _change(path) as change:
        unknown = np.setdiff1d(np.asarray(ids, np.int64), change.ids[change.ids >= 0])
        if len(unknown):
            raise ValueError(f"there is no row with id {unknown[0]} in {path}")
        wanted = np.union1d(np.asarray(ids, np.int64), change.find(paths))
        change.keep((change.ids >= 0) & ~np.isin(change.ids, wanted))
    return len(wanted)


@contextmanager
def _change(path: str | Path) -> Iterator[_Change]:
    root = Path(path)
    if current_version(root) is None:
        raise FileNotFoundError(f"{root} has no index of clipkit's: build one with `clipkit index build`")
    with new_version(root) as draft:
        change = _Change(draft)
        yield change
        change.write()


class _Change:
    """The version that is being made out of the one before."""

    def __init__(self, draft: Draft) -> None:
        assert draft.previous is not None
        self._draft, self._previous = draft, draft.previous
        self._manifest = read_manifest(self._previous)
        self._metadata = IndexMetadata.open(self._previous)
        self._indexes = {
            name: VectorIndex.read(self._previous / f"{name}.index", mapped=False)
            for name in self._manifest["indexes"]
        }
        self.ids: Int64s = np.load(self._previous / IDS_NAME)
        self._next_id = int(self._manifest["next_id"])
        self._num_parts = 0

    def check_fits(self, rows: NewRows) -> None:
        """Refuse embeddings of another model, of another width, or of not all that is indexed."""
        own = self._manifest.get("model_id")
        if rows.model_id != own:
            raise ValueError(
                f"{rows.path} was made by model {_short(rows.model_id)}, the index by {_short(own)}: "
                "embed with the model of the index"
            )
        if rows.embed_dim != self._manifest["embed_dim"]:
            raise ValueError(
                f"{rows.path} has width {rows.embed_dim}, the index {self._manifest['embed_dim']}"
            )
        for modality in self._indexes:
            if rows.vectors(modality) is None:
                raise ValueError(f"{rows.path} has no {modality} embeddings, which the index holds")

    def ids_of_names(self) -> dict[str, list[int]]:
        """Ids by `row_name`."""
        columns = [self._metadata.column(name) for name in (PATH_COLUMN, SHARD_COLUMN)]
        found: dict[str, list[int]] = {}
        for row_id, path, shard in zip(self.ids.tolist(), *columns, strict=True):
            name = row_name({PATH_COLUMN: path, SHARD_COLUMN: shard})
            if row_id >= 0 and name is not None:
                found.setdefault(name, []).append(row_id)
        return found

    def find(self, names: Sequence[str]) -> Int64s:
        """(n,) the id of each `row_name`, each of which must be there once."""
        known = self.ids_of_names() if names else {}
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]} was given more than once")
        for name in names:
            if len(known.get(name, ())) != 1:
                there = f"{len(known[name])} rows have" if name in known else "no row has"
                raise ValueError(f"{there} the {PATH_COLUMN} {name}, expected one")
        return np.array([known[name][0] for name in names], np.int64)

    def fresh_ids(self, count: int) -> Int64s:
        """(count,) ids that no row has had."""
        first, self._next_id = self._next_id, self._next_id + count
        return np.arange(first, self._next_id)

    def keep(self, kept: Any) -> None:
        """Of the rows of the version before, keep those at these positions (N,)."""
        num_kept, num_rows = int(kept.sum()), len(kept)
        all_flat = all(index.is_flat for index in self._indexes.values())
        can_compact = num_kept and all(index.keeps_vectors for index in self._indexes.values())
        if can_compact and num_kept < num_rows * (1 if all_flat else 1 - _REMOVED_SHARE):
            self._compact(kept)
            return
        self.ids = np.where(kept, self.ids, NOT_FOUND)
        for name in self._manifest["files"]:
            if name.startswith("metadata/"):
                self._draft.take_over(name)
                self._num_parts += name.endswith(".arrow")

    def _compact(self, kept: Any) -> None:
        places = np.flatnonzero(kept)
        for modality, index in self._indexes.items():
            stored = VectorIndex.read(self._previous / f"{modality}.index", mapped=True)
            index.clear()
            for start in range(0, len(places), ROWS_PER_BLOCK):
                index.add(stored.vectors(places[start : start + ROWS_PER_BLOCK]))
        for part in self._metadata.kept(kept):
            self._write_part(part)
        self.ids = self.ids[places]

    def append(self, rows: NewRows, ids: Int64s) -> None:
        """Add rows, row r with `ids[r]`."""
        for modality, index in self._indexes.items():
            vectors = rows.vectors(modality)
            assert vectors is not None
            add_rows(index, vectors, f"{modality} embedding")
        for table in rows.tables():
            self._write_part(table)
        self.ids = np.concatenate([self.ids, ids])

    def _write_part(self, table: Any) -> None:
        write_part(self._draft.folder, self._num_parts, table)
        self._num_parts += 1

    def write(self) -> None:
        """Write what is not written yet."""
        for modality, index in self._indexes.items():
            index.write(self._draft.folder / f"{modality}.index")
        np.save(self._draft.folder / IDS_NAME, self.ids)
        if "recall.html" in self._manifest["files"]:
            self._draft.take_over("recall.html")
        kept = ("model_id", "model", "embed_dim", "indexes")
        self._draft.manifest.update({name: self._manifest[name] for name in kept})
        self._draft.manifest.update(num_rows=int((self.ids >= 0).sum()), next_id=self._next_id)


def row_name(row: Mapping[str, Any]) -> str | None:
    """What a row is looked up by: its image_path; of a picture in a tar, `shard/image_path`."""
    path, shard = row.get(PATH_COLUMN), row.get(SHARD_COLUMN)
    return path if path is None or shard is None else f"{shard}/{path}"


def row_names(rows: NewRows) -> list[str | None]:
    """The `row_name` of every row."""
    columns = [name for name in (PATH_COLUMN, SHARD_COLUMN) if name in rows.columns]
    if not columns:
        return [None] * rows.num_rows
    return [row_name(row) for table in rows.tables() for row in table.select(columns).to_pylist()]


def _short(model_id: str | None) -> str:
    return "unknown" if model_id is None else model_id[:12]
