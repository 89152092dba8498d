"""Image features and scores of a head of the model directory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipkit.feature_cache import FeatureCache
from clipkit.json_files import canonical_json

from .encoder import EncodedImages, Encoder, Progress, no_progress

if TYPE_CHECKING:
    from clipkit.data.samples import Source
    from clipkit.heads.adapted import AdaptedEncoder
    from clipkit.heads.base import Head
    from clipkit.model import DualEncoder

_BLOCK = 256


class HeadEncoder(Encoder):
    """An encoder whose image features are those of a head.

    The cache has the features of a head that reaches into the image tower under a name of its own; others
    are made of the features of the model, which all questions share.
    """

    def __init__(
        self, adapted: AdaptedEncoder, cache: FeatureCache | None, *, precision: str = "fp32"
    ) -> None:
        """Wrap a model with a head; arguments as of `Encoder`."""
        super().__init__(adapted.model, cache, precision=precision)
        self._head = adapted.head
        if self._head.changes_image:
            facts = {name: adapted.facts[name] for name in ("method", "config", "tensors_sha256")}
            identity = hashlib.sha256(canonical_json(facts).encode()).hexdigest()
            self._image_kind = f"{self._image_kind}/head:{identity}"

    def _encode(self, images: Tensor) -> Tensor:
        if not self._head.changes_image:
            return super()._encode(images)
        return self._head.image_features(self.model, images)

    @torch.no_grad()
    def images(
        self,
        source: Source,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        progress: Progress = no_progress,
    ) -> EncodedImages:
        """See `Encoder`."""
        encoded = super().images(source, batch_size=batch_size, num_workers=num_workers, progress=progress)
        if self._head.changes_image or not len(encoded.index):
            return encoded
        features = self._head.from_frozen(encoded.features.to(self._device))
        return replace(encoded, features=features.cpu())


@torch.no_grad()
def head_logits(model: DualEncoder, head: Head, image_features: Tensor, class_names: Sequence[str]) -> Tensor:
    """Scores of a head, as a softmax takes them: (N, C) fp32 on the CPU.

    Args:
        model: the frozen dual encoder.
        head: trained beside it.
        image_features: (N, D), as `head.image_features` gives them, on any device.
        class_names: C.

    Raises:
        ValueError: the head knows only the classes that it was trained on, and others are asked for.
    """
    texts = head.class_texts(model, class_names)
    device = model.logit_scale.device
    blocks = [
        head.logits(model, block.to(device), texts).float().cpu()
        for block in torch.split(image_features, _BLOCK)
        if len(block)
    ]
    return torch.cat(blocks) if blocks else torch.empty(0, len(class_names))
