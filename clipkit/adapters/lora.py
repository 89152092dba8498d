"""LoRA: low-rank updates of the projections in the towers' blocks (arXiv:2106.09685; on CLIP, 2405.18541).

The fused attention weight of open_clip's blocks is a raw parameter, to which adapters that wrap linear layers
cannot attach. `peft` has a class for `nn.MultiheadAttention`, but with one pair of matrices for query, key
and value together, by replacing modules of the model, and it needs transformers and accelerate. Here each
projection has its own pair, and a tower computes with updated weights inside a context (`swapped_weights`),
so that its modules stay as they are.

The updated weights have the type of the model's own, and bf16 and fp16 keep no update that is smaller than
half a step of theirs: keep the model in fp32 and compute under autocast, or merge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from clipkit.adapters.projections import KINDS, Projection, projections
from clipkit.adapters.swapped_weights import swapped_weights
from clipkit.heads.base import Head
from clipkit.heads.features import full_precision, unit_features
from clipkit.prompts.class_texts import ClassTexts, class_texts
from clipkit.prompts.deep import TEMPLATE

if TYPE_CHECKING:
    from clipkit.model import DualEncoder


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Settings of LoRA."""

    rank: int = 2
    """Of each update."""
    alpha: float = 2.0
    """Updates are scaled by alpha / rank."""
    towers: Literal["both", "image", "text"] = "both"
    """Which towers are updated."""
    targets: tuple[str, ...] = ("q", "k", "v")
    """Which projections of a block: q, k, v, out, mlp."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.alpha <= 0:
            raise ValueError(f"alpha must be > 0, got {self.alpha}")
        unknown = [target for target in self.targets if target not in KINDS]
        if unknown or not self.targets:
            raise ValueError(
                f"targets must be some of {', '.join(KINDS)}, got {', '.join(unknown) or 'none'}"
            )


class Lora(Head):
    """`down` (rank, columns) and `up` (rows, rank) for each projection; `up` begins as zero."""

    method: ClassVar[str] = "lora"
    Config: ClassVar[type] = LoraConfig
    changes_image: ClassVar[bool] = True

    def __init__(self, model: DualEncoder, config: LoraConfig) -> None:
        super().__init__(config)
        towers = ("image", "text") if config.towers == "both" else (config.towers,)
        self._places = {tower: projections(model.model, tower, config.targets) for tower in towers}
        places = [place for tower in towers for place in self._places[tower]]
        largest = min(min(place.num_rows, place.num_columns) for place in places)
        if config.rank > largest:
            raise ValueError(f"rank must be 1 to {largest} for the towers of this model, got {config.rank}")
        self.down = nn.ParameterDict(
            {_key(place): _random(config.rank, place.num_columns) for place in places}
        )
        self.up = nn.ParameterDict(
            {_key(place): nn.Parameter(torch.zeros(place.num_rows, config.rank)) for place in places}
        )

    def class_texts(self, model: DualEncoder, names: Sequence[str]) -> ClassTexts:
        """See `Head`."""
        return class_texts(model, names, TEMPLATE, 0)

    def text_features(self, model: DualEncoder, texts: ClassTexts) -> Tensor:
        """See `Head`."""
        weights = self.updated_weights(model, "text")
        return texts.encode(model, (), attachment=lambda: swapped_weights(model.model, weights))

    def image_features(self, model: DualEncoder, images: Tensor) -> Tensor:
        """See `Head`."""
        with swapped_weights(model.model, self.updated_weights(model, "image")):
            return unit_features(model.encode_image(images))

    def updated_weights(self, model: DualEncoder, tower: str) -> dict[str, Tensor]:
        """Weights of a tower ("image" or "text") with their updates, by their names in the open_clip model.

        They have the type of the model's own; gradients reach `down` and `up`.
        """
        places: dict[str, list[Projection]] = {}
        for place in self._places.get(tower, ()):
            places.setdefault(place.weight, []).append(place)
        return {name: self._updated(model.model.get_parameter(name), some) for name, some in places.items()}

    def _updated(self, weight: Tensor, places: Sequence[Projection]) -> Tensor:
        """W + alpha / rank * up @ down in the rows of each projection, added in full precision."""
        own = full_precision(weight.detach())
        update = torch.zeros_like(own)
        with torch.autocast(own.device.type, enabled=False):
            for place in places:
                up, down = self.up[_key(place)], self.down[_key(place)]
                rows = slice(place.first_row, place.first_row + place.num_rows)
                update[rows] = (self.config.alpha / self.config.rank * up @ down).to(own)
        return (own + update).to(weight.dtype)


def merged_state_dict(model: DualEncoder, head: Head) -> dict[str, Tensor]:
    """The weights of a model with the updates of LoRA in them, as plain open_clip weights.

    `model.save(DIR, state_dict=merged_state_dict(model, head))` writes a model directory that open_clip loads
    and whose features are those of the model with the head.

    Args:
        model: that the head was trained beside; it stays as it is.
        head: of method lora.

    Raises:
        ValueError: the head is of another method.
    """
    if not isinstance(head, Lora):
        raise ValueError(f"a head of {head.method} cannot be merged into weights, only one of lora can")
    tensors: dict[str, Tensor] = {name: value.detach() for name, value in model.model.state_dict().items()}
    with torch.no_grad():
        return {**tensors, **head.updated_weights(model, "image"), **head.updated_weights(model, "text")}


def _key(place: Projection) -> str:
    """The name of a projection's parameters; names of parameters have no dots."""
    return f"{place.weight}/{place.kind}".replace(".", "/")


def _random(rank: int, num_columns: int) -> nn.Parameter:
    matrix = torch.empty(rank, num_columns)
    nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
    return nn.Parameter(matrix)
