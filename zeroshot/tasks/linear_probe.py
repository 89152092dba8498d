"""Linear probes: how well classes can be read off the features of images, without any text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clipkit.classification_metrics import mean_per_class_recall
from clipkit.data.samples import Source
from clipkit.distributed import local_rank
from clipkit.logistic_regression import LogisticRegression, choose_weight_decay
from clipkit.metrics import label_ranks, topk_accuracy

from ..few_shot import nearest_mean_scores, nearest_neighbour_scores, split_shots
from ..metric_intervals import mean_per_class_recall_interval
from .base import Features, ImageSet, Measurement, Table, Task
from .class_data import checked_labels, labels_by_name
from .counts import percent

_MAX_NEIGHBOURS = 5


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Task):
    """Logistic regression on frozen features (CLIP, arXiv:2103.00020, A.3), from few images or all.

    The L2 strength is chosen on images that are held out of `train`; see `few_shot.split_shots`. With all
    images, the last fit is on those too.
    """

    summary: ClassVar[str] = "classes read off frozen features by logistic regression"

    train: str
    """Images with labels to learn from, see `datasets.open_images`."""
    test: str
    """Images with labels of the same classes, which are measured."""
    shots: tuple[int, ...] = ()
    """Training images a class, several numbers for several probes; 0 or nothing for all."""
    seeds: int = 3
    """Draws of the images for each number of shots; with all images there is nothing to draw."""
    weight_decays: tuple[float, ...] = ()
    """L2 strengths to choose from, relative to the mean loss; by default CLIP's search from 1e-6 to 1e2."""

    def __post_init__(self) -> None:
        if min(self.shots, default=0) < 0 or len(set(self.shots)) < len(self.shots):
            raise ValueError(f"shots must be different numbers of at least 0, got {list(self.shots)}")
        if self.train == self.test:
            raise ValueError(f"test must be other images than train, got {self.train} twice")
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        if min(self.weight_decays, default=1) <= 0:
            raise ValueError(f"weight_decays must be above 0, got {list(self.weight_decays)}")

    def sources(self) -> dict[str, Source]:
        """Both sets of images."""
        from ..datasets import open_images

        parts = {"train": self.train, "test": self.test}
        return {name: open_images(place, require=("label",)) for name, place in parts.items()}

    def measure(self, features: Features) -> Measurement:
        """Probe for each number of shots; the metrics without a number are of all images, or of the most."""
        data = ProbeData.of(features.images["train"], features.images["test"])
        probes = [self._probe(data, shots) for shots in self.shots or (0,)]
        main = next(
            (probe for probe in probes if not probe.shots), max(probes, key=lambda probe: probe.shots)
        )
        metrics: dict[str, float] = {}
        outcomes: dict[str, Tensor] = {}
        intervals: dict[str, tuple[float, float]] = {}
        for probe in (main, *(probe for probe in probes if probe is not main)):
            suffix = "" if probe is main else f"_{probe.shots}shot"
            for k in (1, 5) if data.num_classes > 5 else (1,):
                outcomes[f"lp_acc{k}{suffix}"] = probe.outcome(k)
                metrics[f"lp_acc{k}{suffix}"] = float(probe.outcome(k).mean())
            name, right = f"lp_mean_per_class_recall{suffix}", probe.outcome(1)
            metrics[name] = mean_per_class_recall(right, data.test_labels, data.num_classes)
            intervals[name] = mean_per_class_recall_interval(right, data.test_labels)
        return Measurement(
            metrics=metrics,
            outcomes=outcomes,
            intervals=intervals,
            chance={name: _chance(name, data.num_classes) for name in metrics},
            tables=(_table(probes),),
            notes=_notes(probes),
        )

    def _probe(self, data: ProbeData, shots: int) -> _Probe:
        """Fit and measure, for every seed."""
        probe = _Probe(shots=shots, ranks=[], baselines=[], weight_decays=[], num_stopped=0)
        for seed in range(self.seeds if shots else 1):
            rows, validation = split_shots(data.train_labels, data.num_classes, shots, seed=seed)
            best = choose_weight_decay(
                data.regression(rows),
                data.train_features[validation],
                data.train_labels[validation],
                candidates=self.weight_decays,
            )
            if not shots:
                rows = torch.arange(len(data.train_labels))
                best = data.regression(rows).fit(best.weight_decay, start=best)
            probe.ranks.append(label_ranks(best.logits(data.test_features), data.test_labels))
            probe.baselines.append(_baselines(data, rows, min(shots or _MAX_NEIGHBOURS, _MAX_NEIGHBOURS)))
            probe.weight_decays.append(best.weight_decay)
            probe.num_stopped += not best.has_converged
        return probe


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """Features and labels of both sets, of the classes that have training images; made by `of`."""

    train_features: Tensor
    """(M, D) fp32, rows L2-normalised, where the probes are fitted."""
    train_labels: Tensor
    """(M,) int64 in [0, C), on the CPU."""
    test_features: Tensor
    """(N, D), like those of training."""
    test_labels: Tensor
    """(N,) int64 in [0, C), on the CPU."""
    num_classes: int

    @classmethod
    def of(cls, train: ImageSet, test: ImageSet) -> ProbeData:
        """Match the labels of both sets, by the names of their classes where both know them.

        Raises:
            ValueError: the sets have different classes, fewer than two, or a test image is of none.
        """
        names = train.classnames
        train_labels = checked_labels(train, len(names)) if names else train.labels
        test_labels = labels_by_name(test, names) if names else test.labels
        present, own = torch.unique(train_labels, return_inverse=True)
        if len(present) < 2:
            raise ValueError(f"a probe needs images of two classes, {train.name} has those of one")
        unseen = test_labels[~torch.isin(test_labels, present)]
        if len(unseen):
            first = int(unseen[0])
            name = repr(names[first]) if names else str(first)
            raise ValueError(f"{test.name} has images of class {name}, of which {train.name} has none")
        device = torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
        return cls(
            train_features=train.features.to(device),
            train_labels=own,
            test_features=test.features.to(device),
            test_labels=torch.searchsorted(present, test_labels),
            num_classes=len(present),
        )

    def regression(self, rows: Tensor) -> LogisticRegression:
        """The problem of some of the training images."""
        return LogisticRegression(self.train_features[rows], self.train_labels[rows], self.num_classes)


@dataclass(kw_only=True)
class _Probe:
    """What came out for one number of shots, a value for each seed."""

    shots: int
    ranks: list[Tensor]
    """(N,) int64, of the label of each test image."""
    baselines: list[tuple[float, float]]
    """Accuracy of the nearest class mean and of the nearest neighbours."""
    weight_decays: list[float]
    num_stopped: int

    def outcome(self, k: int) -> Tensor:
        """(N,) fp64: for each test image, the share of seeds with the label among the first k."""
        return torch.stack([(ranks < k).double() for ranks in self.ranks]).mean(dim=0)


def _baselines(data: ProbeData, rows: Tensor, num_neighbours: int) -> tuple[float, float]:
    features, labels = data.train_features[rows], data.train_labels[rows]
    means = nearest_mean_scores(data.test_features, features, labels, data.num_classes)
    votes = nearest_neighbour_scores(
        data.test_features,
        features,
        labels,
        data.num_classes,
        num_neighbours=min(num_neighbours, len(labels)),
    )
    return topk_accuracy(means, data.test_labels), topk_accuracy(votes, data.test_labels)


def _chance(name: str, num_classes: int) -> float:
    return (5 if name.startswith("lp_acc5") else 1) / num_classes


def _table(probes: Sequence[_Probe]) -> Table:
    rows = []
    for probe in probes:
        accuracies = [float((ranks < 1).double().mean()) for ranks in probe.ranks]
        means, votes = zip(*probe.baselines, strict=True)
        rows.append(
            (
                str(probe.shots or "all"),
                str(len(probe.ranks)),
                _spread(accuracies),
                _spread(means),
                _spread(votes),
                ", ".join(f"{value:.2g}" for value in probe.weight_decays),
            )
        )
    return Table(
        title="Accuracy by shots",
        header=("shots", "seeds", "linear probe", "nearest class mean", "nearest neighbours", "weight decay"),
        rows=tuple(rows),
        note=f"Mean ± standard deviation over seeds. Of {_MAX_NEIGHBOURS} neighbours, or as many as shots.",
    )


def _spread(values: Sequence[float]) -> str:
    mean = percent(statistics.mean(values))
    return f"{mean} ± {percent(statistics.stdev(values))}" if len(values) > 1 else mean


def _notes(probes: Sequence[_Probe]) -> tuple[str, ...]:
    notes = []
    if any(probe.shots for probe in probes):
        notes.append(
            "few-shot probes see up to 4 more images a class to choose their L2 strength by; intervals are "
            "over test images, the spread over draws is in the table"
        )
    stopped = sum(probe.num_stopped for probe in probes)
    if stopped:
        notes.append(f"{stopped} fits stopped before they had converged")
    return tuple(notes)
