"""Which stored heads serve a protocol, by what their files say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def by_seed(facts: Mapping[str, Facts]) -> dict[tuple[str, int | None], dict[int, str]]:
    """Heads that differ by their seed alone.

    Args:
        facts: by the name of the head.

    Returns:
        By method and shots: the name of the head of each seed, in the order of the seeds.

    Raises:
        ValueError: two heads have the same method, shots and seed, or one says no seed.
    """
    for name, own in facts.items():
        if not isinstance(own.get("seed"), int):
            raise ValueError(f"head {name!r} says no seed: it cannot stand beside others as one of several")
    groups: dict[tuple[str, int | None], dict[int, str]] = {}
    for name in sorted(facts, key=lambda each: facts[each]["seed"]):
        own = facts[name]
        group = groups.setdefault((own["method"], own.get("shots")), {})
        other = group.setdefault(own["seed"], name)
        if other != name:
            raise ValueError(
                f"heads {other!r} and {name!r} are both of {own['method']}, {own.get('shots')} shots and "
                f"seed {own['seed']}: name the one that counts"
            )
    return groups
