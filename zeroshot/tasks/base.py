"""What a task of the evaluation suite is given, and what it gives back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from clipkit.data.samples import RawSample, Source

from ..region_source import RegionSet

TextFeatures = Callable[[Sequence[str]], Tensor]
"""T texts -> (T, D) fp32 on the CPU, rows L2-normalised."""


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Features of the usable images of one source, in its order, with what the source says of each."""

    name: str
    features: Tensor
    """(N, D) fp32 on the CPU, rows L2-normalised."""
    samples: tuple[RawSample, ...]
    """(N,) key, captions, label and json fields; `image` is empty."""
    classnames: tuple[str, ...] = ()
    """(C,) names by label, where the source knows them."""
    templates: tuple[str, ...] = ()
    """Prompts with `{c}` that lie beside the data."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64.

        Raises:
            ValueError: a sample has no label.
        """
        labels = [sample.label for sample in self.samples]
        if None in labels:
            raise ValueError(f"{self.name}: {self.samples[labels.index(None)].key} has no label")
        return torch.tensor(labels, dtype=torch.int64)

    @property
    def rows(self) -> dict[str, int]:
        """Row of each sample by its key; a key that is missing belongs to an image that is not usable."""
        return {sample.key: row for row, sample in enumerate(self.samples)}


@dataclass(frozen=True, kw_only=True)
class Features:
    """All that a task knows of a model."""

    images: Mapping[str, ImageSet]
    """By the names that the task has given its sources."""
    texts: TextFeatures
    logit_scale: float
    """Inverse temperature of the model's softmax, exponentiated."""
    regions: Mapping[str, RegionSet] = field(default_factory=dict)
    """Of the sources that are a `RegionSource`, by the same names; image by image as in `images`."""

    @property
    def only(self) -> ImageSet:
        """The images of a task with one source."""
        (one,) = self.images.values()
        return one


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of a report; the first column is text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a task found."""

    metrics: dict[str, float]
    """By CLIP_benchmark's names where it has them; the first is the headline. Fractions, but for `plain`."""
    outcomes: dict[str, Tensor] = field(default_factory=dict)
    """By the name of a metric that is a mean: (items,) fp64 the values it is the mean of. Same items in the
    same order for every model, so that models are compared pair by pair."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % intervals of metrics that are no plain means; those of `outcomes` are computed from them."""
    chance: dict[str, float] = field(default_factory=dict)
    """What guessing gives, by metric."""
    plain: tuple[str, ...] = ()
    """Metrics that are no fractions and are shown as they are: ranks, distances, counts."""
    tables: tuple[Table, ...] = ()
    """Details for the report."""
    notes: tuple[str, ...] = ()
    """Sentences for the report: what was left out, what the figures do not mean."""


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """One protocol on one data set. The fields of a task are the settings of its entry in a suite."""

    summary: ClassVar[str]
    """What it measures, in half a line."""

    @abstractmethod
    def sources(self) -> dict[str, Source]:
        """Open the data, without reading images.

        Raises:
            ValueError, OSError: it cannot be used, and why.
        """

    @abstractmethod
    def measure(self, features: Features) -> Measurement:
        """Compute the metrics.

        Args:
            features: of the usable images of all `sources`, by the same names.
        """
