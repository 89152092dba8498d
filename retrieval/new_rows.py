"""What rows are added from: a folder of embeddings, or what a request to the service brought, in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa

from .rows import Float32s

Modality = Literal["image", "text"]


class Vectors(Protocol):
    """Rows of which a part at a time is read."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""

    def read(self, start: int, stop: int) -> Float32s:
        """Rows `start` to `stop - 1`: (stop - start, D)."""

    def blocks(self, rows_per_block: int) -> Iterator[Float32s]:
        """All rows in order, `rows_per_block` at a time; the last block may be shorter."""


class NewRows(Protocol):
    """Embeddings with their metadata (`EmbeddingFolder`, `RowsInMemory`)."""

    @property
    def path(self) -> Path | str:
        """What messages call them."""

    @property
    def model_id(self) -> str | None:
        """Of the model that made the embeddings, where it is known."""

    @property
    def num_rows(self) -> int:
        """N."""

    @property
    def embed_dim(self) -> int:
        """Width D."""

    @property
    def columns(self) -> Sequence[str]:
        """Of the metadata."""

    def vectors(self, modality: Modality) -> Vectors | None:
        """The embeddings of images or of (first) captions; None where there are none."""

    def tables(self) -> Iterator[pa.Table]:
        """The metadata, a part at a time; N rows in all, in the order of the embeddings."""


@dataclass(frozen=True)
class _Held:
    """Vectors that are in memory."""

    rows: Float32s

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.shape[0], self.rows.shape[1]

    def read(self, start: int, stop: int) -> Float32s:
        return self.rows[start:stop]

    def blocks(self, rows_per_block: int) -> Iterator[Float32s]:
        for start in range(0, len(self.rows), rows_per_block):
            yield self.read(start, start + rows_per_block)


class RowsInMemory:
    """Rows of one kind. They are rounded to fp16, as those of a folder are."""

    def __init__(
        self, path: str, modality: Modality, rows: Float32s, table: pa.Table, model_id: str | None
    ) -> None:
        """Take the rows.

        Args:
            path: what messages call them.
            modality: what the vectors are of.
            rows: (N, D), L2-normalised.
            table: N rows of metadata.
            model_id: of the model that made the vectors, where it is known.

        Raises:
            ValueError: there are not as many rows of metadata as vectors.
        """
        if table.num_rows != len(rows):
            raise ValueError(f"{path} has {table.num_rows} rows of metadata for {len(rows)} vectors")
        self.path, self.model_id = path, model_id
        self._modality, self._table = modality, table
        self._held = _Held(rows.astype(np.float16).astype(np.float32))

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self._held.rows)

    @property
    def embed_dim(self) -> int:
        """Width D."""
        return self._held.shape[1]

    @property
    def columns(self) -> Sequence[str]:
        """Of the metadata."""
        return tuple(self._table.column_names)

    def vectors(self, modality: Modality) -> Vectors | None:
        """All of them, or None for the other kind."""
        return self._held if modality == self._modality else None

    def tables(self) -> Iterator[pa.Table]:
        """The metadata."""
        yield self._table
