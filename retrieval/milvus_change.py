"""Add rows to a collection of Milvus, and remove some.

Rows arrive block by block, and Milvus shows each block at once. The property `clipkit.state` says which ids
are being added, so that the next change removes what a killed one left behind. Ids are never used twice.
Nothing keeps two writers apart: let there be one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .index_change import PATH_COLUMN, SHARD_COLUMN, row_name, row_names
from .milvus_build import insert_rows, write_state
from .milvus_client import connect, one_line
from .milvus_fields import ID
from .milvus_index import IDS_AT_ONCE, MilvusIndex
from .new_rows import NewRows
from .rows import Int64s
from .store import EmbeddingFolder


def add(uri: str, collection: str, embeddings: str | Path) -> Int64s:
    """Add the rows of a folder of embeddings; as `add_new`."""
    return add_new(uri, collection, EmbeddingFolder.open(embeddings))


def add_new(uri: str, collection: str, rows: NewRows) -> Int64s:
    """Add rows.

    Returns:
        (N,) their ids, in the order of the rows.

    Raises:
        ValueError: they are of another model or width, have other columns, or some are in the collection.
        OSError: Milvus does not answer.
    """
    index = _opened_to_change(uri, collection)
    _check_fits(index, rows)
    names = [name for name in row_names(rows) if name is not None]
    known = _ids_of_names(index, names)
    twice = [name for name in names if name in known]
    if twice:
        raise ValueError(
            f"{len(twice)} rows of {rows.path} are in {index.path} already, the first is {twice[0]}: "
            "remove them first"
        )
    client = connect(uri)
    first = int(index.state["next_id"])
    ids = np.arange(first, first + rows.num_rows)
    pending = [first, first + rows.num_rows]
    with one_line(uri):
        write_state(client, collection, version=index.version, next_id=pending[1], pending=pending)
        try:
            insert_rows(client, collection, index.facts, rows, ids)
        except BaseException:
            client.delete(collection, filter=f"{ID} >= {pending[0]} and {ID} < {pending[1]}")
            raise
        write_state(client, collection, version=index.version + 1, next_id=pending[1])
    return ids


def remove(uri: str, collection: str, *, ids: Sequence[int] = (), paths: Sequence[str] = ()) -> int:
    """Remove rows by id or by image_path (of a picture in a tar, `shard/image_path`).

    Returns:
        How many.

    Raises:
        ValueError: there is no such row.
        OSError: Milvus does not answer.
    """
    index = _opened_to_change(uri, collection)
    index.metadata(ids, [])
    known = _ids_of_names(index, paths)
    for name in paths:
        if len(known.get(name, ())) != 1:
            there = f"{len(known[name])} rows have" if name in known else "no row has"
            raise ValueError(f"{there} the {PATH_COLUMN} {name}, expected one")
    wanted = sorted({*ids, *(known[name][0] for name in paths)})
    client = connect(uri)
    with one_line(uri):
        for start in range(0, len(wanted), IDS_AT_ONCE):
            client.delete(collection, ids=wanted[start : start + IDS_AT_ONCE])
        write_state(client, collection, version=index.version + 1, next_id=int(index.state["next_id"]))
    return len(wanted)


def _opened_to_change(uri: str, collection: str) -> MilvusIndex:
    """Without the rows that an addition left which did not come to its end."""
    index = MilvusIndex.open(uri, collection)
    pending = index.state.get("pending")
    if pending:
        with one_line(uri):
            connect(uri).delete(collection, filter=f"{ID} >= {pending[0]} and {ID} < {pending[1]}")
    return index


def _check_fits(index: MilvusIndex, rows: NewRows) -> None:
    if rows.model_id != index.model_id:
        made_by = "an unknown model" if rows.model_id is None else f"model {rows.model_id[:12]}"
        own = "an unknown one" if index.model_id is None else index.model_id[:12]
        raise ValueError(
            f"{rows.path} was made by {made_by}, {index.path} by {own}: embed with the model of the "
            "collection"
        )
    if rows.embed_dim != index.embed_dim:
        raise ValueError(f"{rows.path} has width {rows.embed_dim}, {index.path} {index.embed_dim}")
    if rows.vectors(index.facts.modality) is None:
        raise ValueError(f"{rows.path} has no {index.facts.modality} embeddings, which {index.path} holds")


def _ids_of_names(index: MilvusIndex, names: Sequence[str]) -> dict[str, list[int]]:
    """Ids by `row_name`, of those names that there are."""
    if not names or PATH_COLUMN not in index.columns:
        return {}
    columns = [name for name in (PATH_COLUMN, SHARD_COLUMN) if name in index.columns]
    wanted = set(names)
    # The name of a row is its image_path, behind its shard if it has one.
    paths = [name[start:] for name in wanted for start in _starts(name)]
    found: dict[str, list[int]] = {}
    fields = [index.fields[name] for name in columns]
    for row in index.ids_of(index.fields[PATH_COLUMN], sorted(set(paths)), fields):
        name = row_name({column: row.get(index.fields[column]) for column in columns})
        if name in wanted:
            found.setdefault(name, []).append(row[ID])
    return found


def _starts(name: str) -> list[int]:
    """Where in a name the image_path may begin."""
    return [0] + [place + 1 for place, sign in enumerate(name) if sign == "/"]
