"""What a scene is made of: coloured shapes on a background, with exact geometry to check captions on.

All coordinates are fractions of the image side, x to the right and y downwards, so that one scene can be
drawn at any size.
"""

from __future__ import annotations

from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")

COLOURS = {
    "red": (220, 25, 30),
    "brown": (130, 75, 35),
    "yellow": (250, 222, 20),
    "green": (25, 150, 50),
    "cyan": (50, 215, 225),
    "blue": (35, 70, 225),
    "purple": (140, 40, 185),
    "pink": (255, 130, 190),
}
"""Name -> RGB; every object is drawn within 10 levels a channel of its colour."""

TONES = {
    "white": (242, 242, 242),
    "gray": (155, 155, 155),
    "beige": (222, 202, 165),
    "lilac": (205, 195, 232),
}
"""Name -> RGB of the backgrounds; all lighter than the line round the objects, and no object's colour."""

STYLES = ("plain", "gradient", "noisy", "striped")

RADII = {"small": (0.115, 0.130), "large": (0.180, 0.205)}
"""Name -> range of half the box side."""

ROWS = COLUMNS = 3
CELLS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
"""The nine cells of the image, row by row."""

INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
MIN_RELATION_DISTANCE = 0.2
"""Two centres closer than this along an axis are in no relation along it."""

CLASSES = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
"""All (colour, shape) combinations; the class id is the index."""

UNSEEN_CLASSES = tuple((colour, SHAPES[(3 * i + 1) % len(SHAPES)]) for i, colour in enumerate(COLOURS))
"""What no training scene shows: one combination a colour and a shape, so each word alone is still learnt."""


@dataclass(frozen=True)
class SceneObject:
    """One shape: its attributes and the square that it fills.

    Args:
        shape: one of `SHAPES`.
        colour: one of `COLOURS`.
        size: "small" or "large".
        x: centre, fraction of the image width.
        y: centre, fraction of the image height.
        radius: half the side of the box.
        rgb: the colour as drawn, 0 to 255.
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    rgb: tuple[int, int, int]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Tight (x0, y0, x1, y1) in [0, 1]."""
        return (self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)

    @property
    def cell(self) -> str:
        """Which of the nine `CELLS` holds the centre."""
        return CELLS[int(self.y * ROWS) * COLUMNS + int(self.x * COLUMNS)]

    @property
    def class_id(self) -> int:
        """Index into `CLASSES`."""
        return CLASSES.index((self.colour, self.shape))

    def pixel_box(self, image_size: int) -> tuple[float, float, float, float]:
        """Tight (x0, y0, x1, y1) in pixels of an image of side `image_size`."""
        x0, y0, x1, y1 = self.box
        return (x0 * image_size, y0 * image_size, x1 * image_size, y1 * image_size)


@dataclass(frozen=True)
class Background:
    """What the objects stand on.

    Args:
        style: one of `STYLES`.
        tone: one of `TONES`.
        texture_seed: 32 bits from which the noise, the direction and the width of the stripes follow.
    """

    style: str
    tone: str
    texture_seed: int


@dataclass(frozen=True)
class Description:
    """What a noun phrase says of an object; None where it says nothing."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    cell: str | None = None

    def fits(self, obj: SceneObject) -> bool:
        """Whether everything said is true of `obj`."""
        return (
            self.colour in (None, obj.colour)
            and self.shape in (None, obj.shape)
            and self.size in (None, obj.size)
            and self.cell in (None, obj.cell)
        )


def relation(subject: SceneObject, other: SceneObject) -> str | None:
    """Where `subject` is, seen from `other`: a key of `INVERSE`, or None where no word is clearly right.

    A word is used when the centres are at least `MIN_RELATION_DISTANCE` apart along its axis and that
    distance is at least 1.25 times the distance along the other axis. So at most one word holds, and its
    inverse holds from the other side.
    """
    dx, dy = subject.x - other.x, subject.y - other.y
    if max(abs(dx), abs(dy)) < MIN_RELATION_DISTANCE:
        return None
    if abs(dx) >= 1.25 * abs(dy):
        return "left of" if dx < 0 else "right of"
    if abs(dy) >= 1.25 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def class_names() -> list[str]:
    """All "colour shape" names in the order of their class ids."""
    return [f"{colour} {shape}" for colour, shape in CLASSES]


def unseen_class_names() -> list[str]:
    """The class names that no training scene shows."""
    return [f"{colour} {shape}" for colour, shape in UNSEEN_CLASSES]
