"""The two towers of a dual encoder: what they are, and how they are resized and frozen."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from clipkit import locking, text_towers, towers
from clipkit.preprocess import PreprocessConfig
from clipkit.tokenizers import context_length_of

Self = TypeVar("Self", bound="TowerPair")


class TowerPair(nn.Module):
    """An open_clip model, whole or one tower of it, with the config that it was built from."""

    def __init__(
        self, model: nn.Module, config: Mapping[str, Any], preprocess_config: PreprocessConfig
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.config: dict[str, Any] = copy.deepcopy(dict(config))
        self.preprocess_config = preprocess_config

    @property
    def has_image(self) -> bool:
        """Whether the image tower is loaded."""
        return hasattr(self.model, "visual")

    @property
    def has_text(self) -> bool:
        """Whether the text tower is loaded."""
        return text_towers.has_text(self.model)

    @property
    def logit_scale(self) -> nn.Parameter:
        """The inverse temperature, stored as a logarithm."""
        parameter: nn.Parameter = self.model.logit_scale
        return parameter

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """The bias of the sigmoid loss, None in models without one."""
        parameter: nn.Parameter | None = self.model.logit_bias
        return parameter

    @property
    def embed_dim(self) -> int:
        """Width D of the joint space."""
        return int(self.config["embed_dim"])

    @property
    def context_length(self) -> int:
        """Columns L of a tokenised text."""
        return context_length_of(self.config["text_cfg"])

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels that the image tower reads."""
        return self.preprocess_config.size

    def resize_image_size(self, image_size: int | Sequence[int]) -> None:
        """Read images of another (height, width); position embeddings are interpolated, in place."""
        self._require("image")
        size = towers.resize_image_size(self.model, image_size)
        self.config["vision_cfg"]["image_size"] = size[0] if size[0] == size[1] else list(size)
        self.preprocess_config = dataclasses.replace(self.preprocess_config, size=size)

    def resize_context(self, context_length: int) -> None:
        """Read texts of another length; position embeddings are interpolated, in place."""
        self._require("text")
        if text_towers.open_clip_text(self.model) is not None:
            text_towers.resize_context(self.model, context_length)
        elif not 2 <= context_length <= self.model.text.context_length:
            most = self.model.text.context_length
            raise ValueError(f"context_length must be 2 to {most} for this text tower, got {context_length}")
        self.config["text_cfg"]["context_length"] = context_length

    def lock_image(self, unlocked_groups: int = 0) -> None:
        """Freeze the image tower but for its last groups; see `clipkit.locking`."""
        self._require("image")
        locking.lock(locking.image_groups(self.model.visual), unlocked_groups)
        self.train(self.training)

    def lock_text(self, unlocked_groups: int = 0) -> None:
        """Freeze the text tower but for its last groups; see `clipkit.locking`."""
        self._require("text")
        locking.lock(locking.text_groups(self.model), unlocked_groups)

    def train(self: Self, mode: bool = True) -> Self:
        """As in torch, except that batch norms with frozen weights stay in evaluation mode."""
        super().train(mode)
        locking.hold_frozen_statistics(self.model)
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, in the towers that can (a ModifiedResNet cannot)."""
        if self.has_image:
            self.model.visual.set_grad_checkpointing(enable)
        if self.has_text:
            tower = text_towers.open_clip_text(self.model)
            if tower is not None:
                tower.transformer.grad_checkpointing = enable
            else:
                self.model.text.set_grad_checkpointing(enable)

    def _require(self, tower: str) -> None:
        if not (self.has_image if tower == "image" else self.has_text):
            loaded = "text" if tower == "image" else "image"
            raise ValueError(f"the {tower} tower is not loaded: this model was loaded with towers='{loaded}'")
