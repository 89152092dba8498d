"""The metadata of an index: parts that are mapped or held, read by position at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .filters import Filter
from .index_faiss import Bools
from .rows import Int64s, RowFiles

METADATA = "metadata"


class IndexMetadata:
    """Parts in the order of their names; row = position in the index."""

    def __init__(self, paths: Sequence[Path], parts: Sequence[pa.Table]) -> None:
        self._files = RowFiles(paths, [part.num_rows for part in parts])
        self._parts = tuple(parts)
        self.columns = tuple(dict.fromkeys(name for part in parts for name in part.column_names))
        """Of any part, in the order in which they first occur."""

    @classmethod
    def open(cls, folder: Path) -> IndexMetadata:
        """Map the arrow files of a folder; of one that has none, hold its parquet files.

        Open files stay readable when the folder is removed.

        Raises:
            ValueError: a file is damaged.
            FileNotFoundError: there is no file.
        """
        mapped = sorted((folder / METADATA).glob("*.arrow"))
        paths = mapped or sorted((folder / METADATA).glob("*.parquet"))
        if not paths:
            raise FileNotFoundError(f"{folder / METADATA} has no arrow or parquet files")
        return cls(paths, [_read(path) for path in paths])

    def __len__(self) -> int:
        return len(self._files)

    def take(self, positions: Int64s, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Rows as dicts, in the order they are asked for; None where a part lacks a column.

        Raises:
            ValueError: there is no such column.
        """
        names = self.columns if columns is None else tuple(columns)
        for name in names:
            if name not in self.columns:
                raise ValueError(f"there is no column {name!r}, there are: {', '.join(self.columns)}")
        rows: list[dict[str, Any]] = [{} for _ in positions]
        for number, places, within in self._files.split(positions):
            part = self._parts[number]
            present = [name for name in names if name in part.column_names]
            empty = dict.fromkeys(names)
            for place, row in zip(places, part.select(present).take(within).to_pylist(), strict=True):
                rows[place] = {**empty, **row}
        return rows

    def column(self, name: str) -> list[Any]:
        """All values of a column; None where a part lacks it."""
        values: list[Any] = []
        for part in self._parts:
            values += part[name].to_pylist() if name in part.column_names else [None] * part.num_rows
        return values

    def kept(self, mask: Bools) -> Iterator[pa.Table]:
        """The parts with only the rows of a mask (N,); those left empty are left out."""
        for part, start in zip(self._parts, self._files.starts.tolist(), strict=True):
            inside = mask[start : start + part.num_rows]
            if inside.any():
                yield part.filter(pa.array(inside))

    def mask(self, condition: Filter) -> Bools:
        """(N,) where a condition is true.

        Raises:
            ValueError: it names a column that there is not, or compares what cannot be compared.
        """
        condition.check(self.columns)
        found = [condition.mask(part.select(_present(condition, part))) for part in self._parts]
        return np.concatenate([np.empty(0, np.bool_), *found])


def write_part(folder: Path, number: int, table: pa.Table) -> list[str]:
    """Write a part as arrow, which is mapped, and as parquet, which other tools read.

    Returns:
        The names of the files below `folder`.
    """
    (folder / METADATA).mkdir(exist_ok=True)
    name = f"{METADATA}/{METADATA}_{number:06d}"
    whole = table.combine_chunks()
    with (
        pa.OSFile(str(folder / f"{name}.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, whole.schema) as writer,
    ):
        writer.write_table(whole)
    pq.write_table(whole, folder / f"{name}.parquet")
    return [f"{name}.arrow", f"{name}.parquet"]


def _present(condition: Filter, part: pa.Table) -> list[str]:
    # A part without any of the columns still has its number of rows.
    return [name for name in condition.columns if name in part.column_names] or part.column_names[:1]


def _read(path: Path) -> pa.Table:
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path)
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is damaged: {error}") from None
