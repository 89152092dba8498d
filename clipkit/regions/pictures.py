"""Pictures with boxes drawn on them, and a line of text at each."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

COLOURS = ("#e6194b", "#1f6feb", "#15803d", "#c2410c", "#9333ea", "#0891b2", "#b45309", "#be185d")
"""Taken in turn."""

_MIN_FONT = 12


def draw_regions(
    image: Image.Image, boxes: Tensor, texts: Sequence[str], *, longest_side: int = 640
) -> Image.Image:
    """A picture with boxes, the first on top.

    Args:
        image: RGB.
        boxes: (R, 4) xyxy fractions.
        texts: one for each box.
        longest_side: pixels to which the picture is scaled, up or down, so that texts can be read.

    Returns:
        A new picture.
    """
    scale = longest_side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    result = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(result)
    font = ImageFont.load_default(max(_MIN_FONT, longest_side // 45))
    width = max(2, longest_side // 250)
    rows = list(zip(boxes.tolist(), texts, strict=True))
    for row in reversed(range(len(rows))):
        (x0, y0, x1, y1), text = rows[row]
        colour = COLOURS[row % len(COLOURS)]
        left, top = round(x0 * size[0]), round(y0 * size[1])
        right, bottom = max(left, round(x1 * size[0]) - 1), max(top, round(y1 * size[1]) - 1)
        draw.rectangle((left, top, right, bottom), outline=colour, width=width)
        if text:
            _label(draw, text, left, top, size, colour, font)
    return result


def sheet(rows: Sequence[Sequence[Image.Image]], *, gap: int = 12) -> Image.Image:
    """Rows of pictures of any size on white, `gap` pixels apart."""
    width = max(sum(part.width for part in row) + gap * (len(row) - 1) for row in rows)
    heights = [max(part.height for part in row) for row in rows]
    result = Image.new("RGB", (width, sum(heights) + gap * (len(rows) - 1)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for part in row:
            result.paste(part, (left, top))
            left += part.width + gap
        top += height + gap
    return result


def _label(
    draw: ImageDraw.ImageDraw,
    text: str,
    left: int,
    top: int,
    size: tuple[int, int],
    colour: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """White on the colour of the box, above it where there is room, and always inside the picture."""
    x0, y0, x1, y1 = draw.textbbox((0, 0), text, font=font)
    width, height = x1 - x0 + 6, y1 - y0 + 4
    x = max(0, min(left, size[0] - round(width)))
    y = top - height if top >= height else top
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 3 - x0, y + 2 - y0), text, fill="white", font=font)
