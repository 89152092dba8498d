"""The same classes in several domains, such as photos and sketches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from clipkit.data.samples import Source
from clipkit.metrics import label_ranks

from ..classifier import prompts_of_names
from ..metric_intervals import sample_interval, stratified_means
from .base import Features, ImageSet, Measurement, Table, Task
from .class_data import class_vectors, known_names, labels_by_name, notes_on_names, templates_for
from .counts import percent

_NAMES = ("mean_domain_acc1", "worst_domain_acc1", "domain_gap")


@dataclass(frozen=True, kw_only=True)
class Robustness(Task):
    """Zero-shot accuracy in each domain by one classifier; their mean, the worst, and best minus worst."""

    summary: ClassVar[str] = "zero-shot accuracy over domains with the same classes"

    domains: tuple[str, ...]
    """`NAME=DATA` for each domain, with labels; see `datasets.open_images`. Classes are matched by name."""
    templates: str | None = None
    """See `templates.load_templates`; by default those that lie beside the first domain's data."""
    class_names: Path | None = None
    """A file with a class name a line for the prompts, in the order of the first domain's labels."""

    def __post_init__(self) -> None:
        lacking = [one for one in self.domains if not all(one.partition("=")[::2])]
        if lacking:
            raise ValueError(f"domains must be written NAME=DATA, got {lacking[0]!r}")
        names = list(self._places())
        if len(names) < 2 or len(names) < len(self.domains):
            raise ValueError(
                f"domains must be two or more with different names, got {', '.join(self.domains)}"
            )

    def _places(self) -> dict[str, str]:
        return {name: place for name, _, place in (one.partition("=") for one in self.domains)}

    def sources(self) -> dict[str, Source]:
        """The images of each domain."""
        from ..datasets import open_images

        sources = {name: open_images(place, require=("label",)) for name, place in self._places().items()}
        first = next(iter(sources.values()))
        known_names(first.name, first.classnames, self.class_names)
        templates_for(self.templates, first.templates)
        return sources

    def measure(self, features: Features) -> Measurement:
        """Accuracy by domain, and what it says of all."""
        domains = [features.images[name] for name in self._places()]
        first = domains[0]
        names = known_names(first.name, first.classnames, self.class_names)
        templates, note = templates_for(self.templates, first.templates)
        vectors = class_vectors(features.texts, prompts_of_names(names, templates))
        classes = first.classnames or names  # a file only replaces how they are written
        right = {
            name: _right(images, vectors, labels_by_name(images, classes))
            for name, images in zip(self._places(), domains, strict=True)
        }
        samples = stratified_means(list(right.values()))
        accuracies = torch.stack([values.mean() for values in right.values()])
        by_domain = {f"acc1_{name}": values for name, values in right.items()}
        return Measurement(
            metrics={
                **dict(zip(_NAMES, _summary(accuracies).tolist(), strict=True)),
                **{name: float(values.mean()) for name, values in by_domain.items()},
            },
            outcomes={"mean_domain_acc1": _weighted(list(right.values())), **by_domain},
            intervals={
                name: sample_interval(column)
                for name, column in zip(_NAMES, _summary(samples).T, strict=True)
            },
            chance=dict.fromkeys((*_NAMES[:2], *by_domain), 1 / len(names)),
            tables=(_table(right),),
            notes=(note, *notes_on_names(names)),
        )


def _right(images: ImageSet, vectors: Tensor, labels: Tensor) -> Tensor:
    """(N,) fp64, 1 where the nearest class is the label."""
    return (label_ranks(images.features @ vectors.T, labels) == 0).double()


def _summary(accuracies: Tensor) -> Tensor:
    """(..., S) accuracies -> (..., 3) mean, lowest, and highest minus lowest."""
    lowest, highest = accuracies.amin(dim=-1), accuracies.amax(dim=-1)
    return torch.stack([accuracies.mean(dim=-1), lowest, highest - lowest], dim=-1)


def _weighted(values: list[Tensor]) -> Tensor:
    """Values of all domains so weighted that their mean is the mean of the domains' means."""
    total = sum(len(one) for one in values)
    return torch.cat([one * (total / (len(values) * len(one))) for one in values])


def _table(right: dict[str, Tensor]) -> Table:
    accuracies = {name: float(values.mean()) for name, values in right.items()}
    best = max(accuracies.values())
    return Table(
        title="Accuracy by domain",
        header=("domain", "images", "acc1", "below the best"),
        rows=tuple(
            (name, f"{len(right[name]):,}", percent(value), percent(best - value))
            for name, value in accuracies.items()
        ),
    )
