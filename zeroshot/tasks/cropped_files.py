"""Parts of image files, as a source."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipkit.data.problems import SampleError
from clipkit.data.samples import RawSample, Source
from clipkit.data.tables import read_file, segment_sizes
from clipkit.images import CORRUPT_IMAGE, ImageError, decode_image

Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels of the file."""


@dataclass(frozen=True)
class ImagePart:
    """An image file, or the part of it in a box."""

    path: Path
    box: Box | None = None

    @property
    def key(self) -> str:
        """The key of the sample: the path, and the box behind a `#`."""
        return str(self.path) if self.box is None else f"{self.path}#{','.join(f'{x:g}' for x in self.box)}"


class CroppedFiles(Source):
    """Sample i is part i: the bytes of the file as they are, or those of its box as a PPM file.

    PPM keeps the pixels exactly. A box is cut as Pillow's `crop` does: its corners are rounded, and what it
    has outside the image is black.
    """

    def __init__(self, parts: Sequence[ImagePart]) -> None:
        super().__init__("images")
        self.parts = tuple(parts)
        self.sizes_per_shard = segment_sizes(len(self.parts))

    def read(self, index: int) -> RawSample:
        """See `Source`."""
        part = self.parts[index]
        data = read_file(part.path)
        return RawSample(part.key, data if part.box is None else _cropped(data, part.box), ())

    def where(self, index: int) -> str:
        """See `Source`."""
        return self.parts[index].key


def _cropped(data: bytes, box: Box) -> bytes:
    try:
        image = decode_image(data)
    except ImageError as error:
        raise SampleError(error.reason, str(error)) from error
    left, top, width, height = box
    x0, y0, x1, y1 = round(left), round(top), round(left + width), round(top + height)
    if max(0, x0) >= min(image.width, x1) or max(0, y0) >= min(image.height, y1):
        size = f"{image.width} x {image.height}"
        raise SampleError(CORRUPT_IMAGE, f"the box {box} covers none of its {size} pixels")
    stream = io.BytesIO()
    image.crop((x0, y0, x1, y1)).save(stream, "PPM")
    return stream.getvalue()
