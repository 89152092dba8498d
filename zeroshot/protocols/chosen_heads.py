"""Which stored heads serve a protocol, by what their files say of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Facts = Mapping[str, Any]


def heads_that_begin(wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    """Heads of a model directory that were asked for: by the name, else all whose names begin so.

    Args:
        wanted: names, or beginnings of names.
        names: of all heads that there are.

    Returns:
        In the order of `wanted`, each once.

    Raises:
        ValueError: no head is named so or begins so.
    """
    found: dict[str, None] = {}
    for name in wanted:
        fitting = [name] if name in names else sorted(each for each in names if each.startswith(name))
        if not fitting:
            raise ValueError(f"no head begins with {name!r}, there are: {', '.join(names) or 'none'}")
        found.update(dict.fromkeys(fitting))
    return list(found)


def check_base_head(name: str, facts: Facts, class_names: Sequence[str]) -> None:
    """Refuse a head for base-to-new that was not trained on exactly the base classes.

    Args:
        name: of the head.
        facts: what its file says.
        class_names: of all classes of the data set, in the order of the labels; the first half is base.

    Raises:
        ValueError: it was trained on a new class, or not on all base classes.
    """
    num_base = (len(class_names) + 1) // 2
    base, trained = list(class_names[:num_base]), list(facts["class_names"])
    seen = [each for each in trained if each in class_names[num_base:]]
    if seen:
        raise ValueError(
            f"head {name!r} was trained on {len(seen)} new classes ({seen[0]!r} ...), base-to-new tests "
            "classes that training has not seen: train it on the base classes alone"
        )
    if sorted(trained) != sorted(base):
        raise ValueError(
            f"head {name!r} was trained on {len(trained)} classes that are not the {len(base)} base classes "
            f"of this data set, which begin with {base[0]!r}"
        )


def heads_of_data(
    facts: Mapping[str, Facts],
    classes: Mapping[str, Sequence[str]],
    places: Mapping[str, str],
    *,
    base: bool = True,
) -> dict[str, dict[str, Facts]]:
    """Which heads are tested on which data set: those that were trained on its base classes, or on all.

    Where data sets have the same classes, a head belongs to the one that its file names, if it names one.

    Args:
        facts: by the name of the head.
        classes: by the name of the data set, in the order of the labels.
        places: of the data sets.
        base: whether training was to be on base classes alone.

    Raises:
        ValueError: a head belongs to no data set, or a data set has no head.
    """
    what = "the base classes" if base else "all classes"
    found: dict[str, dict[str, Facts]] = {data: {} for data in classes}
    for name, own in facts.items():
        trained = sorted(own["class_names"])
        fitting = [
            data for data, names in classes.items() if sorted(_base(names) if base else names) == trained
        ]
        if not fitting:
            if base and len(classes) == 1:
                check_base_head(name, own, next(iter(classes.values())))
            raise ValueError(
                f"head {name!r} was trained on {len(trained)} classes that are {what} of none of "
                f"{', '.join(classes)}"
            )
        for data in [data for data in fitting if places[data] == own.get("data")] or fitting:
            found[data][name] = own
    lacking = [data for data, heads in found.items() if not heads]
    if lacking:
        raise ValueError(f"none of the heads was trained on {what} of {lacking[0]}")
    return found


def _base(class_names: Sequence[str]) -> Sequence[str]:
    return class_names[: (len(class_names) + 1) // 2]


def check_source(facts: Mapping[str, Facts], protocol: str, classes: Mapping[str, Sequence[str]]) -> None:
    """Refuse heads that were not all trained on one source, and domains with classes that it lacks.

    Args:
        facts: by the name of the head.
        protocol: `cross-dataset` or `domain`.
        classes: by the name of the data set.

    Raises:
        ValueError: the heads were trained on different classes, or a domain has a class that is not theirs.
    """
    first, *others = facts
    trained = set(facts[first]["class_names"])
    for name in others:
        if set(facts[name]["class_names"]) != trained:
            raise ValueError(
                f"heads {first!r} and {name!r} were trained on different classes; {protocol} needs one source"
            )
    for data, names in classes.items():
        lacking = [each for each in names if each not in trained]
        if protocol == "domain" and lacking:
            raise ValueError(
                f"{data} has the class {lacking[0]!r}, which head {first!r} was not trained on: others "
                "are for --protocol cross-dataset"
            )


def row_of(facts: Facts) -> tuple[str, int | None]:
    """The recipe of a head, behind its method where the name does not begin so, and the shots."""
    method = str(facts["method"])
    recipe = Path(facts.get("recipe") or method).stem
    return recipe if recipe.startswith(method) else f"{method} ({recipe})", facts.get("shots")


def by_seed(facts: Mapping[str, Facts]) -> dict[tuple[str, int | None], dict[int, str]]:
    """Heads that differ by their seed alone.

    Args:
        facts: by the name of the head.

    Returns:
        By recipe and shots, see `row_of`: the name of the head of each seed, in the order of the seeds.

    Raises:
        ValueError: two heads have the same recipe, shots and seed, or one says no seed.
    """
    for name, own in facts.items():
        if not isinstance(own.get("seed"), int):
            raise ValueError(f"head {name!r} says no seed: it cannot stand beside others as one of several")
    groups: dict[tuple[str, int | None], dict[int, str]] = {}
    for name in sorted(facts, key=lambda each: facts[each]["seed"]):
        seed, (recipe, shots) = facts[name]["seed"], row_of(facts[name])
        other = groups.setdefault((recipe, shots), {}).setdefault(seed, name)
        if other != name:
            raise ValueError(
                f"heads {other!r} and {name!r} are both of {recipe}, {shots} shots and seed {seed}: name the "
                "one that counts"
            )
    return groups


def fewest_images(facts: Iterable[Facts]) -> dict[tuple[str, int | None], int]:
    """Of the rows for which a class had fewer training images than the shots: how many the poorest had."""
    found: dict[tuple[str, int | None], int] = {}
    for own in facts:
        fewest, row = own.get("training", {}).get("fewest_images_of_a_class"), row_of(own)
        if fewest is not None and row[1] and fewest < row[1]:
            found[row] = min(fewest, found.get(row, fewest))
    return found
