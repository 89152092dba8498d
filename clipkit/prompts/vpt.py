"""VPT: prompts in the image tower alone, shallow or deep (arXiv:2203.12119)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from clipkit.heads.base import Head, frozen_text_features
from clipkit.heads.features import unit_features
from clipkit.prompts.class_texts import ClassTexts, class_texts
from clipkit.prompts.context import random_vectors
from clipkit.prompts.deep import TEMPLATE, check_count
from clipkit.prompts.parts import checked_depth, image_parts
from clipkit.prompts.slots import image_slots

if TYPE_CHECKING:
    from clipkit.model import DualEncoder


@dataclass(frozen=True, kw_only=True)
class VptConfig:
    """Settings of VPT."""

    num_prompts: int = 8
    """Prompts behind the patches."""
    depth: int = 9
    """Blocks that have prompts of their own; 1 is VPT-shallow."""

    def __post_init__(self) -> None:
        check_count("num_prompts", self.num_prompts)


class Vpt(Head):
    """Prompts (M, image width) a block, from N(0, 0.02^2); classes are texts "a photo of a {c}."."""

    method: ClassVar[str] = "vpt"
    Config: ClassVar[type] = VptConfig
    changes_image: ClassVar[bool] = True
    changes_text: ClassVar[bool] = False

    def __init__(self, model: DualEncoder, config: VptConfig) -> None:
        super().__init__(config)
        image = image_parts(model.model)
        depth = checked_depth(config.depth, image)
        self.prompts = nn.ParameterList(random_vectors(config.num_prompts, image.width) for _ in range(depth))

    def class_texts(self, model: DualEncoder, names: Sequence[str]) -> ClassTexts:
        """See `Head`."""
        return class_texts(model, names, TEMPLATE, 0)

    def text_features(self, model: DualEncoder, texts: ClassTexts) -> Tensor:
        """See `Head`."""
        return frozen_text_features(model, texts)

    def image_features(self, model: DualEncoder, images: Tensor) -> Tensor:
        """See `Head`."""
        with image_slots(model.model, list(self.prompts)):
            return unit_features(model.encode_image(images))
