"""A model's own region head as a detector: labels from a trained CLOC or GRAIN model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

import clipkit
from clipkit.regions.labelling.detectors import Detections
from clipkit.regions.look import ground_seen, see


class RegionHeadDetector:
    """Asks the head where each phrase is, and takes the phrase that fits best for each box.

    A score is the cosine of box and phrase in the joint space.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """Load a model.

        Raises:
            ValueError: it has no region head that grounds.
        """
        self._model = clipkit.load(name, device=device)
        blank = torch.zeros(1, 3, *self._model.image_size, device=device)
        self._model.ground(blank, ["a"])  # refuses here what cannot ground

    @torch.inference_mode()
    def __call__(self, image: Image.Image, phrases: Sequence[str]) -> Detections:
        """See `Detector`."""
        corners, cosines = ground_seen(self._model, see(self._model, image, phrases))
        best = cosines.max(dim=1)
        return Detections(corners, best.values, best.indices)
