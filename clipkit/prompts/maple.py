"""MaPLe: prompts in both towers, those of images computed from those of texts (arXiv:2210.03117)."""

from __future__ import annotations

import copy
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
class MapleConfig:
    """Settings of MaPLe."""

    num_prompts: int = 2
    """M, prompts in each tower."""
    depth: int = 9
    """J, blocks of each tower that have prompts of their own; later ones let them pass."""
    shared_coupling: bool = False
    """One coupling function for all blocks but the first, instead of one a block."""

    def __post_init__(self) -> None:
        check_count("num_prompts", self.num_prompts)


class Maple(DeepPrompts):
    """Text prompts P_i (M, text width), and coupling functions F_i whose F_i(P_i) prompt the images.

    P_0 begins as the embeddings of the first words of "a photo of a", the others as N(0, 0.02^2). F_0 is a
    linear layer of torch's default initialisation, and so are the others, which begin alike.
    """

    method: ClassVar[str] = "maple"
    Config: ClassVar[type] = MapleConfig

    def __init__(self, model: DualEncoder, config: MapleConfig) -> None:
        super().__init__(config)
        text, image = text_parts(model.model), image_parts(model.model)
        depth = checked_depth(config.depth, text, image)
        count = config.num_prompts
        self.prompts = nn.ParameterList([first_text_prompts(model, count, text.width)])
        self.prompts.extend(random_vectors(count, text.width) for _ in range(depth - 1))
        self.first_coupling = nn.Linear(text.width, image.width)
        deep = nn.Linear(text.width, image.width)
        num_couplings = min(1, depth - 1) if config.shared_coupling else depth - 1
        self.couplings = nn.ModuleList(copy.deepcopy(deep) for _ in range(num_couplings))

    def text_prompts(self) -> Sequence[Tensor]:
        """See `DeepPrompts`."""
        return list(self.prompts)

    def image_prompts(self) -> Sequence[Tensor]:
        """See `DeepPrompts`."""
        first, *deep = self.prompts
        couplings = self.couplings if len(self.couplings) == len(deep) else list(self.couplings) * len(deep)
        pairs = zip(couplings, deep, strict=True)
        return [self.first_coupling(first), *(couple(vectors) for couple, vectors in pairs)]
