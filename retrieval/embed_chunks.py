"""Chunks of samples, read and decoded by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from clipkit.data import problems
from clipkit.data.problems import SampleError
from clipkit.images import ImageError, decode_pixels

from .embed_plan import Plan
from .embed_source import EmbedSource


class Item(NamedTuple):
    """A sample that is embedded, but for its pixels."""

    origin: dict[str, str]
    """The first metadata columns."""
    captions: tuple[str, ...]
    fields: Mapping[str, Any]
    """The json object of the sample."""


class Failure(NamedTuple):
    """A sample that could not be embedded."""

    sample: int
    """Its place in the source."""
    reason: str
    place: str


@dataclass
class Chunk:
    """What the samples of a chunk give."""

    images: Tensor | None = None
    """(b, 3, H, W) uint8, one for each item; None for texts, and where no image can be used."""
    items: list[Item] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def pin_memory(self) -> Chunk:
        """The chunk with its pixels where a GPU copies them from fastest; called by torch's loader."""
        return self if self.images is None else replace(self, images=self.images.pin_memory())


class Chunks:
    """Chunk number -> chunk; see `clipkit.data.workers.produce`."""

    def __init__(self, source: EmbedSource, plan: Plan, transform: Callable[[Image.Image], Tensor]) -> None:
        self._source = source
        self._plan = plan
        self._transform = transform

    def __getitem__(self, number: int) -> Chunk:
        chunk = Chunk()
        pixels = []
        for sample in self._plan.chunk_samples(number):
            try:
                item, image = self._prepare(sample)
            except (SampleError, ImageError) as error:
                place = utf8(self._source.source.where(sample))
                chunk.failures.append(Failure(sample, error.reason, place))
                continue
            chunk.items.append(item)
            if image is not None:
                pixels.append(image)
        chunk.images = torch.stack(pixels) if pixels else None
        return chunk

    def _prepare(self, sample: int) -> tuple[Item, Tensor | None]:
        raw = self._source.source.read(sample)
        if self._source.with_texts and not raw.captions:
            raise SampleError(problems.MISSING_CAPTION)
        image = None
        if self._source.with_images:
            rgb = decode_pixels(raw.image).permute(1, 2, 0).numpy()
            image = self._transform(Image.fromarray(rgb))
        origin = {name: utf8(value) for name, value in self._source.origin(sample, raw).items()}
        return Item(origin, tuple(map(utf8, raw.captions)), raw.fields), image


def utf8(text: str) -> str:
    """The text with `?` for what UTF-8 does not have: bytes of a file name, half a surrogate pair of JSON."""
    return text.encode("utf-8", "replace").decode("utf-8")
