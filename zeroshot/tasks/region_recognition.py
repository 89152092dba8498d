"""What is in a given box: its class among the names of all classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from clipkit.classification_metrics import class_recalls, mean_per_class_recall
from clipkit.data.samples import Source
from clipkit.metrics import label_ranks

from ..classnames import read_class_names
from ..descriptions import normalized_name
from ..protocols.published_regions import published_recognition
from .base import Features, Measurement, Table
from .coco_classes import COCO_CLASSES
from .counts import percent
from .region_data import (
    CONTROLS,
    RegionRows,
    check_controls,
    prefix,
    region_sources,
)
from .region_intervals import class_mean_interval_over_images, interval_over_images
from .region_task import RegionTask

COCO = "coco"
_MAX_CLASSES_SHOWN = 100


@dataclass(frozen=True, kw_only=True)
class RegionRecognition(RegionTask):
    """Zero-shot classes of annotated boxes (CLOC, arXiv:2410.02746): names without a template."""

    summary: ClassVar[str] = "classes of annotated boxes, by names without a template"

    data: str
    """Shards whose json files have `regions: [{"box", "phrase"}]`, where the phrase is the name of a class;
    `scenes` for the built-in data."""
    class_names: str = ""
    """A file with a class name a line, or `coco` for COCO's 80; by default the distinct phrases. Regions with
    other phrases are left out."""
    controls: tuple[str, ...] = CONTROLS
    """What is measured beside the region head: `tokens`, RoIAlign on the tower's own tokens, and `crop`, the
    tower on each region cut out, a forward pass a region."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_controls(self.controls)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """(C,) the classes."""
        if self.class_names == COCO:
            return COCO_CLASSES
        if self.class_names:
            return read_class_names(Path(self.class_names).expanduser())
        first: dict[str, str] = {}
        for phrase in self._pool.phrases:
            first.setdefault(normalized_name(phrase), phrase)
        return tuple(first[name] for name in sorted(first))

    @cached_property
    def _labels(self) -> Tensor:
        """(R,) int64 class of each region of the pool, -1 where its phrase is no class."""
        number = {normalized_name(name): place for place, name in enumerate(self._names)}
        return torch.tensor([number.get(normalized_name(phrase), -1) for phrase in self._pool.phrases])

    def sources(self) -> dict[str, Source]:
        """See `Task`. The json members are read."""
        if len(self._names) < 2:
            raise ValueError(f"{self.data}: expected two classes or more, got {', '.join(self._names)}")
        if not bool((self._labels >= 0).any()):
            raise ValueError(
                f"no region of {self.data} is of a class of {self.class_names}; its phrases are such as "
                f"{', '.join(dict.fromkeys(self._pool.phrases[:3]))}"
            )
        return region_sources(self._pool, self.controls)

    def measure(self, features: Features) -> Measurement:
        """Accuracies of the region head and of the controls."""
        rows = RegionRows.of(self._pool, features)
        labels = self._labels[rows.number]
        is_known = labels >= 0
        if not bool(is_known.any()):
            raise ValueError(f"{self._pool.source.name}: no region of a class is left")
        labels, image = labels[is_known], rows.image[is_known]
        name_features = features.texts(self._names)
        metrics: dict[str, float] = {}
        outcomes: dict[str, Tensor] = {}
        intervals: dict[str, tuple[float, float]] = {}
        for method, own in rows.features.items():
            right = (label_ranks(own[is_known] @ name_features.T, labels) == 0).double()
            mean_name, name = f"{prefix(method)}mean_per_class_accuracy", f"{prefix(method)}accuracy"
            metrics[mean_name] = mean_per_class_recall(right, labels, len(self._names))
            intervals[mean_name] = class_mean_interval_over_images(right, labels, image)
            metrics[name] = float(right.mean())
            intervals[name] = interval_over_images(right, image)
            outcomes[name] = right
        return Measurement(
            metrics=metrics,
            outcomes=outcomes if rows.is_whole else {},
            intervals=intervals,
            chance=dict.fromkeys(metrics, 1 / len(self._names)),
            tables=(
                self._table(metrics, rows),
                published_recognition(self._shown_rows(metrics, rows)),
                self._class_table(outcomes, labels, rows),
            ),
            notes=(*self._notes(labels, is_known), *rows.notes),
        )

    def _table(self, metrics: Mapping[str, float], rows: RegionRows) -> Table:
        return Table(
            title="By features of regions",
            header=("features", "mean per-class accuracy", "accuracy"),
            rows=tuple(
                (
                    rows.shown(method),
                    percent(metrics[f"{prefix(method)}mean_per_class_accuracy"]),
                    percent(metrics[f"{prefix(method)}accuracy"]),
                )
                for method in rows.features
            ),
        )

    def _shown_rows(self, metrics: Mapping[str, float], rows: RegionRows) -> list[tuple[str, ...]]:
        data = f"{self._pool.source.name}, {len(self._names):,} classes"
        return [
            (
                rows.shown(method),
                data,
                f"{100 * metrics[f'{prefix(method)}mean_per_class_accuracy']:.1f}",
            )
            for method in rows.features
        ]

    def _class_table(self, outcomes: Mapping[str, Tensor], labels: Tensor, rows: RegionRows) -> Table:
        """The classes with most regions, by all features."""
        counts = torch.bincount(labels, minlength=len(self._names))
        recalls = [
            class_recalls(outcomes[f"{prefix(method)}accuracy"], labels, len(self._names))
            for method in rows.features
        ]
        order = counts.argsort(descending=True, stable=True)[:_MAX_CLASSES_SHOWN].tolist()
        return Table(
            title="By class",
            header=("class", "regions", *(rows.shown(method) for method in rows.features)),
            rows=tuple(
                (self._names[label], f"{counts[label]:,}", *(percent(float(own[label])) for own in recalls))
                for label in order
                if counts[label]
            ),
        )

    def _notes(self, labels: Tensor, is_known: Tensor) -> tuple[str, ...]:
        counts = torch.bincount(labels, minlength=len(self._names))
        notes = [
            f"{len(labels):,} regions of {int((counts > 0).sum()):,} of {len(self._names):,} classes; the "
            "mean is over the classes that have regions."
        ]
        num_others = int((~is_known).sum())
        if num_others:
            notes.append(f"{num_others:,} regions whose phrase is no class are left out.")
        return tuple(notes)
