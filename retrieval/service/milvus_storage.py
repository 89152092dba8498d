"""Indexes in collections of Milvus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import milvus_change
from ..milvus_index import MilvusIndex
from .catalog import Place, Vector
from .storage import requested_rows


@dataclass(frozen=True)
class Collections:
    """Opens collections, whose name is the path of their place, and changes them."""

    uri: str

    def open(self, place: Place) -> MilvusIndex:
        """The collection as it is now."""
        return MilvusIndex.open(self.uri, str(place.path))

    def add(self, place: Place, vectors: Vector, metadata: Sequence[Mapping[str, Any]]) -> list[int]:
        """Add rows.

        Args:
            place: a collection of clipkit's.
            vectors: (N, D), L2-normalised.
            metadata: N rows.

        Returns:
            Their ids.

        Raises:
            ValueError: a row does not fit or is there already.
            OSError: Milvus does not answer.
        """
        facts = self.open(place).facts
        rows = requested_rows(facts.modality, facts.model_id, vectors, metadata)
        ids: list[int] = milvus_change.add_new(self.uri, str(place.path), rows).tolist()
        return ids

    def remove(self, place: Place, ids: Sequence[int]) -> None:
        """Remove rows.

        Raises:
            ValueError: an id is not there.
            OSError: Milvus does not answer.
        """
        try:
            milvus_change.remove(self.uri, str(place.path), ids=ids)
        except ValueError as error:
            raise ValueError("there is no row with one of these ids") from error


def collections_of(paths: Mapping[str, Path]) -> dict[str, Place]:
    """Every collection by the name it is served under."""
    return {name: Place(path=path) for name, path in paths.items()}
