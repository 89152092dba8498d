"""Columns of metadata as fields of a Milvus collection.

    id          INT64, primary
    vector      FLOAT_VECTOR, inner product
    a column    INT64, DOUBLE, BOOL or VARCHAR; lists and structs JSON; all of them nullable

A column whose name Milvus does not take is the field `column_N`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from .new_rows import Modality
from .rows import Float32s, Int64s
from .store import EmbeddingFolder

ID, VECTOR = "id", "vector"
FORMAT_VERSION = 1
MAX_BYTES = 65_535
"""Of a text, and of the JSON of a list or struct."""
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_RESERVED = frozenset(
    f"{ID} {VECTOR} and or not in like is null true false exists array_contains array_contains_all "
    "array_contains_any array_length json_contains json_contains_all json_contains_any text_match "
    "phrase_match between".split()
)


@dataclass(frozen=True, kw_only=True)
class CollectionFacts:
    """What does not change about a collection."""

    model_id: str | None
    model: str | None
    """What the model was loaded from."""
    modality: Modality
    """`image` or `text`: whose vectors these are."""
    embed_dim: int
    kind: str
    """Type of the index of Milvus."""
    schema: str
    """Columns and their types: an arrow schema in base64."""
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """For the property of the collection."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any] | None, name: str) -> CollectionFacts:
        """What the property of a collection says.

        Raises:
            ValueError: it is not of clipkit, or of a newer one.
        """
        if found is None:
            raise ValueError(
                f"collection {name} was not made by clipkit: build it with `clipkit index build`"
            )
        if found.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"collection {name} has format version {found.get('format_version')}, this clipkit reads "
                f"{FORMAT_VERSION}: upgrade it"
            )
        return cls(**found)

    @property
    def arrow_schema(self) -> pa.Schema:
        """Columns and their types."""
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self.schema)))


def schema_text(schema: pa.Schema) -> str:
    """As `CollectionFacts.schema` holds it."""
    return base64.b64encode(schema.remove_metadata().serialize().to_pybytes()).decode()


def schema_of(folder: EmbeddingFolder) -> pa.Schema:
    """Columns of a folder as a collection keeps them; a column without any value is text.

    Raises:
        ValueError: a column holds what a collection cannot.
    """
    files = folder.metadata_rows.files
    first_rows = [start for start, end in zip(files.starts, files.ends, strict=True) if start < end]
    schema = folder.metadata(np.array(first_rows, np.int64)).schema
    fields = []
    for field in schema:
        kind = pa.string() if pa.types.is_null(field.type) else field.type
        milvus_type(field.name, kind)
        fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


def milvus_type(column: str, kind: pa.DataType) -> str:
    """Name of the `pymilvus.DataType` for a type of arrow.

    Raises:
        ValueError: there is none.
    """
    for name, fits in (
        ("BOOL", pa.types.is_boolean),
        ("INT64", pa.types.is_integer),
        ("DOUBLE", pa.types.is_floating),
        ("VARCHAR", lambda one: pa.types.is_string(one) or pa.types.is_large_string(one)),
        ("JSON", lambda one: pa.types.is_struct(one) or pa.types.is_list(one) or pa.types.is_large_list(one)),
    ):
        if fits(kind):
            return name
    raise ValueError(f"column {column} holds {kind}, which a Milvus collection cannot keep: leave it out")


def field_names(schema: pa.Schema) -> dict[str, str]:
    """The field of each column."""
    taken = {name for name in schema.names if _is_field_name(name)}
    fields = {}
    for number, name in enumerate(schema.names):
        field = name
        if not _is_field_name(name):
            field = f"column_{number}"
            while field in taken:
                field += "_"
        taken.add(field)
        fields[name] = field
    return fields


def _is_field_name(name: str) -> bool:
    return bool(_FIELD_NAME.fullmatch(name)) and name.lower() not in _RESERVED


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the columns of a schema; those that it lacks are null.

    Raises:
        ValueError: it has a column that the schema lacks, or values that do not fit.
    """
    for name in table.column_names:
        if name not in schema.names:
            raise ValueError(
                f"the collection has no column {name}, it has {', '.join(schema.names)}: build it again"
            )
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table[field.name]
        if column.type != field.type and field.type == pa.string():
            # As text in the way in which rows of files of different types are joined.
            texts = [None if value is None else str(value) for value in column.to_pylist()]
            column = pa.chunked_array([pa.array(texts, pa.string())])
        try:
            columns.append(column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"column {field.name} holds {field.type} in the collection: {error}") from None
    return pa.table(columns, schema=schema)


def entities(ids: Int64s, vectors: Float32s, table: pa.Table) -> list[dict[str, Any]]:
    """Rows for `insert`.

    Args:
        ids: (n,).
        vectors: (n, D).
        table: n rows, as `fitted`.

    Raises:
        ValueError: a text is too long, or a number too large, for Milvus.
    """
    rows: list[dict[str, Any]] = [
        {ID: row_id, VECTOR: vector} for row_id, vector in zip(ids.tolist(), vectors, strict=True)
    ]
    for column, field in field_names(table.schema).items():
        kind = milvus_type(column, table.schema.field(column).type)
        for row, value in zip(rows, table[column].to_pylist(), strict=True):
            _check_value(column, kind, value)
            row[field] = value
    return rows


def _check_value(column: str, kind: str, value: Any) -> None:
    if value is None or kind in ("BOOL", "DOUBLE"):
        return
    if kind == "INT64":
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"column {column} holds {value}, which does not fit into 64 bits")
        return
    try:
        text = value if kind == "VARCHAR" else json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"column {column} holds what JSON cannot keep ({error}): leave it out") from None
    size = len(text.encode())
    if size > MAX_BYTES:
        raise ValueError(f"column {column} holds a value of {size} bytes, Milvus keeps up to {MAX_BYTES}")
