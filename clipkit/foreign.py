"""Models that are not open_clip's, in the interface of a `DualEncoder`.

Any two modules will do: one of images `(B, 3, H, W) -> (B, D)`, one of token ids `(B, L) -> (B, D)`, with a
tokenizer and the preprocessing of the images. `clipkit.foreign_files` builds them from a description.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from clipkit.dual_encoder import DualEncoder
from clipkit.model_id import model_id
from clipkit.preprocess import PreprocessConfig

_PROBES = (
    "",
    "a photo of a cat.",
    "A Cat!  Two CATS? 12 mm",
    "ein süßer Käfer, 猫, \U0001f408",
    "word " * 400,
)


class Tokenizer(Protocol):
    """What turns texts into token ids."""

    def __call__(self, texts: list[str]) -> Tensor:
        """T texts -> (T, L) int64."""


class ForeignEncoder(DualEncoder):
    """A dual encoder of two given towers: it encodes, and its features are cached, scored and searched.

    It cannot be saved as a model directory, resized, frozen by groups, or asked for tokens of layers, because
    nothing is known of what is in the towers.
    """

    def __init__(
        self,
        image_tower: nn.Module,
        text_tower: nn.Module,
        *,
        tokenizer: Tokenizer,
        embed_dim: int,
        preprocess_config: PreprocessConfig,
        logit_scale: float,
        description: Mapping[str, Any],
    ) -> None:
        """Join two towers.

        Args:
            image_tower: (B, 3, H, W) pixels, prepared as `preprocess_config` says, to (B, D), unnormalised.
            text_tower: (B, L) int64 token ids to (B, D), unnormalised.
            tokenizer: a list of T texts to (T, L) int64.
            embed_dim: D.
            preprocess_config: size, resizing and normalisation of images.
            logit_scale: inverse temperature, exponentiated.
            description: JSON-ready facts that tell this model from others with equal weights, such as the
                name and version of the code of the towers. Cached features are kept by it and the weights.

        Raises:
            ValueError: `logit_scale` is not positive, or the tokenizer gives something else.
        """
        probe = tokenizer(list(_PROBES))
        if probe.ndim != 2 or len(probe) != len(_PROBES) or probe.dtype != torch.int64:
            raise ValueError(
                f"expected a tokenizer that gives ({len(_PROBES)}, L) int64 for {len(_PROBES)} texts, got "
                f"{tuple(probe.shape)} {str(probe.dtype).removeprefix('torch.')}"
            )
        if not logit_scale > 0:
            raise ValueError(f"logit_scale must be > 0 (exponentiated), got {logit_scale}")
        config = {
            "embed_dim": embed_dim,
            "text_cfg": {"context_length": probe.shape[1]},
            "foreign": dict(description),
        }
        super().__init__(_Pair(image_tower, text_tower, logit_scale), config, preprocess_config)
        self._foreign_tokenizer = tokenizer
        self._probe = probe.tolist()

    @property
    def tokenizer(self) -> Callable[[Sequence[str]], Tensor]:
        """Text or list of texts -> (B, L) int64."""
        return lambda texts: self._foreign_tokenizer([texts] if isinstance(texts, str) else list(texts))

    @property
    def model_id(self) -> str:
        """sha256 (hex) of weights, description, preprocessing, and what the tokenizer makes of some texts."""
        return model_id(
            sorted(self.model.state_dict().items()),
            model_cfg=self.config,
            preprocess_cfg=self.preprocess_config.to_dict(),
            tokenizer={"kind": "foreign", "probe": self._probe},
        )

    def save(self, path: str | Path, **_: Any) -> NoReturn:
        """Refuse: see the class."""
        self._refuse("saved as a model directory")

    def resize_image_size(self, image_size: int | Sequence[int]) -> NoReturn:
        """Refuse: see the class."""
        self._refuse("resized")

    def resize_context(self, context_length: int) -> NoReturn:
        """Refuse: see the class."""
        self._refuse("resized")

    def lock_image(self, unlocked_groups: int = 0) -> NoReturn:
        """Refuse: see the class."""
        self._refuse("frozen by groups")

    def lock_text(self, unlocked_groups: int = 0) -> NoReturn:
        """Refuse: see the class."""
        self._refuse("frozen by groups")

    def set_grad_checkpointing(self, enable: bool = True) -> NoReturn:
        """Refuse: see the class."""
        self._refuse("trained with gradient checkpointing")

    def tokens(self, images: Tensor, layers: Sequence[int] = (-1,)) -> NoReturn:
        """Refuse: see the class."""
        self._refuse("asked for tokens of layers")

    def text_tokens(self, text: Tensor, layers: Sequence[int] = (-1,)) -> NoReturn:
        """Refuse: see the class."""
        self._refuse("asked for tokens of layers")

    def project_tokens(self, tokens: Tensor) -> NoReturn:
        """Refuse: see the class."""
        self._refuse("asked for tokens of layers")

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(
            f"a foreign model cannot be {what}: clipkit does not know what its towers are made of"
        )


class _Pair(nn.Module):
    """The towers under the names that `DualEncoder` expects of an open_clip model."""

    logit_bias = None

    def __init__(self, image_tower: nn.Module, text_tower: nn.Module, logit_scale: float) -> None:
        super().__init__()
        # In modules of their own, so that no attribute of theirs is taken for one of open_clip's.
        self.visual, self.text = _Tower(image_tower), _Tower(text_tower)
        self.logit_scale = nn.Parameter(torch.tensor(float(logit_scale)).log())

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Image features, as they come from the tower."""
        assert not normalize
        features: Tensor = self.visual(image)
        return features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Text features, as they come from the tower."""
        assert not normalize
        features: Tensor = self.text(text)
        return features


class _Tower(nn.Module):
    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.tower(inputs)
        return features
