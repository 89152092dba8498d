"""CoCoOp: context vectors that each image shifts by a small network (arXiv:2203.05557)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from clipkit.heads.base import Head
from clipkit.heads.features import cosine_logits, full_precision
from clipkit.prompts.class_texts import ClassTexts, class_texts
from clipkit.prompts.context import context_vectors
from clipkit.prompts.deep import check_count
from clipkit.prompts.parts import text_parts

if TYPE_CHECKING:
    from clipkit.model import DualEncoder

REDUCTION = 16
"""How much narrower than the joint space the network is in the middle."""
FEATURES_AT_ONCE = 2**24
"""Numbers in the class features that exist at once, of images times classes times width."""


@dataclass(frozen=True, kw_only=True)
class CocoopConfig:
    """Settings of CoCoOp."""

    num_prompts: int = 4
    """M, context vectors."""
    init: str = "a photo of a"
    """Words whose embeddings the vectors begin as, M tokens; empty for N(0, 0.02^2)."""

    def __post_init__(self) -> None:
        check_count("num_prompts", self.num_prompts)


class Cocoop(Head):
    """Vectors (M, text width), to each of which an image adds what the meta-net makes of its features.

    The meta-net is Linear(D, D / 16), ReLU, Linear(D / 16, text width) on the normalised features of the
    frozen image tower. So every image has class features of its own.
    """

    method: ClassVar[str] = "cocoop"
    Config: ClassVar[type] = CocoopConfig
    is_conditional: ClassVar[bool] = True

    def __init__(self, model: DualEncoder, config: CocoopConfig) -> None:
        super().__init__(config)
        width = text_parts(model.model).width
        middle = max(1, model.embed_dim // REDUCTION)
        self.context = context_vectors(model, config.init, config.num_prompts, width)
        self.meta_net = nn.Sequential(nn.Linear(model.embed_dim, middle), nn.ReLU(), nn.Linear(middle, width))

    def class_texts(self, model: DualEncoder, names: Sequence[str]) -> ClassTexts:
        """See `Head`."""
        return class_texts(model, names, "{c}.", self.config.num_prompts, insert=True)

    def text_features(self, model: DualEncoder, texts: ClassTexts) -> Tensor:
        """Refused: there are none without an image.

        Raises:
            ValueError: always.
        """
        raise ValueError("cocoop has other features of classes for each image: ask for logits")

    def logits(self, model: DualEncoder, image_features: Tensor, texts: ClassTexts) -> Tensor:
        """See `Head`; images are taken some at a time."""
        at_once = max(1, FEATURES_AT_ONCE // (len(texts.names) * model.embed_dim))
        return torch.cat([self._logits(model, some, texts) for some in torch.split(image_features, at_once)])

    def _logits(self, model: DualEncoder, image_features: Tensor, texts: ClassTexts) -> Tensor:
        prompts = self.context + full_precision(self.meta_net(image_features))[:, None]
        return cosine_logits(model, image_features, texts.encode_for_each(model, prompts))
