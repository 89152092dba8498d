"""What is said of few-shot accuracies: metrics of a result file, and a table by recipe and shots."""

from __future__ import annotations

from collections.abc import Mapping

from ..tasks.base import Measurement, Table
from .averages import Spread, spread
from .table import Accuracies, Row, key, marked, percent

ACCURACY = "acc1"


def measurement(rows: Accuracies, dataset: str, protocol: str = "few-shot") -> Measurement:
    """The accuracy of the first row is the headline.

    Args:
        rows: own accuracies among all classes.
        dataset: that they are of, or `average`.
        protocol: that they are of.
    """
    found = {row: spread([value for (value,) in own.values()]) for row, own in rows.items()}
    metrics: dict[str, float] = {}
    for row, own in found.items():
        metrics[f"{key(row)}_{ACCURACY}"] = own.mean
        if own.std is not None:
            metrics[f"{key(row)}_{ACCURACY}_std"] = own.std
    for row, by_number in rows.items():
        for seed, (value,) in by_number.items():
            metrics[f"{key(row)}_seed_{seed}_{ACCURACY}"] = value
    return Measurement(metrics=metrics, tables=(_table(found, f"{dataset}: {protocol}"),))


def _table(found: Mapping[Row, Spread], title: str) -> Table:
    """A row for each recipe, a column for each number of shots that a head was trained with."""
    shots = sorted({shots for _, shots in found if shots is not None}, key=lambda number: number or 2**62)
    has_unknown = any(number is None for _, number in found)
    columns: list[int | None] = [None] * has_unknown + list(shots)
    header = ("method", *("" if own is None else f"{own} shots" if own else "all images" for own in columns))
    rows = tuple(
        (marked(recipe), *(percent(found[recipe, own]) if (recipe, own) in found else "" for own in columns))
        for recipe in dict.fromkeys(recipe for recipe, _ in found)
    )
    note = "Accuracy in percent on test images among all classes; mean ± standard deviation over seeds."
    return Table(title=title, header=header, rows=rows, note=note)
