"""Images with all their captions, as tasks on pairs take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import ImageSet


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """The images that have a caption; made by `of`."""

    image_features: Tensor
    """(N, D) fp32, rows L2-normalised."""
    texts: tuple[str, ...]
    """(T,) all captions of all images, grouped by image."""
    image_of_text: Tensor
    """(T,) int64, rising."""
    num_left_out: int
    """Images without a caption."""

    @classmethod
    def of(cls, images: ImageSet) -> Captioned:
        """Leave out what has no caption.

        Raises:
            ValueError: nothing has one.
        """
        kept = [row for row, sample in enumerate(images.samples) if sample.captions]
        if not kept:
            raise ValueError(f"no image of {images.name} has a caption")
        captions = [images.samples[row].captions for row in kept]
        counts = torch.tensor([len(one) for one in captions])
        return cls(
            image_features=images.features[kept],
            texts=tuple(text for one in captions for text in one),
            image_of_text=torch.arange(len(kept)).repeat_interleave(counts),
            num_left_out=len(images.samples) - len(kept),
        )

    @property
    def texts_per_image(self) -> Tensor:
        """(N,) int64."""
        return torch.bincount(self.image_of_text)

    def notes(self) -> tuple[str, ...]:
        """A sentence on what was left out."""
        return (f"{self.num_left_out:,} images without a caption are left out",) if self.num_left_out else ()
