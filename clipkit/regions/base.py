"""What every region head is: a module on an image tower's tokens that answers about parts of a picture."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from clipkit.distributed import Group
from clipkit.exchange import ExchangeName
from clipkit.losses.kernels import KernelName


@dataclass(frozen=True, kw_only=True)
class RegionBatch:
    """The regions of a batch of images on this rank."""

    boxes: Tensor
    """(R, 4) xyxy fractions of the images as the tower sees them."""
    box_index: Tensor
    """(R,) int64 in [0, B), rising: the image of each box."""
    phrase_features: Tensor
    """(R, D), L2-normalised: the text of each box."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """With which ranks regions and phrases are contrasted, and how that is computed; see `clip_loss`."""

    group: Group = None
    kernel: KernelName = "auto"
    exchange: ExchangeName = "gather"


WITH_ALL_RANKS = Contrast()


def check_settings(config: Any, *, fractions: Collection[str] = ()) -> None:
    """Refuse settings of a head that no head can have.

    Args:
        config: an instance of a `RegionHead.Config`; switches are bool, whole numbers at least 1, others
            more than 0 and finite.
        fractions: names of settings in [0, 1].

    Raises:
        ValueError: it names the setting.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(field.default, bool):
            fits, wanted = isinstance(value, bool), "true or false"
        elif isinstance(field.default, int):
            fits, wanted = is_number and isinstance(value, int) and value >= 1, "a whole number >= 1"
        elif field.name in fractions:
            fits, wanted = is_number and 0 <= value <= 1, "in [0, 1]"
        else:
            fits, wanted = is_number and 0 < value < math.inf, "a number > 0"
        if not fits:
            raise ValueError(f"the setting {field.name} of a region head must be {wanted}, got {value}")


class RegionHead(nn.Module, ABC):
    """Reads patch tokens of the last layer, (B, N, C) row by row of a grid, as `DualEncoder.tokens` gives."""

    kind: ClassVar[str]
    """Name in settings and files."""
    Config: ClassVar[type]
    """The settings, JSON-ready fields with defaults."""
    config: Any
    """An instance of `Config`."""

    @abstractmethod
    def forward(self, tokens: Tensor, grid: tuple[int, int], regions: RegionBatch) -> dict[str, Tensor]:
        """What `losses` needs of these images: named rows, one a region or one an image.

        A batch may come in parts, whose rows are put together before `losses` sees them.

        Args:
            tokens: (B, N, C).
            grid: (rows, columns) of the tokens.
            regions: of these B images; there may be none.
        """

    @abstractmethod
    def losses(
        self,
        rows: Mapping[str, Tensor],
        regions: RegionBatch,
        logit_scale: Tensor,
        contrast: Contrast = WITH_ALL_RANKS,
    ) -> dict[str, Tensor]:
        """Named losses of this rank; their means over ranks are those of all regions. Collective.

        Args:
            rows: what `forward` gave, of all images of this rank.
            regions: of these images; there may be none.
            logit_scale: scalar, exponentiated.
            contrast: with which ranks, and how it is computed.
        """

    @abstractmethod
    def encode_regions(
        self, tokens: Tensor, grid: tuple[int, int], boxes: Tensor, box_index: Tensor
    ) -> Tensor:
        """Features of boxes in the joint space: (R, D) fp32, L2-normalised.

        Args:
            tokens: (B, N, C).
            grid: (rows, columns) of the tokens.
            boxes: (R, 4) xyxy fractions.
            box_index: (R,) int64 in [0, B).
        """

    @abstractmethod
    def ground(self, tokens: Tensor, grid: tuple[int, int], phrase_features: Tensor, index: Tensor) -> Tensor:
        """Where phrases are: (P, 4) xyxy fractions in [0, 1].

        Args:
            tokens: (B, N, C).
            grid: (rows, columns) of the tokens.
            phrase_features: (P, D), L2-normalised.
            index: (P,) int64 in [0, B), the image of each phrase.

        Raises:
            ValueError: this head cannot ground.
        """
