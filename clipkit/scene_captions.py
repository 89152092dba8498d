"""Captions that carry, as data, what they claim, so that their truth can be decided exactly."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from clipkit.scene_objects import Background, Description, SceneObject, relation

_NUMBERS = {1: "a", 2: "two", 3: "three"}
_SIZE_WORDS = {"small": ("small", "small", "tiny"), "large": ("large", "large", "big")}
_RELATION_WORDS = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_OPENINGS = ("", "", "", "a picture of ", "a picture with ", "an image of ")
TEMPLATES = ("a {c}", "a picture of a {c}", "a picture with a {c}", "an image of a {c}")
"""Sentences that name one object; `{c}` is "colour shape"."""


@dataclass(frozen=True)
class Has:
    """The scene has objects that fit: at least one for number 1, else exactly `number`."""

    what: Description
    number: int = 1

    def holds(self, objects: Sequence[SceneObject], background: Background) -> bool:
        """Whether the claim is true of the scene."""
        found = sum(self.what.fits(obj) for obj in objects)
        return found >= 1 if self.number == 1 else found == self.number


@dataclass(frozen=True)
class Related:
    """Some object that fits `subject` stands in `relation` to another that fits `other`."""

    subject: Description
    relation: str
    other: Description

    def holds(self, objects: Sequence[SceneObject], background: Background) -> bool:
        """Whether the claim is true of the scene."""
        return any(
            self.subject.fits(a) and self.other.fits(b) and relation(a, b) == self.relation
            for a, b in itertools.permutations(objects, 2)
        )


@dataclass(frozen=True)
class StandsOn:
    """The background has this style and tone."""

    style: str
    tone: str

    def holds(self, objects: Sequence[SceneObject], background: Background) -> bool:
        """Whether the claim is true of the scene."""
        return (self.style, self.tone) == (background.style, background.tone)


Claim = Has | Related | StandsOn


@dataclass(frozen=True)
class Caption:
    """A sentence and all that it claims.

    Args:
        text: the sentence, lower case.
        claims: every statement in it; the caption is true when all hold.
        detail: "names", "partial" or "full".
    """

    text: str
    claims: tuple[Claim, ...]
    detail: str

    def is_true_of(self, objects: Sequence[SceneObject], background: Background) -> bool:
        """Whether all claims hold."""
        return all(claim.holds(objects, background) for claim in self.claims)


@dataclass(frozen=True)
class Group:
    """Objects of a scene that share colour, shape and size, and so one noun phrase."""

    what: Description
    objects: tuple[SceneObject, ...]


def group(objects: Sequence[SceneObject]) -> list[Group]:
    """The objects by (colour, shape, size), in the order of first appearance."""
    groups: dict[Description, list[SceneObject]] = {}
    for obj in objects:
        groups.setdefault(Description(obj.colour, obj.shape, obj.size), []).append(obj)
    return [Group(what, tuple(members)) for what, members in groups.items()]


def noun_phrase(what: Description, number: int = 1, rng: random.Random | None = None) -> str:
    """E.g. "a small red circle at the top left", "three blue stars"; `rng` picks among synonyms."""
    size = what.size and (rng.choice(_SIZE_WORDS[what.size]) if rng else what.size)
    noun = what.shape or "shape"
    if number > 1:
        noun += "es" if noun == "cross" else "s"
    words = [_NUMBERS[number], size, what.colour, noun]
    where = what.cell and f"{'in' if what.cell == 'center' else 'at'} the {what.cell}"
    return " ".join(word for word in [*words, where] if word)


def _join(phrases: Sequence[str]) -> str:
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


def listing(
    said: Sequence[tuple[Description, int]], detail: str, rng: random.Random | None = None
) -> Caption:
    """All of `said`, one after the other."""
    text = _join([noun_phrase(what, number, rng) for what, number in said])
    return Caption(text, tuple(Has(what, number) for what, number in said), detail)


def related(subject: Description, word: str, other: Description, rng: random.Random | None = None) -> Caption:
    """One object in its relation to another; `word` is a key of `INVERSE`."""
    between = rng.choice(_RELATION_WORDS[word]) if rng else _RELATION_WORDS[word][0]
    text = f"{noun_phrase(subject, 1, rng)} {between} {noun_phrase(other, 1, rng)}"
    return Caption(text, (Has(subject), Has(other), Related(subject, word, other)), "partial")


def _say(
    rng: random.Random,
    groups: Sequence[Group],
    *,
    size: bool = False,
    cell: bool = False,
    colour: bool = True,
) -> list[tuple[Description, int]]:
    """What to say of each group, in random order; positions only of single objects.

    Without `colour` it is still said where another group has the same shape, so that counts stay true.
    """
    shapes = Counter(g.what.shape for g in groups)
    return [
        (
            Description(
                colour=g.what.colour if colour or shapes[g.what.shape] > 1 else None,
                shape=g.what.shape,
                size=g.what.size if size else None,
                cell=g.objects[0].cell if cell and len(g.objects) == 1 else None,
            ),
            len(g.objects),
        )
        for g in rng.sample(list(groups), len(groups))
    ]


def _with_background(caption: Caption, background: Background) -> Caption:
    text = f"{caption.text} on a {background.style} {background.tone} background"
    claim = StandsOn(background.style, background.tone)
    return replace(caption, text=text, claims=(*caption.claims, claim))


def _partial(rng: random.Random, groups: Sequence[Group], background: Background) -> Caption:
    """All groups and something more: sizes, positions, a relation, the background, or all but the colours."""
    kind = rng.choices(("size", "cell", "relation", "background", "uncoloured"), (2, 3, 5, 2, 5))[0]
    if kind == "relation" and (caption := _with_relation(rng, groups)) is not None:
        return caption
    size = kind in ("size", "uncoloured") or all(len(g.objects) > 1 for g in groups)
    cell = kind in ("cell", "relation", "uncoloured")
    said = _say(rng, groups, size=size, cell=cell, colour=kind != "uncoloured")
    listed = listing(said, "partial", rng)
    # Of a single group one attribute says little: the background comes on top.
    return _with_background(listed, background) if kind == "background" or len(groups) == 1 else listed


def _with_relation(rng: random.Random, groups: Sequence[Group]) -> Caption | None:
    """Two single objects in their relation, then the others; None where no pair is in one."""
    singles = [g for g in groups if len(g.objects) == 1]
    if len(singles) < 2:
        return None
    a, b = rng.sample(singles, 2)
    word = relation(a.objects[0], b.objects[0])
    if word is None:
        return None
    pair = related(replace(a.what, size=None), word, replace(b.what, size=None), rng)
    rest = [g for g in groups if g not in (a, b)]
    if not rest:
        return pair
    listed = listing(_say(rng, rest), "partial", rng)
    return Caption(f"{pair.text}, and {listed.text}", pair.claims + listed.claims, "partial")


def write_captions(
    rng: random.Random, objects: Sequence[SceneObject], background: Background
) -> tuple[Caption, ...]:
    """Four true captions of rising detail: the names in two orders, something more, everything."""
    groups = group(objects)
    captions = [
        listing(_say(rng, groups), "names", rng),
        listing(_say(rng, groups), "names", rng),
        _partial(rng, groups, background),
        _with_background(listing(_say(rng, groups, size=True, cell=True), "full", rng), background),
    ]
    return tuple(replace(caption, text=rng.choice(_OPENINGS) + caption.text) for caption in captions)


def write_names(obj: SceneObject) -> tuple[Caption, ...]:
    """What each of `TEMPLATES` says of an object."""
    claims = (Has(Description(obj.colour, obj.shape)),)
    name = f"{obj.colour} {obj.shape}"
    return tuple(Caption(template.format(c=name), claims, "names") for template in TEMPLATES)
