"""What is said of base and new accuracies: metrics of a result file, and the table beside published rows."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from statistics import fmean

from clipkit.heads.methods import METHODS, method_class

from ..tasks.base import Measurement, Table
from .averages import BaseToNew, Spread, over_seeds
from .published import AVERAGE, is_all_published, is_transductive, published_rows, published_source

Row = tuple[str, int | None]
"""A recipe, whose name begins with its method, and the images a class that it was trained with, None where
that says nothing."""
Accuracies = dict[Row, dict[int, tuple[float, ...]]]
"""By row and seed: base and new accuracy, or the one among all classes."""

_SEED = re.compile(r"(?P<recipe>.+?)(_(?P<shots>\d+)_shots)?_seed_(?P<seed>\d+)_(?P<part>base|new|acc1)")


def measurement(rows: Accuracies, dataset: str, datasets: Sequence[str]) -> Measurement:
    """The harmonic mean of the first row is the headline.

    Args:
        rows: own accuracies.
        dataset: that they are of, or `average`.
        datasets: that an average is of.
    """
    found = {row: over_seeds([(base, new) for base, new in own.values()]) for row, own in rows.items()}
    metrics: dict[str, float] = {}
    for row, own in found.items():
        metrics[f"{key(row)}_harmonic_mean"] = own.harmonic_mean
        for part, spread in (("base", own.base), ("new", own.new)):
            metrics[f"{key(row)}_{part}"] = spread.mean
            if spread.std is not None:
                metrics[f"{key(row)}_{part}_std"] = spread.std
    for row, pairs in rows.items():
        for seed, (base, new) in pairs.items():
            metrics[f"{key(row)}_seed_{seed}_base"] = base
            metrics[f"{key(row)}_seed_{seed}_new"] = new
    return Measurement(metrics=metrics, tables=(_table(found, dataset, datasets),))


def pairs_of(metrics: Mapping[str, float]) -> Accuracies:
    """The accuracies of each seed, out of what `measurement` says of them."""
    parts: dict[tuple[Row, int], dict[str, float]] = {}
    for name, value in metrics.items():
        match = _SEED.fullmatch(name)
        if match:
            row = (match["recipe"], None if match["shots"] is None else int(match["shots"]))
            parts.setdefault((row, int(match["seed"])), {})[match["part"]] = value
    found: Accuracies = {}
    for (row, seed), own in parts.items():
        found.setdefault(row, {})[seed] = tuple(own[part] for part in ("base", "new", "acc1") if part in own)
    return found


def over_all(found: Mapping[str, Accuracies]) -> Accuracies:
    """Averages over data sets, seed by seed, of the rows that all data sets have with the same seeds.

    Raises:
        ValueError: a row has other seeds on one data set than on another.
    """
    first, *others = found.values()
    averages: Accuracies = {}
    for row in first:
        if all(row in other for other in others):
            seeds = {name: sorted(pairs[row]) for name, pairs in found.items()}
            if len({tuple(own) for own in seeds.values()}) > 1:
                raise ValueError(
                    f"an average of {shown(row)} needs the same seeds of every data set, got {seeds}"
                )
            averages[row] = {}
            for seed in first[row]:
                columns = zip(*(pairs[row][seed] for pairs in found.values()), strict=True)
                averages[row][seed] = tuple(fmean(column) for column in columns)
    return averages


def shown(row: Row) -> str:
    """`maple, 16 shots`; a method that saw unlabelled images of the new classes is marked."""
    recipe, shots = row
    text = recipe if shots is None else f"{recipe}, {shots} shots" if shots else f"{recipe}, all images"
    return marked(recipe, text)


def marked(recipe: str, text: str = "") -> str:
    """The recipe, or a text that has it, with a mark if it saw unlabelled images of the tested classes."""
    methods = [method for method in METHODS if recipe.startswith(method)]
    is_marked = bool(methods) and method_class(max(methods, key=len)).is_transductive
    return f"{text or recipe} (transductive)" if is_marked else text or recipe


def key(row: Row) -> str:
    """What the metrics of a row begin with."""
    recipe, shots = row
    return recipe if shots is None else f"{recipe}_{shots}_shots"


def with_fewest_images(measured: Measurement, fewest: Mapping[Row, int]) -> Measurement:
    """Say below the tables which rows had classes with fewer images than shots."""
    if not fewest:
        return measured
    told = "; ".join(f"{shown(row)}: at least {count} of a class" for row, count in fewest.items())
    note = f"Classes with fewer training images than shots were trained with all of them ({told})."
    tables = (dataclasses.replace(table, note=f"{table.note} {note}") for table in measured.tables)
    return dataclasses.replace(measured, tables=tuple(tables))


def _table(found: Mapping[Row, BaseToNew], dataset: str, datasets: Sequence[str]) -> Table:
    rows: list[tuple[str, ...]] = [
        (shown(row), percent(own.base), percent(own.new), f"{100 * own.harmonic_mean:.2f}")
        for row, own in found.items()
    ]
    note = (
        "Accuracy in percent on test images, base and new each among their own classes; mean ± standard "
        "deviation over seeds; harmonic mean of the two means."
    )
    is_published = dataset != AVERAGE or is_all_published("base-to-new", datasets)
    published = published_rows("base-to-new", dataset) if is_published else {}
    for method, values in published.items():
        mark = "published, transductive" if is_transductive(method) else "published"
        rows.append((f"{method} ({mark})", *(f"{value:.2f}" for value in values)))
    if published:
        note += f" Published: {published_source('base-to-new')}."
    header = ("method", "base", "new", "harmonic mean")
    return Table(title=f"{dataset}: base-to-new", header=header, rows=tuple(rows), note=note)


def percent(spread: Spread) -> str:
    """`82.28 ± 0.31 (3 seeds)`."""
    text = f"{100 * spread.mean:.2f}"
    return text if spread.std is None else f"{text} ± {100 * spread.std:.2f} ({spread.count} seeds)"
