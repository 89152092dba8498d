"""Rows that lie in several files, npy or parquet, by their place over all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Rows = Sequence[int] | Int64s


class RowFiles:
    """Where each row is: row ids run over the files in their order."""

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int]) -> None:
        self.paths = tuple(paths)
        self.sizes = tuple(sizes)
        self.ends = np.fromiter(itertools.accumulate(sizes), np.int64, len(sizes))
        self.starts = self.ends - np.asarray(sizes, np.int64)

    def __len__(self) -> int:
        return sum(self.sizes)

    def split(self, rows: Rows) -> Iterator[tuple[int, Int64s, Int64s]]:
        """Any rows by the file that they are in.

        Yields:
            (number of the file, places in `rows` of those in it, their rows within the file).

        Raises:
            ValueError: a row that there is not.
        """
        wanted = np.asarray(rows, np.int64)
        outside = wanted[(wanted < 0) | (wanted >= len(self))]
        if len(outside):
            raise ValueError(f"there is no row {outside[0]}, rows are 0 to {len(self) - 1}")
        files = np.searchsorted(self.ends, wanted, "right")
        order = np.argsort(files, kind="stable")
        numbers, firsts = np.unique(files[order], return_index=True)
        for number, places in zip(numbers.tolist(), np.split(order, firsts[1:]), strict=False):
            yield number, places, wanted[places] - self.starts[number]


class EmbeddingRows:
    """The rows of several npy files as one array, of which only what is asked for is read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Look at the headers.

        Args:
            paths: at least one file, each (n, D) of floats.

        Raises:
            ValueError: a file is damaged, or not such an array, or of another width than the first.
        """
        shapes = [_npy_shape(path) for path in paths]
        for path, shape in zip(paths, shapes, strict=True):
            if shape[1] != shapes[0][1]:
                raise ValueError(f"{path} has width {shape[1]}, {paths[0].name} has {shapes[0][1]}")
        self.files = RowFiles(paths, [size for size, _ in shapes])
        self.shape = (len(self.files), shapes[0][1])

    def __len__(self) -> int:
        return self.shape[0]

    def blocks(self, rows_per_block: int = 65_536) -> Iterator[Float32s]:
        """All rows in order, `rows_per_block` at a time; the last block may be shorter."""
        for start in range(0, len(self), rows_per_block):
            yield self.read(start, min(start + rows_per_block, len(self)))

    def read(self, start: int, stop: int) -> Float32s:
        """Rows `start` to `stop - 1`: (stop - start, D)."""
        block = np.empty((stop - start, self.shape[1]), np.float32)
        first_file = int(np.searchsorted(self.files.ends, start, "right"))
        for number in range(first_file, int(np.searchsorted(self.files.starts, stop))):
            begin, end = self.files.starts[number], self.files.ends[number]
            first, last = max(start, begin), min(stop, end)
            block[first - start : last - start] = self._open(number)[first - begin : last - begin]
        return block

    def take(self, rows: Rows) -> Float32s:
        """Any rows in the order they are asked for: (len(rows), D).

        Raises:
            ValueError: a row that there is not.
        """
        block = np.empty((len(rows), self.shape[1]), np.float32)
        for number, places, within in self.files.split(rows):
            block[places] = self._open(number)[within]
        return block

    def _open(self, number: int) -> npt.NDArray[Any]:
        # Mapped anew each time: a map holds its file open, and there can be more files than may be open.
        array: npt.NDArray[Any] = np.load(self.files.paths[number], mmap_mode="r")
        return array


class MetadataRows:
    """The rows of several parquet files as one table, of which only what is asked for is read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Look at the footers.

        Raises:
            ValueError: a file is damaged or no parquet file.
        """
        footers = [_parquet_footer(path) for path in paths]
        self.files = RowFiles(paths, [footer.num_rows for footer in footers])
        schemas = [footer.schema.to_arrow_schema() for footer in footers]
        self.columns = tuple(dict.fromkeys(name for schema in schemas for name in schema.names))
        """Of any file, in the order in which they first occur."""

    def __len__(self) -> int:
        return len(self.files)

    def take(self, rows: Rows, columns: Sequence[str] | None = None) -> pa.Table:
        """Any rows in the order they are asked for.

        A column that a file lacks is null there; one whose type differs between files becomes text, or
        float where all are numbers.

        Args:
            rows: ids.
            columns: default: all.

        Raises:
            ValueError: a row or a column that there is not.
        """
        names = self.columns if columns is None else tuple(columns)
        for name in names:
            if name not in self.columns:
                raise ValueError(f"there is no column {name!r}, the columns are {', '.join(self.columns)}")
        parts, places = [], [np.empty(0, np.int64)]
        for number, some, within in self.files.split(rows):
            parts.append(_read_rows(self.files.paths[number], within, names))
            places.append(some)
        order = np.argsort(np.concatenate(places))
        joined = [_join([part[name] for part in parts]) for name in names]
        return pa.table(joined, names=list(names)).take(order)

    def each(self, column: str) -> Iterator[pa.ChunkedArray]:
        """A column, file by file; every file must have it."""
        for path in self.files.paths:
            yield pq.read_table(path, columns=[column])[column]


def _npy_shape(path: Path) -> tuple[int, int]:
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged or no npy file: {error}") from None
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ValueError(f"{path} holds {array.dtype} of shape {array.shape}, expected rows of floats")
    return int(array.shape[0]), int(array.shape[1])


def _parquet_footer(path: Path) -> Any:
    try:
        return pq.read_metadata(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is damaged or no parquet file: {error}") from None


def _read_rows(path: Path, rows: Int64s, columns: Sequence[str]) -> dict[str, Any]:
    """Columns of some rows of a file, from the row groups that hold them."""
    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        groups = RowFiles([path] * len(sizes), sizes)
        present = [name for name in columns if name in file.schema_arrow.names]
        parts, places = [], []
        for group, some, within in groups.split(rows):
            parts.append(file.read_row_group(group, columns=present).take(within))
            places.append(some)
        table = pa.concat_tables(parts).take(np.argsort(np.concatenate(places)))
    return {name: table[name] if name in present else pa.nulls(len(rows)) for name in columns}


def _join(parts: Sequence[Any]) -> pa.ChunkedArray:
    """Columns one after another, as one type."""
    types = list(dict.fromkeys(part.type for part in parts if not pa.types.is_null(part.type)))
    if len(types) <= 1:
        common = types[0] if types else pa.null()
    elif all(pa.types.is_integer(one) or pa.types.is_floating(one) for one in types):
        common = pa.float64()
    else:
        common = pa.string()
    chunks: list[Any] = []
    for part in parts:
        if part.type != common and common == pa.string():
            values = [None if value is None else str(value) for value in part.to_pylist()]
            part = pa.array(values, pa.string())
        part = part.cast(common)
        chunks += part.chunks if isinstance(part, pa.ChunkedArray) else [part]
    return pa.chunked_array(chunks, type=common)
