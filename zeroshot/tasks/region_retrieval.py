"""Retrieval of regions by their phrases, and of phrases by their regions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clipkit.data.samples import Source
from clipkit.region_metrics import region_retrieval_chance, region_retrieval_ranks

from ..protocols.published_regions import published_retrieval
from .base import Features, Measurement, Table
from .counts import percent
from .region_data import (
    CONTROLS,
    RegionRows,
    check_controls,
    prefix,
    region_sources,
)
from .region_intervals import interval_over_images
from .region_task import RegionTask

_DIRECTIONS = {"r2t": "region to text", "t2r": "text to region"}


@dataclass(frozen=True, kw_only=True)
class RegionRetrieval(RegionTask):
    """Find the phrase of each region, and a region of each phrase (CLOC, arXiv:2410.02746).

    All regions of all images are candidates. Phrases that are equal, whatever their case, are right answers
    for each other's regions.
    """

    summary: ClassVar[str] = "regions found by their phrases, and phrases by their regions"

    recall_k: tuple[int, ...] = (1, 5, 10)
    """The K of recall@K."""
    controls: tuple[str, ...] = CONTROLS
    """What is measured beside the region head: `tokens`, RoIAlign on the tower's own tokens, and `crop`, the
    tower on each region cut out, a forward pass a region."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.recall_k or min(self.recall_k) < 1:
            raise ValueError(f"recall_k must hold numbers of at least 1, got {list(self.recall_k)}")
        check_controls(self.controls)

    def sources(self) -> dict[str, Source]:
        """See `Task`. The json members are read."""
        return region_sources(self._pool, self.controls)

    def measure(self, features: Features) -> Measurement:
        """Recalls both ways, of the region head and of the controls."""
        rows = RegionRows.of(self._pool, features)
        texts = [self._pool.phrases[number].casefold() for number in rows.number.tolist()]
        distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        phrase_of_region = torch.tensor([distinct[text] for text in texts])
        phrase_features = features.texts(self._first_spellings(rows, distinct))
        outcomes: dict[str, Tensor] = {}
        chance: dict[str, float] = {}
        by_k = {k: region_retrieval_chance(phrase_of_region, k) for k in self.recall_k}
        for method, own in rows.features.items():
            ranks = region_retrieval_ranks(own, phrase_features, phrase_of_region)
            for place, (direction, found) in enumerate(zip(_DIRECTIONS, ranks, strict=True)):
                for k in self.recall_k:
                    name = f"{prefix(method)}{direction}_recall@{k}"
                    outcomes[name] = (found < k).double()
                    chance[name] = by_k[k][place]
        metrics = {name: float(values.mean()) for name, values in outcomes.items()}
        return Measurement(
            metrics=metrics,
            outcomes=outcomes if rows.is_whole else {},
            intervals={name: interval_over_images(values, rows.image) for name, values in outcomes.items()},
            chance=chance,
            tables=(self._table(metrics, rows), published_retrieval(self._shown_rows(metrics, rows))),
            notes=(*self._notes(phrase_of_region, rows), *rows.notes),
        )

    def _first_spellings(self, rows: RegionRows, distinct: Mapping[str, int]) -> list[str]:
        """Of each distinct phrase, as it is written where it first occurs."""
        found: dict[str, str] = {}
        for number in rows.number.tolist():
            phrase = self._pool.phrases[number]
            found.setdefault(phrase.casefold(), phrase)
        return [found[text] for text in distinct]

    def _table(self, metrics: Mapping[str, float], rows: RegionRows) -> Table:
        names = [(direction, k) for direction in _DIRECTIONS for k in self.recall_k]
        return Table(
            title="By features of regions",
            header=("features", *(f"{_DIRECTIONS[direction]} R@{k}" for direction, k in names)),
            rows=tuple(
                (
                    rows.shown(method),
                    *(percent(metrics[f"{prefix(method)}{direction}_recall@{k}"]) for direction, k in names),
                )
                for method in rows.features
            ),
        )

    def _shown_rows(self, metrics: Mapping[str, float], rows: RegionRows) -> list[tuple[str, ...]]:
        """The own rows of the table with published ones, where recall@10 was measured."""
        if 10 not in self.recall_k:
            return []
        data = f"{self._pool.source.name}, {len(self._pool.numbers):,} images"
        return [
            (
                rows.shown(method),
                data,
                *(f"{100 * metrics[f'{prefix(method)}{one}_recall@10']:.1f}" for one in _DIRECTIONS),
            )
            for method in rows.features
        ]

    def _notes(self, phrase_of_region: Tensor, rows: RegionRows) -> tuple[str, ...]:
        counts = torch.bincount(phrase_of_region)
        num_images = len(torch.unique(rows.image))
        first = (
            f"{len(phrase_of_region):,} regions of {num_images:,} images with {len(counts):,} distinct "
            f"phrases; {int(counts[counts > 1].sum()):,} regions share theirs, and equal phrases count as "
            "right."
        )
        return (first,)
