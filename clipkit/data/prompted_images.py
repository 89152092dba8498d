"""Pictures with visual prompts, as a source."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from clipkit.data.problems import BAD_REGION, SampleError
from clipkit.data.samples import RawSample, Source
from clipkit.data.tables import read_file, segment_sizes
from clipkit.images import ImageError, decode_image
from clipkit.visual_prompts import PromptCanvas


@dataclass(frozen=True)
class Region:
    """Where something is in an image."""

    box: tuple[float, float, float, float]
    """x0, y0, x1, y1."""
    in_pixels: bool = False
    """Whether the box is in pixels, of which what sticks out of the image is cut off, or in [0, 1]."""
    mask: Path | None = None
    """An image file of the size of the image, not zero inside."""


@dataclass(frozen=True)
class RegionPrompt:
    """One sample of `PromptedImages`."""

    image: int
    """Which sample of the source it is made of."""
    number: int
    """Of the region in its image, for the key."""
    region: Region
    kind: str
    """See `clipkit.visual_prompts`."""


class PromptedImages(Source):
    """Sample i shows `prompts[i]`; its key is `KEY#NUMBER/KIND`, with the key of the image.

    `fields` holds `prompt`, the place i. Prompts of one image should follow each other: the last image stays
    decoded.
    """

    def __init__(self, source: Source, prompts: Sequence[RegionPrompt], *, sigma: float = 100.0) -> None:
        """Prompt the images of another source.

        Args:
            source: of the images.
            prompts: in any number for an image.
            sigma: of the blur, in pixels.
        """
        super().__init__(source.name)
        self.problems = source.problems
        self.sizes_per_shard = segment_sizes(len(prompts))
        self._source = source
        self._prompts = tuple(prompts)
        self._sigma = sigma
        self._last: tuple[int, str, PromptCanvas] | None = None

    def read(self, index: int) -> RawSample:
        """See `Source`."""
        prompt = self._prompts[index]
        key, canvas = self._open(prompt.image)
        mask = None if prompt.region.mask is None else _decode(read_file(prompt.region.mask))
        try:
            box = _fractions(prompt.region, canvas.image.size)
            picture = canvas.prompt(prompt.kind, box=box, mask=mask)
        except ValueError as error:
            raise SampleError(BAD_REGION, str(error)) from error
        content = io.BytesIO()
        # Not compressed: it is decoded at once, and the same bytes whatever the version of a compressor.
        picture.save(content, "PPM")
        return RawSample(
            f"{key}#{prompt.number}/{prompt.kind}", content.getvalue(), (), fields={"prompt": index}
        )

    def where(self, index: int) -> str:
        """See `Source`."""
        prompt = self._prompts[index]
        return f"{self._source.where(prompt.image)}#{prompt.number}/{prompt.kind}"

    def _open(self, index: int) -> tuple[str, PromptCanvas]:
        last = self._last
        if last is None or last[0] != index:
            sample = self._source.read(index)
            last = (index, sample.key, PromptCanvas(_decode(sample.image), sigma=self._sigma))
            self._last = last
        return last[1:]


def _decode(content: bytes) -> Image.Image:
    try:
        return decode_image(content)
    except ImageError as error:
        raise SampleError(error.reason, str(error)) from error


def _fractions(region: Region, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box of a region in [0, 1].

    Raises:
        ValueError: nothing of it is in the image.
    """
    if not region.in_pixels:
        return region.box
    x0, y0, x1, y1 = region.box
    width, height = size
    if not (x0 < width and y0 < height and x1 > 0 and y1 > 0):
        raise ValueError(f"the box {x0:g}, {y0:g}, {x1:g}, {y1:g} lies outside the {width} x {height} image")
    return max(x0 / width, 0.0), max(y0 / height, 0.0), min(x1 / width, 1.0), min(y1 / height, 1.0)
