"""Build a collection of Milvus from a folder of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clipkit.console import Meter, progress

from .index import checked_unit_rows
from .index_build import IndexSettings, modalities_of, required_rows
from .index_change import PATH_COLUMN
from .milvus_client import FACTS, STATE, check_collection_name, connect, one_line, shown, write_property
from .milvus_fields import (
    ID,
    MAX_BYTES,
    VECTOR,
    CollectionFacts,
    entities,
    field_names,
    fitted,
    milvus_type,
    schema_of,
    schema_text,
)
from .milvus_index import MilvusIndex
from .new_rows import NewRows
from .rows import Int64s
from .store import EmbeddingFolder

_FLAT_BELOW = 10_000
_KINDS = {"flat": "FLAT", "hnsw": "HNSW", "diskann": "DISKANN"}
_PARAMETERS = {"HNSW": {"M": 32, "efConstruction": 200}}
_OF_FAISS = ("memory_gb", "recall", "recall_at", "num_queries", "seed")
_ROWS_PER_INSERT = 500
_BUILDING = "__building"


def build_milvus(
    embeddings: str | Path,
    uri: str,
    collection: str,
    settings: IndexSettings | None = None,
    *,
    replace: bool = False,
    show: bool = False,
) -> MilvusIndex:
    """Build a collection; one that was there before is replaced when the new one is complete.

    Args:
        embeddings: a folder of `clipkit embed` or clip-retrieval.
        uri: of Milvus; a file `NAME.db` of Milvus Lite is made.
        collection: its name.
        settings: `kind` is auto, flat, hnsw or diskann; those of tuning do not apply.
        replace: whether a collection of that name may be replaced.
        show: show progress on stderr.

    Raises:
        ValueError: the folder is damaged or empty, its rows are not normalised, the settings do not fit, or
            there is such a collection.
        OSError: pymilvus is not installed, or Milvus does not answer.
    """
    settings = settings or IndexSettings()
    check_collection_name(collection)
    folder = EmbeddingFolder.open(embeddings)
    facts = _facts(folder, settings)
    client = connect(uri, create=True)
    with one_line(uri):
        if client.has_collection(collection) and not replace:
            raise ValueError(
                f"{shown(uri)} has a collection {collection} already: add --replace, or use "
                "`clipkit index add`"
            )
        building = collection + _BUILDING
        _create(client, building, facts)
        try:
            with progress(f"{facts.modality}s", folder.num_rows, show=show) as meter:
                insert_rows(client, building, facts, folder, np.arange(folder.num_rows), meter)
            write_state(client, building, version=1, next_id=folder.num_rows)
        except BaseException:
            client.drop_collection(building)
            raise
        client.drop_collection(collection)
        client.rename_collection(building, collection)
    return MilvusIndex.open(uri, collection)


def _facts(folder: EmbeddingFolder, settings: IndexSettings) -> CollectionFacts:
    for field in fields_of(settings):
        if field.name in _OF_FAISS and getattr(settings, field.name) != field.default:
            raise ValueError(
                f"--{field.name.replace('_', '-')} is for faiss, Milvus is not tuned: leave it out"
            )
    if not folder.num_rows:
        raise ValueError(f"{folder.path} has no rows to index")
    modalities = modalities_of(folder, settings)
    if len(modalities) > 1:
        raise ValueError("a collection has one kind of vectors: build one with --embed image, one with text")
    required_rows(folder, modalities[0])
    kind = settings.kind
    if kind == "auto":
        kind = "flat" if folder.num_rows < _FLAT_BELOW else "hnsw"
    if kind not in _KINDS:
        raise ValueError(f"--kind must be auto or one of {', '.join(_KINDS)} in Milvus, got {kind}")
    return CollectionFacts(
        model_id=folder.model_id,
        model=(folder.manifest or {}).get("model"),
        modality=modalities[0],
        embed_dim=folder.embed_dim,
        kind=_KINDS[kind],
        schema=schema_text(schema_of(folder)),
    )


def _create(client: Any, name: str, facts: CollectionFacts) -> None:
    from pymilvus import DataType

    client.drop_collection(name)
    fields = client.create_schema(auto_id=False, enable_dynamic_field=False)
    fields.add_field(ID, DataType.INT64, is_primary=True)
    fields.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=facts.embed_dim)
    schema = facts.arrow_schema
    for column, field in field_names(schema).items():
        kind = milvus_type(column, schema.field(column).type)
        length = {"max_length": MAX_BYTES} if kind == "VARCHAR" else {}
        fields.add_field(field, DataType[kind], nullable=True, **length)
    indexes = client.prepare_index_params()
    indexes.add_index(VECTOR, index_type=facts.kind, metric_type="IP", params=_PARAMETERS.get(facts.kind, {}))
    if PATH_COLUMN in schema.names:
        # Rows are looked up by it in every change.
        indexes.add_index(field_names(schema)[PATH_COLUMN], index_type="INVERTED")
    client.create_collection(name, schema=fields, index_params=indexes, consistency_level="Strong")
    write_property(client, name, FACTS, facts.to_json())


def insert_rows(
    client: Any,
    name: str,
    facts: CollectionFacts,
    new: NewRows,
    ids: Int64s,
    meter: Meter | None = None,
) -> None:
    """Insert rows, row r with `ids[r]`.

    Raises:
        ValueError: a row is not normalised, or does not fit into the collection.
    """
    vectors, schema, done = new.vectors(facts.modality), facts.arrow_schema, 0
    assert vectors is not None
    for table in new.tables():
        for part in _parts(fitted(table, schema)):
            stop = done + part.num_rows
            unit = checked_unit_rows(vectors.read(done, stop), facts.embed_dim, f"{facts.modality} embedding")
            client.insert(name, entities(ids[done:stop], unit, part))
            done = stop
            if meter is not None:
                meter.advance(part.num_rows)
    client.flush(name)


def _parts(table: pa.Table) -> list[pa.Table]:
    return [table.slice(start, _ROWS_PER_INSERT) for start in range(0, table.num_rows, _ROWS_PER_INSERT)]


def write_state(
    client: Any, name: str, *, version: int, next_id: int, pending: Sequence[int] | None = None
) -> None:
    """How far changes have got.

    Args:
        client: of `connect`.
        name: of the collection.
        version: rises with every change.
        next_id: the first id that no row has had.
        pending: the first id that is being added, and the one behind the last.
    """
    write_property(client, name, STATE, {"version": version, "next_id": next_id, "pending": pending})
