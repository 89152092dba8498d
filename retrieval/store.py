"""A folder of embeddings: clip-retrieval's layout, with or without the manifest that `clipkit embed` adds.

    img_emb/img_emb_{i}.npy        (n, D), L2-normalised; row r is the image of metadata row r
    text_emb/text_emb_{i}.npy      (n, D), L2-normalised; row r is the caption of metadata row r
    metadata/metadata_{i}.parquet  n rows: `image_path`, `caption`, further columns
    more_text_emb/...              of clipkit: captions after the first, in the order of `more_captions`
    clipkit.json                   of clipkit: model id, settings, counts, sha256 of every file

The id of a row is its place over all files in the order of their names.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipkit.json_files import read_json

from .new_rows import Modality
from .rows import EmbeddingRows, Int64s, MetadataRows, Rows

MANIFEST_NAME = "clipkit.json"
FORMAT_VERSION = 1
IMAGES = "img_emb"
TEXTS = "text_emb"
MORE_TEXTS = "more_text_emb"
METADATA = "metadata"
MORE_CAPTIONS = "more_captions"
"""Metadata column: a row's captions after the first."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingFolder:
    """An opened folder; see `EmbeddingFolder.open`."""

    path: Path
    image_embeddings: EmbeddingRows | None
    text_embeddings: EmbeddingRows | None
    """Of the first caption of each row."""
    more_text_embeddings: EmbeddingRows | None
    """Of the captions after the first, over all rows; `rows_of_more_texts` says whose they are."""
    metadata_rows: MetadataRows
    manifest: Mapping[str, Any] | None
    """What `clipkit.json` holds; None in a folder that clipkit did not make."""

    @classmethod
    def open(cls, path: str | Path) -> EmbeddingFolder:
        """Open a folder and check by the headers of its files that they belong together.

        Raises:
            FileNotFoundError: there is no such folder, or it is none of embeddings.
            ValueError: files are missing, damaged or not aligned (the first one is named), the run that
                makes the folder has not ended, or it is of a newer clipkit.
        """
        folder = Path(path)
        manifest = _finished_manifest(folder)
        found = {name: sorted((folder / name).glob("*.npy")) for name in (IMAGES, TEXTS, MORE_TEXTS)}
        found[METADATA] = sorted((folder / METADATA).glob("*.parquet"))
        if manifest is not None:
            _check_listed(folder, manifest, itertools.chain(*found.values()))
        if not found[METADATA] or not (found[IMAGES] or found[TEXTS]):
            raise FileNotFoundError(
                f"{folder} has no embeddings: expected {METADATA}/ and {IMAGES}/ or {TEXTS}/ with files in "
                "it, as `clipkit embed` makes them"
            )
        metadata = MetadataRows(found.pop(METADATA))
        rows = {name: EmbeddingRows(paths) for name, paths in found.items() if paths}
        for name in (IMAGES, TEXTS):
            if name in rows:
                _check_aligned(rows[name], metadata)
        widths = {f"{name}/": part.shape[1] for name, part in rows.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(f"{folder} holds embeddings of different widths: {widths}")
        return cls(
            path=folder,
            image_embeddings=rows.get(IMAGES),
            text_embeddings=rows.get(TEXTS),
            more_text_embeddings=rows.get(MORE_TEXTS),
            metadata_rows=metadata,
            manifest=manifest,
        )

    @property
    def num_rows(self) -> int:
        """Rows of metadata, and of each of image and text embeddings that the folder has."""
        return len(self.metadata_rows)

    @property
    def embed_dim(self) -> int:
        """Width D of all embeddings."""
        part = self.text_embeddings if self.image_embeddings is None else self.image_embeddings
        assert part is not None
        return part.shape[1]

    @property
    def model_id(self) -> str | None:
        """Of the model that made the embeddings; None where the folder does not say."""
        return None if self.manifest is None else str(self.manifest["model_id"])

    @property
    def columns(self) -> Sequence[str]:
        """Of the metadata."""
        return self.metadata_rows.columns

    def vectors(self, modality: Modality) -> EmbeddingRows | None:
        """The embeddings of images or of (first) captions; None where the folder has none."""
        return self.image_embeddings if modality == "image" else self.text_embeddings

    def tables(self) -> Iterator[pa.Table]:
        """The metadata, file by file."""
        files = self.metadata_rows.files
        for start, end in zip(files.starts.tolist(), files.ends.tolist(), strict=True):
            yield self.metadata(np.arange(start, end))

    def metadata(self, rows: Rows, columns: Sequence[str] | None = None) -> pa.Table:
        """Metadata of any rows, in the order they are asked for; see `MetadataRows.take`."""
        return self.metadata_rows.take(rows, columns)

    def rows_of_more_texts(self) -> Int64s:
        """(M,) the row that each of `more_text_embeddings` belongs to; reads one column of all files."""
        if self.more_text_embeddings is None:
            return np.empty(0, np.int64)
        lists = self.metadata_rows.each(MORE_CAPTIONS)
        counts = [pc.fill_null(pc.list_value_length(captions), 0).to_numpy() for captions in lists]
        return np.repeat(np.arange(self.num_rows), np.concatenate(counts))


def check_format(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a manifest of something else, or of a format to come.

    Raises:
        ValueError: it is one.
    """
    if "embedded" not in manifest:
        raise ValueError(f"{folder} is no folder of embeddings: its {MANIFEST_NAME} is of something else")
    version = manifest.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"{folder} has format version {version}, this clipkit reads up to {FORMAT_VERSION}: upgrade it"
        )


def _finished_manifest(folder: Path) -> dict[str, Any] | None:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not (folder / MANIFEST_NAME).is_file():
        return None
    manifest = read_json(folder / MANIFEST_NAME)
    check_format(folder, manifest)
    if not manifest.get("complete"):
        raise ValueError(f"{folder} is not finished: run the same `clipkit embed` again, it goes on")
    return manifest


def _check_listed(folder: Path, manifest: Mapping[str, Any], paths: Iterable[Path]) -> None:
    found = {path.relative_to(folder).as_posix() for path in paths}
    for name in sorted(found ^ manifest["files"].keys()):
        if name in found:
            raise ValueError(f"{folder / name} is not listed in {MANIFEST_NAME}: move it elsewhere")
        raise ValueError(f"{folder / name} is missing: run the same `clipkit embed` again, it makes it anew")


def _check_aligned(rows: EmbeddingRows, metadata: MetadataRows) -> None:
    """Refuse embeddings that have not one row for each row of metadata, file by file."""
    ours, theirs = rows.files, metadata.files
    for path, beside in itertools.zip_longest(ours.paths, theirs.paths):
        if path is None or beside is None or _number(path) != _number(beside):
            lonely = min((one for one in (path, beside) if one is not None), key=_number)
            other = theirs if lonely is path else ours
            raise ValueError(f"{lonely} has no counterpart in {other.paths[0].parent}, they are not aligned")
    for path, size, beside, num_rows in zip(ours.paths, ours.sizes, theirs.paths, theirs.sizes, strict=True):
        if size != num_rows:
            raise ValueError(f"{path} has {size} rows, {beside.name} has {num_rows}: they are not aligned")


def _number(path: Path) -> str:
    return path.stem.rpartition("_")[2]
