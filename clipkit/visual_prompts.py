"""Visual prompts: pictures that point a frozen image tower at one region (FGVP, arXiv:2306.04356).

`crop` shows the region alone; `box` and `circle` draw a red frame or ellipse around it (arXiv:2304.06712);
`blur_reverse` and `grey_reverse` keep the pixels of the region and blur, or take the colour from, all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

KINDS = ("crop", "box", "circle", "blur_reverse", "grey_reverse")

_RED = (255, 0, 0)
# The published code draws lines of 2 pixels on pictures with a short side of 336.
_SHORT_SIDE_OF_A_PIXEL = 168


def visual_prompt(
    image: Image.Image,
    kind: str,
    *,
    box: Sequence[float] | None = None,
    mask: Image.Image | None = None,
    sigma: float = 100.0,
) -> Image.Image:
    """One picture with a prompt for one region.

    Args:
        image: of any mode.
        kind: one of `KINDS`.
        box: x0, y0, x1, y1 of the region as fractions of width and height; by default the extent of `mask`.
        mask: of the size of the image, not zero inside the region; what the reverse kinds keep, in place of
            the box.
        sigma: standard deviation of the blur in pixels of `image`.

    Returns:
        RGB, of the size of `image`, or of the box for `crop`.

    Raises:
        ValueError: an unknown kind, neither box nor mask, an empty or outlying box, a mask without a pixel or
            of another size, a `sigma` that is not positive.
    """
    return PromptCanvas(image, sigma=sigma).prompt(kind, box=box, mask=mask)


class PromptCanvas:
    """A picture that is to be prompted for several regions: what they share is computed once."""

    def __init__(self, image: Image.Image, *, sigma: float = 100.0) -> None:
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma must be > 0 pixels, got {sigma}")
        self.image = image.convert("RGB")
        self._sigma = sigma

    @cached_property
    def _blurred(self) -> Image.Image:
        # Pillow's is made of box filters, so that its time does not grow with sigma.
        return self.image.filter(ImageFilter.GaussianBlur(self._sigma))

    @cached_property
    def _grey(self) -> Image.Image:
        return self.image.convert("L").convert("RGB")

    def prompt(
        self, kind: str, *, box: Sequence[float] | None = None, mask: Image.Image | None = None
    ) -> Image.Image:
        """The picture with a prompt for one region; arguments and errors as of `visual_prompt`."""
        if kind not in KINDS:
            raise ValueError(f"unknown visual prompt {kind!r}; choose from {', '.join(KINDS)}")
        inside = None if mask is None else self._inside(mask)
        if box is not None:
            pixels = box_in_pixels(box, self.image.size)
        elif inside is not None:
            extent = inside.getbbox()
            assert extent is not None
            pixels = extent
        else:
            raise ValueError("a visual prompt needs a box or a mask of its region, got neither")
        if kind == "crop":
            return self.image.crop(pixels)
        if kind in ("box", "circle"):
            return self._framed(kind, pixels)
        result = (self._blurred if kind == "blur_reverse" else self._grey).copy()
        if inside is None:
            result.paste(self.image.crop(pixels), pixels)
        else:
            result.paste(self.image, mask=inside)
        return result

    def _inside(self, mask: Image.Image) -> Image.Image:
        """255 where the mask is not zero."""
        if mask.size != self.image.size:
            raise ValueError(
                f"a mask must have the size of its image, {self.image.width} x {self.image.height}, "
                f"got {mask.width} x {mask.height}"
            )
        has_levels = mask.mode in ("1", "L", "F") or mask.mode.startswith("I")
        marked = np.asarray(mask if has_levels else mask.convert("RGB")) != 0
        if not marked.any():
            raise ValueError("a mask must mark a pixel or more, got none")
        return Image.fromarray((marked if has_levels else marked.any(axis=2)).astype(np.uint8) * 255)

    def _framed(self, kind: str, pixels: tuple[int, int, int, int]) -> Image.Image:
        left, top, right, bottom = pixels
        result = self.image.copy()
        draw = ImageDraw.Draw(result)
        width = max(1, round(min(result.size) / _SHORT_SIDE_OF_A_PIXEL))
        corners = (left, top, right - 1, bottom - 1)
        (draw.rectangle if kind == "box" else draw.ellipse)(corners, outline=_RED, width=width)
        return result


def box_in_pixels(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box on the grid of pixels: edges at the nearest lines, one pixel or more in each direction.

    Args:
        box: x0, y0, x1, y1 as fractions of width and height.
        size: (width, height) in pixels.

    Returns:
        left, top, right, bottom; right and bottom are the first pixels outside.

    Raises:
        ValueError: it is empty, or not within [0, 1].
    """
    if len(box) != 4:
        raise ValueError(f"a box has four edges x0, y0, x1, y1, got {len(box)}")
    x0, y0, x1, y1 = map(float, box)
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise ValueError(
            "expected a box with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 in fractions of the image, "
            f"got {x0:g}, {y0:g}, {x1:g}, {y1:g}"
        )
    left, right = _on_grid(x0, x1, size[0])
    top, bottom = _on_grid(y0, y1, size[1])
    return left, top, right, bottom


def _on_grid(start: float, end: float, length: int) -> tuple[int, int]:
    first = min(round(start * length), length - 1)
    return first, max(first + 1, round(end * length))
