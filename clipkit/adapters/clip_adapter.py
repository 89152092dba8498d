"""CLIP-Adapter: a bottleneck behind the frozen image tower (arXiv:2110.04544)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from clipkit.adapters.frozen_classes import FrozenClasses, FrozenClassesConfig
from clipkit.heads.features import full_precision, unit_features

if TYPE_CHECKING:
    from clipkit.model import DualEncoder


@dataclass(frozen=True, kw_only=True)
class ClipAdapterConfig(FrozenClassesConfig):
    """Settings of CLIP-Adapter."""

    reduction: int = 4
    """By how much the bottleneck is narrower than the features."""
    ratio: float = 0.2
    """Share of the adapter's output in the mixture with the model's own features."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction < 1:
            raise ValueError(f"reduction must be at least 1, got {self.reduction}")
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio must be 0 to 1, got {self.ratio}")


class ClipAdapter(FrozenClasses):
    """Image features are `ratio * relu(up(relu(down(x)))) + (1 - ratio) * x`, normalised.

    There is no bias, so scaling x scales the mixture: features that were normalised before, as training
    caches them, give the same as the published code's, which are not.
    """

    method: ClassVar[str] = "clip-adapter"
    Config: ClassVar[type] = ClipAdapterConfig

    def __init__(self, model: DualEncoder, config: ClipAdapterConfig) -> None:
        super().__init__(config)
        width = model.embed_dim
        hidden = width // config.reduction
        if hidden < 1:
            raise ValueError(
                f"reduction must be at most {width}, the width of the features, got {config.reduction}"
            )
        self.down = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(hidden, width, bias=False)

    def from_frozen(self, image_features: Tensor) -> Tensor:
        """See `Head`."""
        with torch.autocast(image_features.device.type, enabled=False):
            own = full_precision(image_features)
            adapted = torch.relu(self.up(torch.relu(self.down(own))))
            return unit_features(self.config.ratio * adapted + (1 - self.config.ratio) * own)
