"""The shape of the joint space: no benchmark, but what explains one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clipkit.data.samples import Source
from clipkit.feature_diagnostics import alignment, effective_rank, modality_gap, pair_cosines, uniformity

from .base import Features, Measurement, Task
from .captioned import Captioned


@dataclass(frozen=True, kw_only=True)
class Diagnostics(Task):
    """Modality gap, alignment, uniformity, effective rank and cosines of pairs."""

    summary: ClassVar[str] = "modality gap, alignment, uniformity and effective rank of features"

    data: str
    """Images with captions, see `datasets.open_images`."""
    max_rows: int = 10_000
    """Features of each modality that uniformity and effective rank are computed from, drawn at random; time
    grows with their square. 0 for all."""

    def __post_init__(self) -> None:
        if self.max_rows < 0 or self.max_rows == 1:
            raise ValueError(f"max_rows must be at least 2, or 0 for all, got {self.max_rows}")

    def sources(self) -> dict[str, Source]:
        """The images, with their captions."""
        from ..datasets import open_images

        return {"images": open_images(self.data, require=("caption",))}

    def measure(self, features: Features) -> Measurement:
        """All figures; none has a best value of its own."""
        pairs = Captioned.of(features.only)
        images, texts = pairs.image_features, features.texts(pairs.texts)
        if len(images) < 2:
            raise ValueError(f"diagnostics need at least two images with captions, got {len(images)}")
        true, others = pair_cosines(texts, images, pairs.image_of_text)
        some_images, some_texts = self._drawn(images), self._drawn(texts)
        notes = pairs.notes()
        for modality, all_rows, rows in (("image", images, some_images), ("text", texts, some_texts)):
            if len(rows) < len(all_rows):
                notes += (f"uniformity and rank of {len(rows)} of {len(all_rows)} {modality} features",)
        metrics = {
            "modality_gap": modality_gap(images, texts),
            "alignment": alignment(texts, images[pairs.image_of_text]),
            "image_uniformity": uniformity(some_images),
            "text_uniformity": uniformity(some_texts),
            "image_effective_rank": effective_rank(some_images),
            "text_effective_rank": effective_rank(some_texts),
            "true_pair_cosine": true,
            "other_pair_cosine": others,
        }
        return Measurement(metrics=metrics, plain=tuple(metrics), notes=notes)

    def _drawn(self, features: Tensor) -> Tensor:
        if not 0 < self.max_rows < len(features):
            return features
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
        return features[order[: self.max_rows].sort().values]
