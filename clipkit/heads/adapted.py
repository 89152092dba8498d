"""A model with a head: classifies among any classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipkit.heads.files import StoredHead
from clipkit.prompts.class_texts import ClassTexts

if TYPE_CHECKING:
    from clipkit.model import DualEncoder


class AdaptedEncoder:
    """What `DualEncoder.with_head` gives; results are without gradient, on the model's device."""

    def __init__(self, model: DualEncoder, stored: StoredHead) -> None:
        self.model = model
        self.head = stored.head
        self.facts = stored.facts
        """What the head's file says of it."""
        self._texts: tuple[tuple[str, ...], ClassTexts] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that were trained."""
        return tuple(self.facts["class_names"])

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), as `DualEncoder.encode_image` takes it -> (B, D) fp32, L2-normalised."""
        return self.head.image_features(self.model, images.to(self.model.logit_scale.device))

    @torch.no_grad()
    def class_features(self, names: Sequence[str]) -> Tensor:
        """(C, D) fp32, L2-normalised.

        Raises:
            ValueError: the method has other features of classes for each image, or none for a name.
        """
        return self.head.text_features(self.model, self._class_texts(names))

    @torch.no_grad()
    def logits(self, images: Tensor, names: Sequence[str]) -> Tensor:
        """Scores (B, C) fp32, as a softmax takes them, of images (B, 3, H, W) for any classes."""
        return self.head.logits(self.model, self.encode_image(images), self._class_texts(names))

    def _class_texts(self, names: Sequence[str]) -> ClassTexts:
        if self._texts is None or self._texts[0] != tuple(names):
            self._texts = tuple(names), self.head.class_texts(self.model, names)
        return self._texts[1]
