"""An index in a collection of Milvus, searched like `retrieval.index.SearchIndex`.

Properties of the collection hold what `clipkit.json` does for a folder: the model, the width, the columns and
how far changes have got. Milvus has no versions: what is opened shows later changes as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .filters import Filter
from .index import NOT_FOUND, Hits, checked_unit_rows
from .milvus_client import FACTS, STATE, check_collection_name, connect, one_line, read_property, shown
from .milvus_fields import ID, VECTOR, CollectionFacts, field_names
from .milvus_filters import milvus_expression
from .rows import Float32s, Int64s

MAX_HITS = 16_384
"""Most that a search of Milvus gives."""
IDS_AT_ONCE = 1_000
_QUERIES_AT_ONCE = 64
_CANDIDATES = 128
"""Kept at least while a graph is searched."""


class MilvusIndex:
    """A collection that clipkit made; threads may share it. See `MilvusIndex.open`."""

    def __init__(
        self,
        client: Any,
        uri: str,
        name: str,
        facts: CollectionFacts,
        state: Mapping[str, Any],
        num_rows: int,
    ) -> None:
        self._client, self._uri = client, uri
        self.name = name
        """Of the collection."""
        self.facts = facts
        """What does not change about it."""
        self.schema = facts.arrow_schema
        """Columns of the metadata and their types."""
        self.fields = field_names(self.schema)
        """The field of each column."""
        self.state = state
        """How far changes had got when this was opened: `version`, `next_id`, `pending`."""
        self.num_rows = num_rows
        """Rows that could be found when this was opened."""

    @classmethod
    def open(cls, uri: str, collection: str) -> MilvusIndex:
        """Open a collection and have Milvus load it.

        Args:
            uri: `http://HOST:19530`, or a file `NAME.db` of Milvus Lite.
            collection: its name.

        Raises:
            OSError: pymilvus is not installed, nobody answers, or there is no such collection.
            ValueError: clipkit did not make it.
        """
        check_collection_name(collection)
        client = connect(uri)
        with one_line(uri):
            if not client.has_collection(collection):
                names = ", ".join(sorted(client.list_collections())) or "none"
                raise FileNotFoundError(f"{shown(uri)} has no collection {collection}, it has: {names}")
            facts = CollectionFacts.from_json(read_property(client, collection, FACTS), collection)
            state = read_property(client, collection, STATE) or {}
            client.load_collection(collection)
            counted = client.query(
                collection, filter="", output_fields=["count(*)"], consistency_level="Strong"
            )
        return cls(client, uri, collection, facts, state, int(counted[0]["count(*)"]))

    @property
    def path(self) -> str:
        """How it is called in messages."""
        return f"collection {self.name}"

    @property
    def model_id(self) -> str | None:
        """Of the model that made the vectors; None where the collection does not say."""
        return self.facts.model_id

    @property
    def model_source(self) -> str | None:
        """What that model was loaded from; None where the collection does not say."""
        return self.facts.model

    @property
    def embed_dim(self) -> int:
        """Width D."""
        return self.facts.embed_dim

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the metadata."""
        return tuple(self.schema.names)

    @property
    def version(self) -> int:
        """Rises with every change; as of when this was opened."""
        return int(self.state.get("version", 0))

    @property
    def keeps_vectors(self) -> bool:
        """Whether `vectors` gives what was added: always."""
        return True

    def search(self, queries: Float32s, k: int, *, where: Filter | None = None) -> Hits:
        """The most similar rows; exact in a collection of kind FLAT.

        Args:
            queries: (Q, D), rows L2-normalised.
            k: 1 to 16,384; more than there are rows is the same as all.
            where: a condition on metadata.

        Raises:
            ValueError: queries of another shape, not finite or not normalised; an unknown column; a `k` that
                Milvus does not give.
            OSError: Milvus does not answer.
        """
        rows = checked_unit_rows(queries, self.embed_dim, "query")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        num_wanted = min(k, self.num_rows)
        if num_wanted > MAX_HITS:
            raise ValueError(f"Milvus gives at most {MAX_HITS} hits, asked for {num_wanted}")
        expression = "" if where is None else milvus_expression(where, self.schema, self.fields)
        similarities = np.full((len(rows), k), -np.inf, np.float32)
        ids = np.full((len(rows), k), NOT_FOUND, np.int64)
        for start in range(0, len(rows) if num_wanted else 0, _QUERIES_AT_ONCE):
            part = rows[start : start + _QUERIES_AT_ONCE]
            for row, hits in enumerate(self._search(part, num_wanted, expression), start):
                # Stable by id within equal similarities.
                best = sorted((-hit["distance"], hit[ID]) for hit in hits)
                similarities[row, : len(best)] = [-distance for distance, _ in best]
                ids[row, : len(best)] = [row_id for _, row_id in best]
        return Hits(ids=ids, similarities=similarities)

    def _search(self, rows: Float32s, k: int, expression: str) -> Any:
        thorough = {"ef": max(_CANDIDATES, k)} if self.facts.kind == "HNSW" else {}
        if self.facts.kind == "DISKANN":
            thorough = {"search_list": max(_CANDIDATES, k)}
        with one_line(self._uri):
            return self._client.search(
                self.name,
                data=list(rows),
                anns_field=VECTOR,
                limit=k,
                filter=expression,
                output_fields=[ID],
                search_params={"metric_type": "IP", "params": thorough},
            )

    def metadata(
        self, ids: Sequence[int] | Int64s, columns: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Rows of metadata in the order of `ids`.

        Raises:
            ValueError: an id or a column that there is not.
            OSError: Milvus does not answer.
        """
        names = self.columns if columns is None else tuple(columns)
        for name in names:
            if name not in self.columns:
                raise ValueError(f"there is no column {name!r}, there are: {', '.join(self.columns)}")
        found = self._rows(ids, [self.fields[name] for name in names])
        return [{name: row.get(self.fields[name]) for name in names} for row in found]

    def vectors(self, ids: Sequence[int] | Int64s) -> Float32s:
        """(n, D) stored vectors.

        Raises:
            ValueError: an id that there is not.
            OSError: Milvus does not answer.
        """
        found = [row[VECTOR] for row in self._rows(ids, [VECTOR])]
        return np.array(found, np.float32).reshape(len(found), self.embed_dim)

    def ids_of(self, field: str, values: Sequence[Any], also: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The id, and some fields, of all rows in which a field has one of some values."""
        found: list[dict[str, Any]] = []
        for start in range(0, len(values), IDS_AT_ONCE):
            part = list(values[start : start + IDS_AT_ONCE])
            with one_line(self._uri):
                found += self._client.query(
                    self.name,
                    filter=f"{field} in {json.dumps(part, ensure_ascii=False)}",
                    output_fields=[ID, *also],
                    consistency_level="Strong",
                )
        return found

    def _rows(self, ids: Sequence[int] | Int64s, fields: Sequence[str]) -> list[dict[str, Any]]:
        wanted = np.asarray(ids, np.int64).tolist()
        found = {row[ID]: row for row in self.ids_of(ID, list(dict.fromkeys(wanted)), fields)}
        for row_id in wanted:
            if row_id not in found:
                raise ValueError(f"there is no row with id {row_id} in {self.path}")
        return [found[row_id] for row_id in wanted]
