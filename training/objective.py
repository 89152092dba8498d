"""The loss of a run, from its settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipkit import distributed
from clipkit.distributed import Group
from clipkit.losses import Pairs, clip_loss, siglip_loss

from .config import LossConfig


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A loss on the named features of a batch."""

    config: LossConfig
    group: Group
    """The ranks whose pairs are each other's negatives."""

    def __call__(self, features: Mapping[str, Tensor], text: Tensor) -> Tensor:
        """This rank's loss, in nats.

        Args:
            features: `image_features` and `text_features` (b, D) L2-normalised, `logit_scale` exponentiated,
                and for the sigmoid objective `logit_bias`.
            text: (b, L) tokens of the captions.
        """
        image_features, text_features = features["image_features"], features["text_features"]
        pairs = self._pairs(text, image_features.device)
        settings: dict[str, Any] = {
            "pairs": pairs,
            "label_smoothing": self.config.label_smoothing,
            "group": self.group,
            "kernel": self.config.kernel,
            "exchange": self.config.exchange,
        }
        scale = features["logit_scale"]
        if self.config.objective == "softmax":
            return clip_loss(image_features, text_features, scale, **settings)
        return siglip_loss(image_features, text_features, scale, features["logit_bias"], **settings)

    def _pairs(self, text: Tensor, device: torch.device) -> Pairs:
        if self.config.same_captions == "negatives":
            return Pairs()
        keys = caption_keys(text).to(device)
        return (
            Pairs(positive_keys=keys)
            if self.config.same_captions == "positives"
            else Pairs(ignored_keys=keys)
        )


def caption_keys(text: Tensor) -> Tensor:
    """Keys of captions, alike on all ranks: equal for equal captions, else (all but surely) different.

    Args:
        text: (b, L) tokens.

    Returns:
        (b,) int64.
    """

    def hashes() -> Iterator[int]:
        for tokens in text.cpu().numpy():
            digest = hashlib.blake2b(tokens.tobytes(), digest_size=8).digest()
            yield int.from_bytes(digest, "little", signed=True)

    return torch.tensor(list(hashes()), dtype=torch.int64)


def build_objective(config: LossConfig) -> Objective:
    """Form the groups of ranks and the loss on them. Collective.

    Raises:
        ValueError: the ranks cannot be divided into such groups.
    """
    group = distributed.make_group(config.scope, group_size_of(config))
    return Objective(config=config, group=group)


def group_size_of(config: LossConfig) -> int:
    """Number of ranks whose pairs are each other's negatives.

    Raises:
        ValueError: the ranks cannot be divided into such groups, or it is not known which share a machine.
    """
    if config.scope != "group":
        return distributed.world_size() if config.scope == "world" else 1
    try:
        if config.group_nodes is not None:
            size = config.group_nodes * distributed.ranks_per_node()
        else:
            assert config.group_size is not None
            size = config.group_size
        distributed.check_group_size(size)
    except ValueError as error:
        name = "group_nodes" if config.group_nodes else "group_size"
        raise ValueError(f"loss.{name}={getattr(config, name)}: {error}") from error
    return size
