"""Draw a scene with Pillow: textured background, then the outlined shapes, each at its exact box."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from clipkit.scene_objects import TONES, Background, SceneObject

_SUPERSAMPLING = 3
_CONTRAST = 36.0
"""Levels by which noise, stripes and gradients leave the tone, at most."""

_OUTLINE = (15, 15, 15)
_OUTLINE_WIDTH = 1 / 64
"""Fraction of the image side. The dark line makes a shape the same edges on every colour and background:
without it small networks need several times the samples to learn shapes."""
_RING_WIDTH = 0.27
"""Fraction of the box side."""

Point = tuple[float, float]


def _fill_box(points: Sequence[Point]) -> list[Point]:
    """Stretch a polygon so that it touches all four sides of [-1, 1] x [-1, 1]."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return [
        (2 * (x - min(xs)) / (max(xs) - min(xs)) - 1, 2 * (y - min(ys)) / (max(ys) - min(ys)) - 1)
        for x, y in points
    ]


def _star(num_points: int = 5, inner_radius: float = 0.42) -> list[Point]:
    angles = [math.pi * i / num_points for i in range(2 * num_points)]
    radii = [1.0 if i % 2 == 0 else inner_radius for i in range(2 * num_points)]
    return [(r * math.sin(a), -r * math.cos(a)) for a, r in zip(angles, radii, strict=True)]


def _heart(num_points: int = 40) -> list[Point]:
    angles = [2 * math.pi * i / num_points for i in range(num_points)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in angles
    ]


def _cross(arm: float = 0.34) -> list[Point]:
    corner = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    turns = [
        corner,
        [(-y, x) for x, y in corner],
        [(-x, -y) for x, y in corner],
        [(y, -x) for x, y in corner],
    ]
    return [point for turn in turns for point in turn]


_POLYGONS = {
    "square": [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
    "triangle": [(0.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
    "diamond": [(0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)],
    "star": _fill_box(_star()),
    "heart": _fill_box(_heart()),
    "cross": _cross(),
}


def _masks(obj: SceneObject, image_size: int) -> tuple[Image.Image, Image.Image, tuple[int, int]]:
    """Coverage (mode L) by the whole shape and by its inside, and the pixel of their top left corner."""
    x0, y0, x1, y1 = obj.pixel_box(image_size)
    left, top = math.floor(x0), math.floor(y0)
    width, height = math.ceil(x1) - left, math.ceil(y1) - top
    scale = _SUPERSAMPLING
    whole, inside = (Image.new("L", (width * scale, height * scale)) for _ in range(2))
    # ImageDraw fills up to and including the last pixel: hence the - 1.
    low_x, low_y = (x0 - left) * scale, (y0 - top) * scale
    high_x, high_y = (x1 - left) * scale - 1, (y1 - top) * scale - 1
    line = max(1, round(_OUTLINE_WIDTH * image_size * scale))
    if obj.shape in ("circle", "ring"):
        hole = _RING_WIDTH * (high_x - low_x) if obj.shape == "ring" else None
        for mask, inset in ((whole, 0), (inside, line)):
            draw = ImageDraw.Draw(mask)
            draw.ellipse((low_x + inset, low_y + inset, high_x - inset, high_y - inset), fill=255)
            if hole is not None:
                rim = hole - inset
                draw.ellipse((low_x + rim, low_y + rim, high_x - rim, high_y - rim), fill=0)
    else:
        half_x, half_y = (high_x - low_x) / 2, (high_y - low_y) / 2
        points = [(low_x + (x + 1) * half_x, low_y + (y + 1) * half_y) for x, y in _POLYGONS[obj.shape]]
        ImageDraw.Draw(whole).polygon(points, fill=255)
        ImageDraw.Draw(inside).polygon(points, fill=255, outline=0, width=line)
    return whole.reduce(scale), inside.reduce(scale), (left, top)


def _texture(background: Background, image_size: int) -> NDArray[np.float64]:
    """(H, W, 1 or 3) levels to add to the tone."""
    rng = random.Random(background.texture_seed)
    if background.style == "plain":
        return np.full((image_size, image_size, 1), rng.uniform(-8, 8))
    if background.style == "noisy":
        noise = np.frombuffer(rng.randbytes(image_size * image_size * 3), dtype=np.uint8)
        return np.interp(noise, (0, 255), (-_CONTRAST, _CONTRAST)).reshape(image_size, image_size, 3)
    angle = rng.choice(range(8)) * math.pi / 4
    along = (np.arange(image_size) + 0.5) / image_size - 0.5
    ramp = np.add.outer(along * math.sin(angle), along * math.cos(angle))[..., None]
    if background.style == "gradient":
        return np.multiply(ramp, 2 * _CONTRAST)
    waves = np.sin(ramp * (2 * math.pi * rng.uniform(5.0, 8.0)) + rng.uniform(0, 2 * math.pi))
    return np.multiply(np.sign(waves), 0.8 * _CONTRAST)


def draw_background(background: Background, image_size: int) -> Image.Image:
    """The empty RGB image of side `image_size`."""
    tone = np.asarray(TONES[background.tone], dtype=np.float64)
    # Rounded before the cast, so that machines whose sine differs in the last bit draw the same image.
    levels = np.clip(np.rint(tone + _texture(background, image_size)), 0, 255).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(levels, (image_size, image_size, 3)).copy())


def draw(objects: Sequence[SceneObject], background: Background, image_size: int) -> Image.Image:
    """The scene as an RGB image of side `image_size` pixels."""
    image = draw_background(background, image_size)
    for obj in objects:
        whole, inside, (left, top) = _masks(obj, image_size)
        region = (left, top, left + whole.width, top + whole.height)
        image.paste(_OUTLINE, region, whole)
        image.paste(obj.rgb, region, inside)
    return image
