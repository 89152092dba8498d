"""The images of an adaptation: random views of them to train on, or their features once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from clipkit.augment import AugmentConfig
from clipkit.data.class_splits import LabelledFiles, draw_order
from clipkit.data.evaluation import build_eval_loader
from clipkit.data.problems import SampleError
from clipkit.dual_encoder import DualEncoder
from clipkit.heads.base import Batch, Head
from clipkit.heads.features import LabelledFeatures, unit_features
from clipkit.images import ImageError, decode_image

from .seeds import seed_of


@dataclass(frozen=True)
class Shots:
    """Images drawn of each class that decode, and why others that were drawn do not."""

    files: LabelledFiles
    unreadable: dict[str, str]
    """Reasons by place."""


def readable_shots(files: LabelledFiles, shots: int, seed: int) -> Shots:
    """Draw images as `few_shot` does; in place of one that cannot be decoded, the next of its class.

    Args:
        files: to draw from.
        shots: images a class, or as many as can be decoded; 0 takes all.
        seed: of the draw.

    Raises:
        ValueError: a class has no image that can be decoded.
    """
    drawn: list[int] = []
    unreadable: dict[str, str] = {}
    for rows in draw_order(files.labels, seed):
        num_before = len(drawn)
        for row in rows.tolist():
            if shots and len(drawn) - num_before == shots:
                break
            try:
                decode_image(files.read(row).image)
                drawn.append(row)
            except (SampleError, ImageError) as error:
                unreadable[files.where(row)] = error.reason
        if len(drawn) == num_before:
            label, place = int(files.labels[rows[0]]), files.where(int(rows[0]))
            name = (files.classnames or ())[label]
            raise ValueError(
                f"no image of class {name!r} can be read, such as {place} ({unreadable[place]}): replace them"
            )
    return Shots(files.rows(torch.tensor(drawn, dtype=torch.int64)), unreadable)


class RandomViews:
    """Batches of augmented images; a view is a function of seed, epoch and image, whatever the rank."""

    def __init__(self, model: DualEncoder, files: LabelledFiles, augment: AugmentConfig, seed: int) -> None:
        self._files, self._seed = files, seed
        self._transform = model.preprocess(train=True, augment=augment)
        self._device = model.logit_scale.device

    def batch(self, epoch: int, rows: Sequence[int]) -> Batch:
        """`image` (b, 3, H, W) and `label` (b,) of images `rows`, on the model's device."""
        images = []
        with torch.random.fork_rng(devices=[]):
            for row in rows:
                torch.manual_seed(seed_of(self._seed, epoch, row))
                images.append(self._transform(decode_image(self._files.read(row).image)))
        labels = self._files.labels[list(rows)]
        return {"image": torch.stack(images).to(self._device), "label": labels.to(self._device)}


class FrozenFeatures:
    """Batches of features of whole images, computed once: for heads that leave the image tower alone."""

    def __init__(self, model: DualEncoder, files: LabelledFiles, precision: torch.autocast) -> None:
        self.known = frozen_features(model, files, precision)

    def batch(self, epoch: int, rows: Sequence[int]) -> Batch:
        """`image_features` (b, D) and `label` (b,) of images `rows`."""
        picked = list(rows)
        return {"image_features": self.known.image_features[picked], "label": self.known.labels[picked]}


def frozen_features(model: DualEncoder, files: LabelledFiles, precision: torch.autocast) -> LabelledFeatures:
    """Features, in the model as it is, of the images that can be read."""

    def encode(images: Tensor) -> Tensor:
        return unit_features(model.encode_image(images))

    features, labels, _ = _encoded(model, encode, files, precision)
    return LabelledFeatures(features, labels)


def image_features(
    model: DualEncoder, head: Head, files: LabelledFiles, precision: torch.autocast
) -> tuple[Tensor, Tensor, int]:
    """Features (N, D) with labels (N,) of the images that can be read, and how many cannot."""
    return _encoded(model, partial(head.image_features, model), files, precision)


@torch.no_grad()
def _encoded(
    model: DualEncoder, encode: Callable[[Tensor], Tensor], files: LabelledFiles, precision: torch.autocast
) -> tuple[Tensor, Tensor, int]:
    device = model.logit_scale.device
    loader = build_eval_loader(files, transform=model.preprocess(), batch_size=64, rank=0, world_size=1)
    features, labels = [], []
    for batch in loader:
        with precision:
            features.append(encode(batch["image"].to(device)))
        labels.append(batch["label"].to(device))
    if not features:
        raise ValueError(f"no image of the part {files.name} can be read")
    return torch.cat(features), torch.cat(labels), len(loader.skips())
