"""Zero-shot classification, of images with one label or several."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from clipkit.binary_rankings import BinaryRanking, average_precisions, interpolated_precisions, roc_auc
from clipkit.classification_metrics import (
    class_recalls,
    confused_pairs,
    expected_calibration_error,
    mean_per_class_recall,
)
from clipkit.data.samples import Source
from clipkit.metrics import label_ranks

from ..classifier import PromptSet, prompts_of_descriptions, prompts_of_names
from ..descriptions import DescriptionBank, PromptFormat
from ..metric_intervals import mean_per_class_recall_interval, ranking_interval
from .base import Features, ImageSet, Measurement, Table, Task
from .class_data import (
    checked_labels,
    class_vectors,
    known_names,
    notes_on_names,
    templates_for,
    with_headline,
)
from .counts import percent

HEADLINES = {
    "caltech101": "mean_per_class_recall",
    "pets": "mean_per_class_recall",
    "oxfordpets": "mean_per_class_recall",
    "oxfordiiitpet": "mean_per_class_recall",
    "oxfordiiitpets": "mean_per_class_recall",
    "fgvcaircraft": "mean_per_class_recall",
    "flowers": "mean_per_class_recall",
    "flowers102": "mean_per_class_recall",
    "oxfordflowers102": "mean_per_class_recall",
    "voc2007": "map11",
    "voc2007multilabel": "map11",
    "hatefulmemes": "roc_auc",
}
"""The usual metric of data sets for which it is not the accuracy (Zhang et al., arXiv:2304.00685), by their
names in small letters without separators."""

_CHOICES = ("acc1", "mean_per_class_recall", "map11", "roc_auc", "mean_average_precision")
_NUM_ROWS = 10
_NO_NAME = re.compile(r"|train|test|val|validation|main|tree|.*\.tar(\.gz)?|.*\{.*")


@dataclass(frozen=True, kw_only=True)
class ZeroshotClassification(Task):
    """Classify images by the names or by descriptions of their classes (CLIP, arXiv:2103.00020, 3.1)."""

    summary: ClassVar[str] = "images told apart by prompts of their classes"

    data: str
    """Images with labels, see `datasets.open_images`."""
    templates: str | None = None
    """See `templates.load_templates`; by default those that lie beside the data, else "a photo of a {c}."."""
    class_names: Path | None = None
    """A file with a class name a line, in the order of the labels, instead of the names of the data."""
    prompts: Path | None = None
    """A JSON file `{class: [sentence, ...]}`, the form of CuPL, instead of templates."""
    headline: str | None = None
    """`acc1`, `mean_per_class_recall`, `map11`, `roc_auc` or `mean_average_precision`; by default the usual
    one of the data set, see `HEADLINES`."""

    def __post_init__(self) -> None:
        if self.prompts is not None and self.templates is not None:
            raise ValueError("give one of prompts and templates, got both")
        if self.headline is not None and self.headline not in _CHOICES:
            raise ValueError(f"headline must be one of {', '.join(_CHOICES)}, got {self.headline!r}")

    def sources(self) -> dict[str, Source]:
        """The images, with names of their classes and prompts that fit."""
        from ..datasets import open_images

        source = open_images(self.data, require=("label",))
        names = known_names(source.name, source.classnames, self.class_names)
        self._prompt_set(names, source.templates)
        return {"images": source}

    def measure(self, features: Features) -> Measurement:
        """Metrics by whether the images have one label or several."""
        images = features.only
        names = known_names(images.name, images.classnames, self.class_names)
        prompts, note = self._prompt_set(names, images.templates)
        scores = images.features @ class_vectors(features.texts, prompts).T
        several = _several_labels(images, len(names))
        if several is None:
            labels = checked_labels(images, len(names))
            found = single_label_metrics(scores * features.logit_scale, labels, names)
        else:
            found = multi_label_metrics(scores, several, names)
        headline = self._headline(found.metrics)
        if headline != next(iter(found.metrics)) and self.headline is None:
            note += f"; {headline} is the usual metric of {data_set_name(self.data)}"
        return Measurement(
            metrics=with_headline(found.metrics, headline),
            outcomes=found.outcomes,
            intervals=found.intervals,
            chance=found.chance,
            tables=found.tables,
            notes=(note, *notes_on_names(names), *found.notes),
        )

    def _prompt_set(self, names: Sequence[str], beside: Sequence[str]) -> tuple[PromptSet, str]:
        """The prompts of all classes, and a sentence on them."""
        if self.prompts is not None:
            prompts = prompts_of_descriptions(names, DescriptionBank.read(self.prompts), PromptFormat("{d}"))
            return prompts, f"prompts: {len(prompts.prompts)} sentences of {self.prompts.name}"
        templates, note = templates_for(self.templates, beside)
        return prompts_of_names(names, templates), note

    def _headline(self, metrics: Mapping[str, float]) -> str:
        """The metric that stands for all.

        Raises:
            ValueError: the one that was asked for does not fit the labels.
        """
        if self.headline is not None and self.headline not in metrics:
            fitting = [name for name in _CHOICES if name in metrics]
            raise ValueError(
                f"headline {self.headline!r} does not fit the labels of {self.data}; choose from "
                f"{', '.join(fitting)}"
            )
        usual = self.headline or HEADLINES.get(data_set_name(self.data), "")
        return usual if usual in metrics else next(iter(metrics))


def data_set_name(location: str) -> str:
    """The name of a data set as `HEADLINES` has it: `hf-hub:clip-benchmark/wds_vtab-pets/test` -> `pets`."""
    parts = [part for part in re.split(r"[/\\]", location.casefold()) if not _NO_NAME.fullmatch(part)]
    name = re.sub(r"\.(csv|tsv|parquet)$", "", parts[-1]) if parts else ""
    name = re.sub(r"^(wds[_-])?(vtab[_-])?", "", name)
    return re.sub(r"[^a-z0-9]", "", name)


def single_label_metrics(logits: Tensor, labels: Tensor, names: Sequence[str]) -> Measurement:
    """Metrics of images with one label.

    Args:
        logits: (N, C), scaled as the softmax takes them.
        labels: (N,) int64 in [0, C).
        names: C.
    """
    num_classes, ranks = len(names), label_ranks(logits, labels)
    outcomes = {f"acc{k}": (ranks < k).double() for k in (1, 5) if k == 1 or num_classes > k}
    metrics = {name: float(values.mean()) for name, values in outcomes.items()}
    metrics["mean_per_class_recall"] = mean_per_class_recall(outcomes["acc1"], labels, num_classes)
    metrics["ece"] = expected_calibration_error(logits, labels)
    intervals = {"mean_per_class_recall": mean_per_class_recall_interval(outcomes["acc1"], labels)}
    chance = {f"acc{k}": k / num_classes for k in (1, 5) if f"acc{k}" in metrics}
    chance["mean_per_class_recall"] = 1 / num_classes
    if num_classes == 2 and 0 < int(labels.sum()) < len(labels):
        margin, is_second = logits[:, 1] - logits[:, 0], labels == 1
        metrics["roc_auc"], chance["roc_auc"] = roc_auc(margin, is_second), 0.5
        intervals["roc_auc"] = ranking_interval([BinaryRanking.of(margin, is_second)], BinaryRanking.roc_auc)
    recalls = class_recalls(outcomes["acc1"], labels, num_classes)
    return Measurement(
        metrics=metrics,
        outcomes=outcomes,
        intervals=intervals,
        chance=chance,
        tables=(_confusions(logits.argmax(dim=1), labels, names), _worst("recall", recalls, labels, names)),
        notes=_left_out(recalls, "mean_per_class_recall"),
    )


def multi_label_metrics(scores: Tensor, positives: Tensor, names: Sequence[str]) -> Measurement:
    """Metrics of images with several labels.

    Args:
        scores: (N, C).
        positives: (N, C) bool.
        names: C.

    Raises:
        ValueError: no image has a label.
    """
    if not bool(positives.any()):
        raise ValueError("no image has a label")
    precisions = average_precisions(scores, positives)
    interpolated = interpolated_precisions(scores, positives)
    rankings = [
        BinaryRanking.of(scores[:, index], positives[:, index])
        for index in range(len(names))
        if bool(positives[:, index].any())
    ]
    shares = positives.double().mean(dim=0)
    return Measurement(
        metrics={
            "mean_average_precision": float(precisions.nanmean()),
            "map11": float(interpolated.nanmean()),
        },
        intervals={
            "mean_average_precision": ranking_interval(rankings, BinaryRanking.average_precision),
            "map11": ranking_interval(rankings, BinaryRanking.interpolated_precision),
        },
        chance=dict.fromkeys(("mean_average_precision", "map11"), float(shares[shares > 0].mean())),
        tables=(_worst("average precision", precisions, positives.nonzero()[:, 1], names),),
        notes=_left_out(precisions, "mean_average_precision"),
    )


def _several_labels(images: ImageSet, num_classes: int) -> Tensor | None:
    """(N, C) bool where images have a 0 or 1 for each class, None where they have one label."""
    rows = [sample.fields.get("labels") for sample in images.samples if sample.label is None]
    if None in rows or not rows:
        return None
    if len(rows) < len(images.samples):
        raise ValueError(f"{images.name}: some images have one label, others several")
    lengths = sorted({len(row) for row in rows if row is not None})
    if lengths != [num_classes]:
        raise ValueError(
            f"{images.name}: expected {num_classes} labels an image, one a class name, got {lengths}"
        )
    return torch.tensor(rows).bool()


def _confusions(predictions: Tensor, labels: Tensor, names: Sequence[str]) -> Table:
    pairs = confused_pairs(predictions, labels, top=_NUM_ROWS)
    return Table(
        title="Most frequent confusions",
        header=("class", "taken for", "images", "share of the class"),
        rows=tuple((names[p.label], names[p.prediction], f"{p.count:,}", percent(p.share)) for p in pairs),
    )


def _worst(metric: str, values: Tensor, labels: Tensor, names: Sequence[str]) -> Table:
    """Classes with the lowest values; `labels` are the classes of all images, several an image or one."""
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    order = [index for index in values.argsort(stable=True).tolist() if counts[index]][:_NUM_ROWS]
    return Table(
        title=f"Classes with the lowest {metric}",
        header=("class", "images", metric),
        rows=tuple((names[index], f"{counts[index]:,}", percent(float(values[index]))) for index in order),
    )


def _left_out(values: Tensor, metric: str) -> tuple[str, ...]:
    lacking = int(values.isnan().sum())
    return (f"{lacking} of {len(values)} classes have no image; {metric} leaves them out",) if lacking else ()
