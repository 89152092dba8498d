"""Indexes on the disk, as `clipkit index` makes them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import index_change
from ..index import SearchIndex
from ..index_versions import current_version, read_manifest
from ..store import FORMAT_VERSION, IMAGES, MANIFEST_NAME, METADATA, TEXTS
from .catalog import Place, Vector

TEXT_SUFFIX = "-text"
_FOLDERS = {"image": IMAGES, "text": TEXTS}


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
        with tempfile.TemporaryDirectory(prefix="clipkit-serve-") as folder:
            manifest = _manifest(place)
            write_embeddings(
                Path(folder), sorted(manifest["indexes"]), manifest.get("model_id"), vectors, metadata
            )
            try:
                ids: list[int] = index_change.add(place.path, folder).tolist()
            except ValueError as error:
                raise ValueError(str(error).replace(folder, "the request")) from error
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


def _manifest(place: Place) -> dict[str, Any]:
    version = current_version(place.path)
    if version is None:
        raise OSError("it was made by another tool, and can only be searched")
    return read_manifest(version)


def write_embeddings(
    folder: Path,
    kinds: Sequence[str],
    model_id: str | None,
    vectors: Vector,
    metadata: Sequence[Mapping[str, Any]],
) -> None:
    """The rows as a folder of embeddings of the index's model, which `clipkit index add` takes."""
    if len(kinds) > 1:
        raise ValueError(
            f"the index has vectors of {' and '.join(kinds)}s: add rows with `clipkit index add`"
        )
    kind = _FOLDERS[kinds[0]]
    try:
        table = pa.Table.from_pylist(list(metadata))
    except pa.ArrowException as error:
        raise ValueError(f"metadata: {error}") from error
    names = {kind: f"{kind}/{kind}_0.npy", METADATA: f"{METADATA}/{METADATA}_0.parquet"}
    for name in names.values():
        (folder / name).parent.mkdir()
    np.save(folder / names[kind], vectors.astype(np.float16))
    pq.write_table(table, folder / names[METADATA])
    if model_id:
        stated = {
            "format_version": FORMAT_VERSION,
            "embedded": len(vectors),
            "complete": True,
            "model_id": model_id,
            "files": {name: {} for name in names.values()},
        }
        (folder / MANIFEST_NAME).write_text(json.dumps(stated), encoding="utf-8")
