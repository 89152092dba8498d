"""Indexes on the disk, as `clipkit index` makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .. import index_change
from ..index import SearchIndex
from ..index_versions import current_version, read_manifest
from ..new_rows import Modality, RowsInMemory
from .catalog import Place, Vector

TEXT_SUFFIX = "-text"


class Folders:
    """Opens `SearchIndex`es, and changes them as `clipkit index add` and `remove` do: in a new version."""

    def open(self, place: Place) -> SearchIndex:
        """The current version, or an index of clip-retrieval."""
        return SearchIndex.open(place.path, modality=place.modality)

    def add(self, place: Place, vectors: Vector, metadata: Sequence[Mapping[str, Any]]) -> list[int]:
        """Add rows.

        Args:
            place: an index of clipkit's with one kind of vectors.
            vectors: (N, D), L2-normalised.
            metadata: N rows.

        Returns:
            Their ids.

        Raises:
            ValueError: the index has vectors of images and of texts, or a row is in it already.
            OSError: another process is writing, or this is no index of clipkit's.
        """
        version = current_version(place.path)
        if version is None:
            raise OSError("it was made by another tool, and can only be searched")
        manifest = read_manifest(version)
        kinds: list[Modality] = sorted(manifest["indexes"])
        if len(kinds) > 1:
            raise ValueError("the index has vectors of images and texts: add rows with `clipkit index add`")
        rows = requested_rows(kinds[0], manifest.get("model_id"), vectors, metadata)
        ids: list[int] = index_change.add_new(place.path, rows).tolist()
        return ids

    def remove(self, place: Place, ids: Sequence[int]) -> None:
        """Remove rows.

        Raises:
            ValueError: an id is not there.
            OSError: another process is writing, or this is no index of clipkit's.
        """
        try:
            index_change.remove(place.path, ids=ids)
        except ValueError as error:
            raise ValueError("there is no row with one of these ids") from error


def places_of(paths: Mapping[str, Path]) -> dict[str, Place]:
    """Every index by its name; the texts of a folder that has images and texts are the index `NAME-text`."""
    places = {}
    for name, path in paths.items():
        folder = current_version(path) or path
        has_both = (folder / "image.index").exists() and (folder / "text.index").exists()
        places[name] = Place(path=path, modality="image" if has_both else None)
        if has_both and name + TEXT_SUFFIX not in paths:
            places[name + TEXT_SUFFIX] = Place(path=path, modality="text")
    return places


def requested_rows(
    kind: Modality, model_id: str | None, vectors: Vector, metadata: Sequence[Mapping[str, Any]]
) -> RowsInMemory:
    """What a request brought, with all fields of its metadata; a row without one of them has null there.

    Raises:
        ValueError: a field holds what a table cannot, such as values of different types; or there is none.
    """
    names = dict.fromkeys(name for row in metadata for name in row)
    if not names:
        raise ValueError("metadata: expected a field in at least one row, such as image_path, got none")
    try:
        table = pa.table({name: [row.get(name) for row in metadata] for name in names})
        # Not every table can be written, as it is with the index: one with an empty object cannot.
        pq.write_table(table.slice(0, 0), pa.BufferOutputStream())
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"metadata: {error}") from error
    return RowsInMemory("the request", kind, vectors, table, model_id)
