"""Heads of one source on other data sets: a column for each, and the average of the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from ..tasks.base import Measurement, Table
from .averages import spread
from .few_shot_table import ACCURACY
from .published import AVERAGE, is_transductive, published_rows, published_source
from .table import Accuracies, key, over_all, percent, shown


def measurement(protocol: str, found: Mapping[str, Accuracies], sources: Sequence[str]) -> Measurement:
    """The average over the targets of the first row is the headline; it has the source where nothing else is.

    Args:
        protocol: `cross-dataset` or `domain`.
        found: accuracies among all classes, by data set.
        sources: data sets that heads were trained on.
    """
    targets = [name for name in found if name not in sources] or list(found)
    averages = over_all({name: found[name] for name in targets})
    metrics: dict[str, float] = {}
    for row, by_number in averages.items():
        metrics[f"{key(row)}_{ACCURACY}"] = fmean(value for (value,) in by_number.values())
    for row, by_number in averages.items():
        for seed, (value,) in by_number.items():
            metrics[f"{key(row)}_seed_{seed}_{ACCURACY}"] = value
    columns = {**found, AVERAGE: averages}
    rows = [
        (
            shown(row),
            *(percent(spread([value for (value,) in own[row].values()])) for own in columns.values()),
        )
        for row in averages
    ]
    published = _published(protocol, list(found))
    heads = (f"{name} (source)" if name in sources else name for name in columns)
    note = (
        "Accuracy in percent on test images among all classes of a data set; mean ± standard deviation over "
        f"seeds; the average is of {', '.join(targets)}."
    )
    if published:
        note += f" Published: {published_source(protocol)}; without averages, which are of other data sets."
    table = Table(
        title=f"{AVERAGE}: {protocol}", header=("method", *heads), rows=(*rows, *published), note=note
    )
    return Measurement(metrics=metrics, tables=(table,))


def _published(protocol: str, datasets: Sequence[str]) -> list[tuple[str, ...]]:
    """A row for each method with a figure for one of the data sets."""
    of_data = {name: published_rows(protocol, name) for name in datasets}
    methods = dict.fromkeys(method for values in of_data.values() for method in values)
    rows = []
    for method in methods:
        mark = "published, transductive" if is_transductive(method) else "published"
        cells = (f"{own[method]:.2f}" if method in own else "" for own in of_data.values())
        rows.append((f"{method} ({mark})", *cells, ""))
    return rows
