"""IVLP: independent prompts in both towers, the baseline of MaPLe (arXiv:2210.03117, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from clipkit.prompts.context import random_vectors
from clipkit.prompts.deep import DeepPrompts, check_count, first_text_prompts
from clipkit.prompts.parts import checked_depth, image_parts, text_parts

if TYPE_CHECKING:
    from clipkit.model import DualEncoder


@dataclass(frozen=True, kw_only=True)
class IvlpConfig:
    """Settings of IVLP."""

    num_text_prompts: int = 2
    """Prompts in the text tower."""
    num_image_prompts: int = 2
    """Prompts in the image tower."""
    depth: int = 9
    """Blocks of each tower that have prompts of their own."""

    def __post_init__(self) -> None:
        check_count("num_text_prompts", self.num_text_prompts)
        check_count("num_image_prompts", self.num_image_prompts)


class Ivlp(DeepPrompts):
    """Prompts of texts and images that know nothing of each other.

    The first of the texts begin as words, see `DeepPrompts`, all others as N(0, 0.02^2).
    """

    method: ClassVar[str] = "ivlp"
    Config: ClassVar[type] = IvlpConfig

    def __init__(self, model: DualEncoder, config: IvlpConfig) -> None:
        super().__init__(config)
        text, image = text_parts(model.model), image_parts(model.model)
        depth = checked_depth(config.depth, text, image)
        self.of_text = nn.ParameterList([first_text_prompts(model, config.num_text_prompts, text.width)])
        self.of_text.extend(random_vectors(config.num_text_prompts, text.width) for _ in range(depth - 1))
        self.of_image = nn.ParameterList(
            random_vectors(config.num_image_prompts, image.width) for _ in range(depth)
        )

    def text_prompts(self) -> Sequence[Tensor]:
        """See `DeepPrompts`."""
        return list(self.of_text)

    def image_prompts(self) -> Sequence[Tensor]:
        """See `DeepPrompts`."""
        return list(self.of_image)
