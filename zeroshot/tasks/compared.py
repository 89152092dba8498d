"""Ways to classify the same images, side by side: how often each is right, and by how much one leads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..intervals import mean_interval, paired_difference
from .base import Measurement, Table
from .counts import percent


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Images of one split."""

    features: Tensor
    """(N, D), L2-normalised."""
    labels: Tensor
    """(N,) int64."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to classify some images, with one seed or several."""

    shown: str
    """What the report calls it."""
    right: Tensor
    """(S, N) fp64, 1 where an image is classified right; a row a seed, one row where nothing is drawn."""
    detail: str = ""
    """For the second column of the table."""

    @property
    def outcomes(self) -> Tensor:
        """(N,) fp64, the share of the seeds with which each image is classified right."""
        return self.right.mean(dim=0)

    @property
    def accuracy(self) -> float:
        """Top-1 in the mean over seeds."""
        return float(self.outcomes.mean())

    def row(self, lead: Difference | None) -> tuple[str, ...]:
        """Name, detail, top-1 with its interval, lowest and highest seed, and a difference."""
        low, high = mean_interval(self.outcomes)
        seeds = [100 * float(row.mean()) for row in self.right]
        return (
            self.shown,
            self.detail,
            f"{percent(self.accuracy)} [{100 * low:.1f}, {100 * high:.1f}]",
            f"{min(seeds):.1f} to {max(seeds):.1f}" if len(seeds) > 1 else "",
            "" if lead is None else lead.signed,
        )


@dataclass(frozen=True)
class Difference:
    """Accuracy of a method minus that of another on the same images, with its 95 % interval; in [-1, 1].

    All seeds of a method share the images of the bootstrap: the interval is about images, not about seeds.
    """

    value: float
    low: float
    high: float

    @classmethod
    def between(cls, method: Method, other: Method) -> Difference:
        """`method` minus `other`."""
        return cls(*paired_difference(method.outcomes, other.outcomes))

    @property
    def signed(self) -> str:
        """In points, for a table."""
        return f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"

    def sentence(self, other: str) -> str:
        """What it says of the method, "they", and the other."""
        points = f"points [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        if self.low > 0:
            return f"they beat {other} by {100 * self.value:.1f} {points}"
        includes = ", which includes 0" if self.high >= 0 else ""
        return f"the difference to {other} is {100 * self.value:.1f} {points}{includes}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods by the names of their metrics, and which of them are compared."""

    methods: Mapping[str, Method]
    pairs: Mapping[str, tuple[str, str]]
    """Metric -> the two methods whose difference it is, the first minus the second; each is second once."""

    def difference(self, metric: str) -> Difference:
        """The difference of one of the `pairs`."""
        mine, other = self.pairs[metric]
        return Difference.between(self.methods[mine], self.methods[other])

    def table(self, title: str, header: tuple[str, ...], note: str) -> Table:
        """A row a method, with the lead over it of the method that it is compared with."""
        leads = {other: self.difference(metric) for metric, (_, other) in self.pairs.items()}
        rows = tuple(method.row(leads.get(name)) for name, method in self.methods.items())
        return Table(title=title, header=header, rows=rows, note=note)

    def measurement(self, *, chance: float, tables: Sequence[Table], notes: Sequence[str]) -> Measurement:
        """All accuracies and differences; `chance` is that of the accuracies."""
        outcomes = {name: method.outcomes for name, method in self.methods.items()}
        intervals = {}
        for metric, (mine, other) in self.pairs.items():
            outcomes[metric] = outcomes[mine] - outcomes[other]
            difference = self.difference(metric)
            intervals[metric] = (difference.low, difference.high)
        return Measurement(
            metrics={name: float(values.mean()) for name, values in outcomes.items()},
            outcomes=outcomes,
            intervals=intervals,
            chance=dict.fromkeys(self.methods, chance),
            tables=tuple(tables),
            notes=tuple(notes),
        )


def verdict(good: str, bad: str, differences: Mapping[str, Difference]) -> str:
    """Whether a method leads all others by more than its intervals, in one sentence.

    Args:
        good: how the sentence begins if it does.
        bad: how it begins if it does not.
        differences: to each of the others, by what the sentence calls them.
    """
    leads = all(difference.low > 0 for difference in differences.values())
    parts = [difference.sentence(other) for other, difference in differences.items()]
    return f"{good if leads else bad}: {'; '.join(parts)}."


def joined(first: Measurement, second: Measurement) -> Measurement:
    """All of both."""
    return Measurement(
        metrics={**first.metrics, **second.metrics},
        outcomes={**first.outcomes, **second.outcomes},
        intervals={**first.intervals, **second.intervals},
        chance={**first.chance, **second.chance},
        plain=first.plain + second.plain,
        tables=first.tables + second.tables,
        notes=first.notes + second.notes,
    )
