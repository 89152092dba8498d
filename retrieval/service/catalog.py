"""The indexes that are served, by name; opened anew as a whole, while requests go on with the old ones."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..filters import Filter
from .refusal import Refusal

T = TypeVar("T")
Vector = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]


class FoundRows(Protocol):
    """What a search gives."""

    @property
    def ids(self) -> Int64s:
        """(Q, k), best first; -1 where there are fewer."""

    @property
    def similarities(self) -> Vector:
        """(Q, k), cosines."""


class SearchableIndex(Protocol):
    """What the service needs of an index (`retrieval.index.SearchIndex`)."""

    @property
    def model_id(self) -> str | None:
        """Of the model that made the vectors, where it is known."""

    @property
    def embed_dim(self) -> int:
        """Width D."""

    @property
    def num_rows(self) -> int:
        """Rows that can be found."""

    @property
    def columns(self) -> Sequence[str]:
        """Of the metadata."""

    def search(self, queries: Vector, k: int, *, where: Filter | None = None) -> FoundRows:
        """The best k for each of (Q, D) unit rows; ValueError for a filter over unknown columns."""

    def metadata(self, ids: Int64s, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """A dict a row; KeyError, IndexError or ValueError for an id that is not there."""

    def vectors(self, ids: Int64s) -> Vector:
        """(N, D); raises like `metadata`."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an index lies."""

    path: Path
    modality: Literal["image", "text"] | None = None
    """Which of its vectors are searched; by default those of images where there are any."""


class Storage(Protocol):
    """How indexes are opened and changed on the disk."""

    def open(self, place: Place) -> SearchableIndex:
        """What lies there now; it does not change any more."""

    def add(self, place: Place, vectors: Vector, metadata: Sequence[dict[str, Any]]) -> list[int]:
        """Add rows and give their ids; ValueError for rows that do not fit."""

    def remove(self, place: Place, ids: Sequence[int]) -> None:
        """Remove rows; ValueError for an id that is not there."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """An index under its name. A request keeps to one from beginning to end."""

    name: str
    place: Place
    index: SearchableIndex


@dataclass(frozen=True, kw_only=True)
class SearchJob:
    """One query for the worker."""

    index: SearchableIndex
    vector: Vector
    k: int
    where: Filter | None


class Catalog:
    """Names and indexes; what `get` gives stays usable after a reload."""

    def __init__(
        self, places: Mapping[str, Place], storage: Storage, *, model_id: str, embed_dim: int
    ) -> None:
        """Open all indexes.

        Raises:
            OSError: one is not there.
            ValueError: one is damaged, or of another model than `model_id`.
        """
        self.storage = storage
        self._model_id, self._embed_dim = model_id, embed_dim
        self._lock = threading.Lock()
        self._served = {name: self._open(name, place) for name, place in places.items()}

    def all(self) -> list[Served]:
        """In the order they were named; the first is the default."""
        return list(self._served.values())

    def get(self, name: str | None) -> Served:
        """The index of a name, or the first.

        Raises:
            Refusal: 404, there is none.
        """
        served = self._served
        if not served:
            raise Refusal(404, "this service has no index")
        found = served.get(name) if name else next(iter(served.values()))
        if found is None:
            raise Refusal(404, f"there is no index {name!r}; there are {', '.join(served)}")
        return found

    def reload(self) -> list[Served]:
        """Open all indexes anew, and put them in place of the old ones together, or not at all.

        Raises:
            OSError, ValueError: one cannot be opened; all stay as they are.
        """
        with self._lock:
            fresh = {name: self._open(name, one.place) for name, one in self._served.items()}
            self._served = fresh
        return list(fresh.values())

    def edit(self, name: str, change: Callable[[Place], T]) -> T:
        """Change an index on the disk, and put what it became in place of what it was.

        Raises:
            OSError, ValueError: it cannot be changed.
        """
        with self._lock:
            result = change(self._served[name].place)
            path = self._served[name].place.path
            self._served = {
                other: self._open(other, one.place) if one.place.path == path else one
                for other, one in self._served.items()
            }
        return result

    def _open(self, name: str, place: Place) -> Served:
        index = self.storage.open(place)
        if index.embed_dim != self._embed_dim:
            raise ValueError(
                f"index {name} has vectors of width {index.embed_dim}, the model's have {self._embed_dim}: "
                "name the model that embedded it"
            )
        if index.model_id is not None and index.model_id != self._model_id:
            raise ValueError(
                f"index {name} was made by model {index.model_id[:12]}, not {self._model_id[:12]}: "
                "name the model that embedded it"
            )
        return Served(name=name, place=place, index=index)


def run_searches(jobs: Sequence[SearchJob]) -> list[Any]:
    """(ids (k,), similarities (k,)) of each job, or the ValueError of its filter.

    Jobs of the same index, k and filter are searched together. Jobs of another k are not: how far an
    approximate index looks may depend on k, and an answer must not depend on who else asks.
    """
    groups: dict[tuple[int, int, Filter | None], list[int]] = defaultdict(list)
    for place, job in enumerate(jobs):
        groups[id(job.index), job.k, job.where].append(place)
    results: list[Any] = [None] * len(jobs)
    for (_, k, where), places in groups.items():
        try:
            queries = np.stack([jobs[place].vector for place in places])
            hits = jobs[places[0]].index.search(queries, k, where=where)
        except Exception as error:
            for place in places:
                results[place] = error
            continue
        for row, place in enumerate(places):
            found = hits.ids[row] >= 0
            results[place] = (hits.ids[row][found], hits.similarities[row][found])
    return results
