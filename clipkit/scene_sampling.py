"""Draw scenes at random: scene i is a function of (seed, split, i) alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image

from clipkit import scene_drawing
from clipkit.scene_captions import Caption, noun_phrase, write_captions, write_names
from clipkit.scene_foils import Foil, write_foils
from clipkit.scene_objects import (
    CELLS,
    CLASSES,
    COLOURS,
    COLUMNS,
    RADII,
    STYLES,
    TONES,
    UNSEEN_CLASSES,
    Background,
    Description,
    SceneObject,
)

_T = TypeVar("_T")

SPLITS = ("train", "train_objects", "val", "objects")
"""train and train_objects: no combination of `UNSEEN_CLASSES`; val: all; objects: one object, class i % 64 in
scene i; train_objects: one object, the trained classes in turn, captioned by name alone."""

_LONE = {
    "objects": CLASSES,
    "train_objects": tuple(kind for kind in CLASSES if kind not in UNSEEN_CLASSES),
}
"""Split of lone objects -> the classes it goes through."""

KIND_WEIGHTS = {"train": {1: 0.30, 2: 0.30, 3: 0.40}, "val": {1: 0.10, 2: 0.35, 3: 0.55}}
"""Split -> how many kinds of object a scene has -> probability.

Single kinds teach the words soonest; their short captions fit dozens of scenes, so evaluation has fewer.
"""
REPEAT_WEIGHTS = {1: 0.65, 2: 0.2, 3: 0.15}
"""How many objects of the first kind -> probability; a scene has at most four objects."""
_MAX_OBJECTS = 4
SHARED_WEIGHTS = {"colour": 0.45, "shape": 0.15, "nothing in particular": 0.40}
"""What a further kind takes over from one before -> probability; colours more, as they are learnt first."""
_GAP = 0.015
"""Boxes never come closer than this to each other or to the border: nothing overlaps."""
_CELL_MARGIN = 0.04
"""Centres keep this distance from the borders of their cell, so that the position word is clear."""


@dataclass(frozen=True)
class Scene:
    """A captioned scene with exact ground truth.

    Args:
        key: unique within the split, nine digits.
        objects: one to four, no two overlapping, no two in one cell.
        background: what they stand on.
        captions: true sentences, of rising detail or, in train_objects, naming alone.
    """

    key: str
    objects: tuple[SceneObject, ...]
    background: Background
    captions: tuple[Caption, ...]

    def draw(self, image_size: int = 64) -> Image.Image:
        """The scene as an RGB image of side `image_size` pixels, drawn anew at every call."""
        return scene_drawing.draw(self.objects, self.background, image_size)

    def foils(self) -> tuple[Foil, ...]:
        """True and false captions that differ in one exchange (see `Foil`)."""
        return tuple(write_foils(self.objects, self.background))

    def phrases(self) -> tuple[str, ...]:
        """For every object a phrase that fits it alone, e.g. "the small red star"."""
        return tuple(self._phrase(obj) for obj in self.objects)

    def _phrase(self, obj: SceneObject) -> str:
        what = Description(obj.colour, obj.shape, obj.size)
        if sum(what.fits(other) for other in self.objects) > 1:
            what = Description(obj.colour, obj.shape, obj.size, obj.cell)
        return "the " + noun_phrase(what).removeprefix("a ")


def generate(num: int, *, seed: int = 0, split: str = "train", start: int = 0) -> Iterator[Scene]:
    """Scenes `start` to `start + num - 1` of a split.

    Raises:
        ValueError: `split` is not one of `SPLITS`, or a count is negative.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
    if num < 0 or start < 0:
        raise ValueError(f"num and start must be >= 0, got {num} and {start}")
    return (_scene(seed, split, index) for index in range(start, start + num))


def compose(
    rng: random.Random, key: str, kinds: Sequence[tuple[str, str]], *, names_only: bool = False
) -> Scene:
    """A scene with an object of each of these (colour, shape); sizes, places and background are drawn.

    Args:
        rng: what is drawn from.
        key: of the scene.
        kinds: one to four; equal ones get the same size.
        names_only: whether the captions, of a single object, say its name alone.
    """
    objects = None
    while objects is None:
        objects = _place(rng, kinds)
    background = Background(rng.choice(STYLES), rng.choice(tuple(TONES)), rng.getrandbits(32))
    captions = write_names(objects[0]) if names_only else write_captions(rng, objects, background)
    return Scene(key, tuple(objects), background, captions)


def _scene(seed: int, split: str, index: int) -> Scene:
    # A string seed goes through SHA-512, so near-by seeds and indices give unrelated scenes on any machine.
    rng = random.Random(f"{seed}/{split}/{index}")
    kinds = [_LONE[split][index % len(_LONE[split])]] if split in _LONE else _kinds(rng, split)
    return compose(rng, f"{index:09d}", kinds, names_only=split == "train_objects")


def _kinds(rng: random.Random, split: str) -> list[tuple[str, str]]:
    """(colour, shape) of every object; equal ones come first."""
    allowed = [kind for kind in CLASSES if split != "train" or kind not in UNSEEN_CLASSES]
    kinds = [rng.choice(allowed)]
    for _ in range(_draw(rng, KIND_WEIGHTS[split]) - 1):
        like = rng.choice(kinds)
        shared = _draw(rng, SHARED_WEIGHTS)
        pool = [
            (colour, shape)
            for colour, shape in allowed
            if (colour, shape) not in kinds
            and (shared != "colour" or colour == like[0])
            and (shared != "shape" or shape == like[1])
        ]
        kinds.append(rng.choice(pool))
    repeats = min(_draw(rng, REPEAT_WEIGHTS), _MAX_OBJECTS + 1 - len(kinds))
    return [kinds[0]] * (repeats - 1) + kinds


def _draw(rng: random.Random, weights: dict[_T, float]) -> _T:
    return rng.choices(list(weights), list(weights.values()))[0]


def _place(rng: random.Random, kinds: Sequence[tuple[str, str]]) -> list[SceneObject] | None:
    """Objects of these kinds in different cells, or None where two would come too close."""
    objects: list[SceneObject] = []
    sizes: dict[tuple[str, str], str] = {}
    for (colour, shape), cell in zip(kinds, rng.sample(range(len(CELLS)), len(kinds)), strict=True):
        size = sizes.setdefault((colour, shape), rng.choice(tuple(RADII)))
        radius = rng.uniform(*RADII[size])
        row, column = divmod(cell, COLUMNS)
        x, y = (_coordinate(rng, step, radius) for step in (column, row))
        red, green, blue = (min(255, max(0, level + rng.randint(-10, 10))) for level in COLOURS[colour])
        objects.append(SceneObject(shape, colour, size, x, y, radius, (red, green, blue)))
        if any(_too_close(objects[-1], other) for other in objects[:-1]):
            return None
    return objects


def _coordinate(rng: random.Random, step: int, radius: float) -> float:
    low, high = step / COLUMNS + _CELL_MARGIN, (step + 1) / COLUMNS - _CELL_MARGIN
    return rng.uniform(max(low, radius + _GAP), min(high, 1 - radius - _GAP))


def _too_close(a: SceneObject, b: SceneObject) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y)) < a.radius + b.radius + _GAP
