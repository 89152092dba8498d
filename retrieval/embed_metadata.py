"""The metadata table of a partition: where each row comes from, its captions, and its json fields."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from .embed_chunks import Item, utf8
from .store import MORE_CAPTIONS

_INT64 = range(-(2**63), 2**63)


def metadata_table(items: Sequence[Item]) -> pa.Table:
    """One row an item.

    Columns: `image_path` (or `key`), `caption` (the first), `more_captions` (the others), `shard` for tars,
    then the json fields with `outer.inner` for nested ones. A field of the name of another column is left
    out, as in clip-retrieval. Fields are bool, int64, double or text; lists are JSON text, and so is what is
    no text in a field of mixed types.

    Args:
        items: at least one.
    """
    first, *rest = items[0].origin
    columns = {first: pa.array([item.origin[first] for item in items], pa.string())}
    columns["caption"] = pa.array([next(iter(item.captions), None) for item in items], pa.string())
    columns[MORE_CAPTIONS] = pa.array([item.captions[1:] for item in items], pa.list_(pa.string()))
    for name in rest:
        columns[name] = pa.array([item.origin[name] for item in items], pa.string())
    rows = [dict(_flat(item.fields)) for item in items]
    for name in dict.fromkeys(name for row in rows for name in row):
        if name not in columns:
            columns[name] = _column([row.get(name) for row in rows])
    return pa.table(columns)


def _flat(fields: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of all that is no object."""
    found: list[tuple[str, Any]] = []
    for name, value in fields.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((utf8(f"{prefix}{name}"), value))
    return found


def _column(values: Sequence[Any]) -> pa.Array:
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds:
        return pa.nulls(len(values))
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    has_huge = any(isinstance(value, int) and value not in _INT64 for value in values)
    if kinds == {int} and not has_huge:
        return pa.array(values, pa.int64())
    if kinds <= {int, float} and not has_huge:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else _text(value) for value in values], pa.string())


def _text(value: Any) -> str:
    return utf8(value) if isinstance(value, str) else json.dumps(value)
