"""Teachers: adapted or plain dual encoders that a head learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipkit.heads.base import Head, frozen_text_features
from clipkit.heads.features import cosine_logits, unit_features
from clipkit.prompts.class_texts import class_texts
from clipkit.prompts.deep import TEMPLATE

if TYPE_CHECKING:
    from clipkit.model import DualEncoder


class Teacher:
    """A frozen model, with a head or without. No module, so that it never becomes part of what it teaches."""

    def __init__(self, model: DualEncoder, head: Head | None = None) -> None:
        """Take a model, and the head that belongs to it.

        Raises:
            ValueError: the head does not score by the cosine of an image and a class.
        """
        if head is not None and (head.is_conditional or type(head).logits is not Head.logits):
            raise ValueError(
                f"a teacher needs features of classes, which {head.method} does not have: use a head of "
                "promptsrc, maple, ivlp, vpt, coop or clip-adapter, or the model without a head"
            )
        self.model = model
        self.head = head

    @torch.no_grad()
    def text_features(self, names: Sequence[str]) -> Tensor:
        """(C, D) fp32, L2-normalised; without a head, of "a photo of a {c}."."""
        if self.head is None:
            return frozen_text_features(self.model, class_texts(self.model, names, TEMPLATE, 0))
        return self.head.text_features(self.model, self.head.class_texts(self.model, names))

    @torch.no_grad()
    def logits(self, images: Tensor, text_features: Tensor) -> Tensor:
        """Scores (B, C) fp32 of images (B, 3, H, W) for the classes of `text_features` (C, D)."""
        if self.head is None:
            features = unit_features(self.model.encode_image(images))
        else:
            features = self.head.image_features(self.model, images)
        return cosine_logits(self.model, features, text_features)
