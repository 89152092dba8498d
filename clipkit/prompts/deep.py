"""What methods with prompts in text and image have in common: slots in both towers, a text with words."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from clipkit.heads.base import Head
from clipkit.heads.features import unit_features
from clipkit.prompts.class_texts import ClassTexts, class_texts
from clipkit.prompts.context import random_vectors, word_vectors
from clipkit.prompts.slots import image_slots

if TYPE_CHECKING:
    from clipkit.model import DualEncoder

TEMPLATE = "a photo of a {c}."
_MAX_WORDS = 4
"""Prompts begin as the words "a photo of a" up to this number, and as noise beyond."""


class DeepPrompts(Head):
    """Prompts before the first blocks of both towers."""

    changes_image: ClassVar[bool] = True

    @abstractmethod
    def text_prompts(self) -> Sequence[Tensor]:
        """(M, text width) before each prompted block of the text tower."""

    @abstractmethod
    def image_prompts(self) -> Sequence[Tensor]:
        """(M', image width) before each prompted block of the image tower."""

    def class_texts(self, model: DualEncoder, names: Sequence[str]) -> ClassTexts:
        """See `Head`; prompts take the place of the first words, where there are few enough."""
        count = len(self.text_prompts()[0])
        if count > _MAX_WORDS:
            return class_texts(model, names, "{c}.", count, insert=True)
        return class_texts(model, names, TEMPLATE, count)

    def text_features(self, model: DualEncoder, texts: ClassTexts) -> Tensor:
        """See `Head`."""
        return texts.encode(model, self.text_prompts())

    def image_features(self, model: DualEncoder, images: Tensor) -> Tensor:
        """See `Head`."""
        with image_slots(model.model, self.image_prompts()):
            return unit_features(model.encode_image(images))


def first_text_prompts(model: DualEncoder, count: int, width: int) -> nn.Parameter:
    """The prompts before the first block: words where there are few enough, else noise."""
    if count > _MAX_WORDS:
        return random_vectors(count, width)
    return nn.Parameter(word_vectors(model, TEMPLATE, count))


def check_count(name: str, count: int) -> None:
    """Refuse a number of prompts below 1."""
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
