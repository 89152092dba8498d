"""Captions made false by one exchange, beside the true ones: tests of binding, relations and counting."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from clipkit.scene_captions import Caption, Group, group, listing, related
from clipkit.scene_objects import INVERSE, Background, SceneObject, relation


@dataclass(frozen=True)
class Foil:
    """A caption that is true of the scene and one of the same words, or nearly so, that is not.

    Args:
        kind: what was exchanged: "binding", "size", "cell", "relation" or "count".
        caption: the true one.
        foil: the false one.
    """

    kind: str
    caption: Caption
    foil: Caption


def write_foils(objects: Sequence[SceneObject], background: Background) -> Iterator[Foil]:
    """Pairs of a true and a false caption: one for every kind of exchange that the scene allows."""
    groups = group(objects)
    singles = [g for g in groups if len(g.objects) == 1]
    for kind, caption, foil in itertools.chain(_swaps(singles), _miscounts(groups)):
        if caption.is_true_of(objects, background) and not foil.is_true_of(objects, background):
            yield Foil(kind, caption, foil)


def _swaps(singles: Sequence[Group]) -> Iterator[tuple[str, Caption, Caption]]:
    for a, b in itertools.combinations(singles, 2):
        p, q = replace(a.what, size=None), replace(b.what, size=None)
        true = listing([(p, 1), (q, 1)], "names")
        yield (
            "binding",
            true,
            listing([(replace(p, colour=q.colour), 1), (replace(q, colour=p.colour), 1)], "names"),
        )
        sizes = [(replace(p, size=b.what.size), 1), (replace(q, size=a.what.size), 1)]
        yield "size", listing([(a.what, 1), (b.what, 1)], "partial"), listing(sizes, "partial")
        here, there = a.objects[0].cell, b.objects[0].cell
        placed, exchanged = (
            [(replace(p, cell=x), 1), (replace(q, cell=y), 1)] for x, y in [(here, there), (there, here)]
        )
        yield "cell", listing(placed, "partial"), listing(exchanged, "partial")
        word = relation(a.objects[0], b.objects[0])
        if word is not None:
            yield "relation", related(p, word, q), related(p, INVERSE[word], q)


def _miscounts(groups: Sequence[Group]) -> Iterator[tuple[str, Caption, Caption]]:
    for g in groups:
        number, what = len(g.objects), replace(g.what, size=None)
        if number > 1:
            yield "count", listing([(what, number)], "names"), listing([(what, 5 - number)], "names")
