"""A model's own region head as a detector: labels from a trained CLOC or GRAIN model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

import clipkit
from clipkit.preprocess import eval_transform
from clipkit.regions.answers import region_head_of
from clipkit.regions.labelling.detectors import Detections
from clipkit.windows import eval_window


class RegionHeadDetector:
    """Asks the head where each phrase is, and takes the phrase that fits best for each box.

    A score is the cosine of box and phrase in the joint space.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """Load a model.

        Raises:
            ValueError: it has no region head that grounds.
        """
        self._device = device
        self._model = clipkit.load(name, device=device)
        self._transform = eval_transform(self._model.preprocess_config)
        blank = torch.zeros(1, 3, *self._model.image_size, device=device)
        self._model.ground(blank, ["a"])  # refuses here what cannot ground

    @torch.inference_mode()
    def __call__(self, image: Image.Image, phrases: Sequence[str]) -> Detections:
        """See `Detector`."""
        model = self._model
        seen = model.tokens(self._transform(image)[None].to(self._device))
        assert seen.grid is not None  # an image has one
        phrase_features = model.encode_text(model.tokenizer(list(phrases)), normalize=True)
        index = torch.zeros(len(phrases), dtype=torch.int64, device=self._device)
        shown = region_head_of(model).ground(seen.tokens[0], seen.grid, phrase_features, index)
        features = model.encode_regions(seen, shown, index)
        best = (features @ phrase_features.float().T).max(dim=1)
        window = eval_window(model.preprocess_config, (image.height, image.width))
        return Detections(window.invert(shown.float().cpu()), best.values.cpu(), best.indices.cpu())
