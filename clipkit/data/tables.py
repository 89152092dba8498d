"""Samples listed in a table of image paths and captions (open_clip's CSV, or parquet)."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipkit.data import problems
from clipkit.data.problems import SampleError
from clipkit.data.samples import RawSample, SampleKeys, Source, clean_captions, parse_label

SEGMENT_SIZE = 10_000
"""Samples that are treated as one shard where the files are not in shards."""

Row = tuple[str | None, str | None, str | None]
"""Image, caption and label."""


class TableSource(Source):
    """One sample for every image in a table; rows with the same path are the captions of one image."""

    def __init__(self, name: str, path: Path, keys: SampleKeys) -> None:
        super().__init__(name)
        self._keys = keys
        self._folder = path.parent
        samples: dict[str, list[str]] = {}
        labels: dict[str, str] = {}
        for number, (image, caption, label) in enumerate(table_rows(path, keys), start=1):
            if not image:
                self.problems.add(problems.MISSING_IMAGE, [f"{path.name}: row {number}"])
            elif caption is None and "caption" in keys.require:
                self.problems.add(problems.MISSING_CAPTION, [f"{path.name}: row {number}"])
            elif not label and "label" in keys.require:
                self.problems.add(problems.MISSING_LABEL, [f"{path.name}: row {number}"])
            else:
                samples.setdefault(image, []).extend([caption] if caption is not None else [])
                if label:
                    labels[image] = label
        # Arrow keeps millions of strings in a few buffers, which forked workers share.
        self._images = pa.array(list(samples), type=pa.large_string())
        self._captions = pa.array(list(samples.values()), type=pa.large_list(pa.large_string()))
        self._labels = pa.array([labels.get(image) for image in samples], type=pa.large_string())
        self.sizes_per_shard = segment_sizes(len(samples))

    def read(self, index: int) -> RawSample:
        """Read sample `index`."""
        key = self.where(index)
        label = self._labels[index].as_py()
        return RawSample(
            key,
            read_file(self._folder / key),
            clean_captions(self._captions[index].as_py(), required="caption" in self._keys.require),
            None if label is None else parse_label(label),
        )

    def where(self, index: int) -> str:
        """The image's path as the table has it."""
        path: str = self._images[index].as_py()
        return path


def segment_sizes(num_samples: int) -> tuple[int, ...]:
    """Cut `num_samples` into runs of `SEGMENT_SIZE`, the last one shorter."""
    starts = range(0, num_samples, SEGMENT_SIZE)
    return tuple(min(SEGMENT_SIZE, num_samples - start) for start in starts)


def read_file(path: Path) -> bytes:
    """Content of a file that belongs to one sample.

    Raises:
        SampleError: there is no such file.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise SampleError(problems.MISSING_FILE, str(path)) from error


def table_rows(path: Path, keys: SampleKeys) -> Iterator[Row]:
    """What the columns that `keys` name hold, row by row.

    Raises:
        ValueError: it is no such table, or lacks a column that is needed.
    """
    return _parquet_rows(path, keys) if path.suffix.lower() == ".parquet" else _csv_rows(path, keys)


def _csv_rows(path: Path, keys: SampleKeys) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        header = stream.readline()
        stream.seek(0)
        is_tab = path.suffix.lower() == ".tsv" or "\t" in header
        reader = csv.DictReader(stream, delimiter="\t" if is_tab else ",")
        _check_columns(path, list(reader.fieldnames or ()), keys)
        try:
            for row in reader:
                yield row[keys.image_column], row.get(keys.caption_column), row.get(keys.label)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def _parquet_rows(path: Path, keys: SampleKeys) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error
    with file:
        names = file.schema_arrow.names
        _check_columns(path, names, keys)
        columns = [name for name in (keys.image_column, keys.caption_column, keys.label) if name in names]
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                yield tuple(map(_text, map(row.get, (keys.image_column, keys.caption_column, keys.label))))  # type: ignore[misc]


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _check_columns(path: Path, columns: list[str], keys: SampleKeys) -> None:
    wanted = [keys.image_column]
    wanted += [keys.caption_column] if "caption" in keys.require else []
    wanted += [keys.label] if "label" in keys.require else []
    for name in wanted:
        if name not in columns:
            close = difflib.get_close_matches(name, columns, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{path} has no column {name!r}, its columns are {', '.join(columns)}{hint}")
