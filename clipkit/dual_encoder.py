"""The dual encoder: open_clip's towers with one interface, whatever they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkit import text_towers, towers
from clipkit.augment import AugmentConfig
from clipkit.checkpoints import without_wrappers
from clipkit.model_dir import ModelContents, write_model_dir
from clipkit.model_id import model_id
from clipkit.preprocess import (
    ImageTransform,
    PreprocessConfig,
    eval_transform,
    normalize_pixels,
    train_transform,
)
from clipkit.tokenizers import build_tokenizer, tokenizer_facts
from clipkit.tower_pair import TowerPair

if TYPE_CHECKING:
    from clipkit.heads.adapted import AdaptedEncoder
    from clipkit.regions.base import RegionHead
    from clipkit.regions.phrases import RegionTexts

_REGION_PREFIX = "region_head."


class DualEncoder(TowerPair):
    """An image tower and a text tower with a joint space (CLIP, arXiv:2103.00020; SigLIP, 2303.15343).

    Made by `clipkit.load` and `clipkit.create`. `model` is the open_clip model, under whose names the
    parameters are saved. Features are not normalised unless `normalize=True` says so.
    """

    image_mean: Tensor
    image_std: Tensor
    directory: Path | None = None
    """The model directory that `load` read; its heads belong to these weights."""
    region_head: RegionHead | None
    """What answers about parts of images; trained with the model, and saved and loaded with it."""

    def __init__(
        self,
        model: nn.Module,
        config: Mapping[str, Any],
        preprocess_config: PreprocessConfig,
        *,
        tokenizer_dir: Path | None = None,
        provenance: Mapping[str, Any] | None = None,
        stored_id: str | None = None,
    ) -> None:
        """Wrap an open_clip model.

        Args:
            model: whole, or one tower of it.
            config: its `model_cfg`.
            preprocess_config: how its images are prepared.
            tokenizer_dir: where the files of a transformers tokenizer lie.
            provenance: where the model comes from, for the model directory.
            stored_id: the model id of the whole model that one tower was taken from.
        """
        super().__init__(model, config, preprocess_config)
        self.provenance = dict(provenance or {})
        self._tokenizer_dir = tokenizer_dir
        self._tokenizer: Any = None
        self._stored_id = stored_id
        self.region_head = None
        self.register_buffer("image_mean", torch.tensor(preprocess_config.mean), persistent=False)
        self.register_buffer("image_std", torch.tensor(preprocess_config.std), persistent=False)

    @property
    def tokenizer(self) -> Any:
        """Text or list of texts -> (B, context_length) int64; made when it is first asked for."""
        if self._tokenizer is None or self._tokenizer.context_length != self.context_length:
            self._tokenizer = build_tokenizer(self.config["text_cfg"], self._tokenizer_dir)
        return self._tokenizer

    @property
    def model_id(self) -> str:
        """sha256 (hex) of the present weights and configs; hashed anew at every access.

        Of a single tower: the id of the whole model it was loaded from.

        Raises:
            ValueError: a single tower whose source has no model id.
        """
        if self.has_image and self.has_text:
            return model_id(
                sorted(self.model.state_dict().items()),
                model_cfg=self.config,
                preprocess_cfg=self.preprocess_config.to_dict(),
                tokenizer=tokenizer_facts(self.tokenizer, self.config["text_cfg"]),
            )
        if self._stored_id is None:
            raise ValueError("one tower alone has no model id: load it from a model directory, or load both")
        return self._stored_id

    def preprocess(
        self,
        *,
        train: bool = False,
        dtype: torch.dtype = torch.float32,
        augment: AugmentConfig | None = None,
    ) -> ImageTransform:
        """The transform of a PIL image to (3, height, width).

        Args:
            train: random resized crop (and what `augment` says) instead of the evaluation transform.
            dtype: torch.float32 gives normalised values; torch.uint8 gives pixels, which `encode_image`
                normalises.
            augment: only with `train`.
        """
        if train:
            return train_transform(self.preprocess_config, augment, dtype)
        return eval_transform(self.preprocess_config, dtype)

    def encode_image(self, image: Tensor, *, normalize: bool = False) -> Tensor:
        """Image features.

        Args:
            image: (B, 3, H, W), float as `preprocess()` gives it, or uint8 pixels of the model's size.
            normalize: L2-normalise the rows.

        Returns:
            (B, D).

        Raises:
            ValueError: the image tower is not loaded.
        """
        self._require("image")
        features: Tensor = self.model.encode_image(self._pixels(image), normalize=False)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, *, normalize: bool = False) -> Tensor:
        """Text features.

        Tokens on the CPU are cut to the columns that can matter (causal towers, after the last end of
        text), which changes no feature; then they are moved to the model. Tokens on an accelerator are
        taken as they are, because to look at them would wait for the device.

        Args:
            text: (B, L) int64, L up to `context_length`.
            normalize: L2-normalise the rows.

        Returns:
            (B, D).

        Raises:
            ValueError: the text tower is not loaded, or L is too large.
        """
        self._require("text")
        if text.device.type == "cpu" and not torch.compiler.is_compiling():
            text = text[:, : text_towers.needed_columns(self.model, text)]
        features = text_towers.encode_text(self.model, text.to(self.logit_scale.device))
        return F.normalize(features, dim=-1) if normalize else features

    def forward(
        self,
        image: Tensor,
        text: Tensor | RegionTexts,
        boxes: Tensor | None = None,
        box_index: Tensor | None = None,
        region_text: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Both towers, for training, and the region head where regions come along.

        Args:
            image: as `encode_image` takes it.
            text: as `encode_text` takes it; or captions and phrases prepared together, which costs less.
            boxes: (R, 4) xyxy fractions of the images; there may be none in this batch.
            box_index: (R,) int64 in [0, B), rising: the image of each box.
            region_text: (R, L) int64, the phrase of each box; not needed where `text` has them.

        Returns:
            "image_features" and "text_features" (B, D), L2-normalised; "logit_scale", a scalar, already
            exponentiated; "logit_bias", a scalar, in models that have one. With regions also
            "phrase_features" (R, D), L2-normalised, and the rows that the region head's losses need.
        """
        # The image tower first, the scalars last: in another order FSDP's ranks came to wait for each other.
        if boxes is None or box_index is None:
            assert isinstance(text, Tensor)
            features = {
                "image_features": self.encode_image(image, normalize=True),
                "text_features": self.encode_text(text, normalize=True),
            }
            return {**features, **self._scalars()}
        from clipkit.regions.answers import training_rows
        from clipkit.regions.phrases import encode_texts

        seen = self.tokens(image)
        if not isinstance(text, Tensor):
            text_features, phrase_features = encode_texts(self, text)
        else:
            assert region_text is not None
            text_features = self.encode_text(text, normalize=True)
            phrase_features = self.encode_text(region_text, normalize=True)
        return {
            "image_features": F.normalize(seen.pooled, dim=-1),
            "text_features": text_features,
            "phrase_features": phrase_features,
            **self._scalars(),
            **training_rows(self, seen, boxes, box_index, phrase_features),
        }

    def _scalars(self) -> dict[str, Tensor]:
        # Sums of one element: scalars that are no views, which FSDP's backward hooks could lose.
        scalars = {"logit_scale": self.logit_scale.exp().sum()}
        if self.logit_bias is not None:
            scalars["logit_bias"] = self.logit_bias.sum()
        return scalars

    def tokens(self, images: Tensor, layers: Sequence[int] = (-1,)) -> towers.TowerOutput:
        """Pooled features and patch tokens of some layers; see `clipkit.towers.image_tokens`."""
        self._require("image")
        return towers.image_tokens(self.model, self._pixels(images), layers)

    def text_tokens(self, text: Tensor, layers: Sequence[int] = (-1,)) -> towers.TowerOutput:
        """Pooled features and word tokens of some layers; see `clipkit.towers.text_tokens`."""
        self._require("text")
        return towers.text_tokens(self.model, text.to(self.logit_scale.device), layers)

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """Last-layer patch tokens in the joint space; see `clipkit.towers.project_tokens`."""
        self._require("image")
        return towers.project_tokens(self.model, tokens)

    def encode_regions(self, seen: towers.TowerOutput, boxes: Tensor, box_index: Tensor) -> Tensor:
        """Features of boxes, (R, D); see `clipkit.regions.answers.encode_regions`."""
        from clipkit.regions.answers import encode_regions

        return encode_regions(self, seen, boxes, box_index)

    def ground(self, images: Tensor, phrases: Sequence[str] | str, index: Tensor | None = None) -> Tensor:
        """Where phrases are in images, (P, 4); see `clipkit.regions.answers.ground`."""
        from clipkit.regions.answers import ground

        return ground(self, images, phrases, index)

    def with_head(self, name: str, *, model_dir: str | Path | None = None) -> AdaptedEncoder:
        """This model with a head that `clipkit adapt` made.

        Args:
            name: of the head, in `heads/` of the model directory.
            model_dir: the directory, by default the one that the model was loaded from.

        Raises:
            FileNotFoundError: there is no such head; the nearest is named.
            ValueError: it belongs to other weights, is damaged, or the model was loaded from no directory.
        """
        from clipkit.heads.adapted import AdaptedEncoder
        from clipkit.heads.files import read_head

        folder = self.directory if model_dir is None else Path(model_dir)
        if folder is None:
            raise ValueError("heads lie in a model directory: load the model from one, or give model_dir")
        return AdaptedEncoder(self, read_head(folder, name, self))

    def save(
        self,
        path: str | Path,
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        metrics: Mapping[str, float] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> str:
        """Write a model directory, in place of an older one, and return its model id.

        Args:
            path: the directory.
            state_dict: other weights than the present ones (averaged, or gathered from shards); the region
                head is saved if they include its own.
            metrics: measured values for the model card.
            provenance: further facts on the model's origin, JSON-ready.

        Raises:
            OSError: it cannot be written; what was at `path` is as it was.
            ValueError: only one tower is loaded, or `path` holds something else.
        """
        if not (self.has_image and self.has_text):
            raise ValueError("one tower alone cannot be saved as a model directory: load both towers")
        known = self.state_dict() if state_dict is None else without_wrappers(state_dict)
        head_tensors = {name: tensor for name, tensor in known.items() if name.startswith(_REGION_PREFIX)}
        contents = ModelContents(
            tensors=without_wrappers(
                {name: tensor for name, tensor in known.items() if name not in head_tensors}
            ),
            region_head=self.region_head if head_tensors else None,
            region_tensors={
                name.removeprefix(_REGION_PREFIX): tensor for name, tensor in head_tensors.items()
            },
            model_cfg=self.config,
            preprocess=self.preprocess_config,
            tokenizer=self.tokenizer,
            text_model=getattr(getattr(self.model, "text", None), "config", None),
            metrics=metrics or {},
            provenance={**self.provenance, **(provenance or {})},
        )
        return write_model_dir(Path(path), contents)

    def _pixels(self, image: Tensor) -> Tensor:
        """Images on the model's device; uint8 ones normalised, in the precision of the tower."""
        image = image.to(self.image_mean.device)
        if image.dtype != torch.uint8:
            return image
        dtype = next(self.model.visual.parameters()).dtype
        return normalize_pixels(image, self.image_mean.float(), self.image_std.float()).to(dtype)
