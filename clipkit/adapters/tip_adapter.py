"""Tip-Adapter: the few labelled images as a cache beside the zero-shot classifier (arXiv:2207.09519).

Keys are the images' features, values their one-hot labels. A class gets its zero-shot score and
`alpha * sum_k exp(-beta * (1 - x . key_k))` over its keys. Trained (Tip-Adapter-F), the keys are parameters.

The published code differs in this: its keys are means over ten random crops and its keys are trained on
random crops, while here whole images are used, encoded once; and it reports the epoch that is best on the
test images, while here it is the last one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from clipkit.adapters.frozen_classes import FrozenClasses, FrozenClassesConfig
from clipkit.heads.features import LabelledFeatures, cosine_logits, full_precision
from clipkit.prompts.class_texts import ClassTexts

if TYPE_CHECKING:
    from clipkit.heads.teacher import Teacher
    from clipkit.model import DualEncoder

LARGEST_BETA, NUM_BETAS = 7.0, 200
LARGEST_ALPHA, NUM_ALPHAS = 3.0, 20
_SMALLEST = 0.1


@dataclass(frozen=True, kw_only=True)
class TipAdapterConfig(FrozenClassesConfig):
    """Settings of Tip-Adapter."""

    alpha: float = 1.0
    """Weight of the cache; chosen anew on validation images, where there are any."""
    beta: float = 5.5
    """How fast a key's influence falls with its distance; chosen together with alpha."""
    train_keys: bool = False
    """Whether the keys are learned (Tip-Adapter-F)."""
    cache_classes: tuple[str, ...] = ()
    """The classes of the cache; `prepare` sets them."""
    num_keys: int = 0
    """Images in the cache; `prepare` sets it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0 or self.beta <= 0:
            raise ValueError(f"alpha must be >= 0 and beta > 0, got {self.alpha} and {self.beta}")


class TipAdapter(FrozenClasses):
    """Keys (K, D) with the labels (K,) of the images that `prepare` is given.

    Classes without images in the cache have their zero-shot scores. Among such classes alone this is the
    zero-shot classifier; in a list of both kinds those in the cache have an advantage.
    """

    method: ClassVar[str] = "tip-adapter"
    Config: ClassVar[type] = TipAdapterConfig
    is_tuned: ClassVar[bool] = True

    keys: Tensor
    labels: Tensor

    def __init__(self, model: DualEncoder, config: TipAdapterConfig) -> None:
        super().__init__(config)
        empty = torch.zeros(config.num_keys, dtype=torch.int64)
        self._fill(torch.zeros(config.num_keys, model.embed_dim), empty)

    def prepare(
        self,
        model: DualEncoder,
        names: Sequence[str],
        teacher: Teacher | None = None,
        shots: LabelledFeatures | None = None,
    ) -> None:
        """Put the images into the cache; see `Head`.

        Raises:
            ValueError: there are no images.
        """
        if shots is None or not len(shots.labels):
            raise ValueError("tip-adapter is made of labelled images: prepare it with the features of some")
        self.config = dataclasses.replace(self.config, cache_classes=tuple(names), num_keys=len(shots.labels))
        self._fill(full_precision(shots.image_features.detach()).clone(), shots.labels.clone())

    def _fill(self, keys: Tensor, labels: Tensor) -> None:
        if self.config.train_keys:
            self.keys = nn.Parameter(keys)
        else:
            self.register_buffer("keys", keys)
        self.register_buffer("labels", labels)

    def logits(self, model: DualEncoder, image_features: Tensor, texts: ClassTexts) -> Tensor:
        """See `Head`."""
        config: TipAdapterConfig = self.config
        zero_shot = cosine_logits(model, image_features, self.text_features(model, texts))
        with torch.autocast(image_features.device.type, enabled=False):
            scores = cache_scores(self._affinity(image_features), self._values(texts), config.beta)
            return zero_shot + config.alpha * scores

    def tune(self, model: DualEncoder, validation: LabelledFeatures, texts: ClassTexts) -> None:
        """Choose alpha and beta; see `Head`."""
        with torch.no_grad():
            features = validation.image_features
            zero_shot = cosine_logits(model, features, self.text_features(model, texts))
            affinity, values = self._affinity(features), self._values(texts)
            alpha, beta = search_scales(
                zero_shot, affinity, values, validation.labels, (self.config.alpha, self.config.beta)
            )
        self.config = dataclasses.replace(self.config, alpha=alpha, beta=beta)

    def _affinity(self, image_features: Tensor) -> Tensor:
        """(B, K) cosines with the keys; of trained keys, products."""
        features = full_precision(image_features)
        return features @ self.keys.to(features).T

    def _values(self, texts: ClassTexts) -> Tensor:
        """(K, C): 1 where an image of the cache belongs to a class of `texts`."""
        place = {name: label for label, name in enumerate(self.config.cache_classes)}
        wanted = torch.tensor([place.get(name, -1) for name in texts.names], device=self.labels.device)
        return (self.labels[:, None] == wanted).to(self.keys.dtype)


def cache_scores(affinity: Tensor, values: Tensor, beta: float) -> Tensor:
    """`exp(-beta * (1 - affinity)) @ values`: affinity (B, K) and values (K, C) give (B, C)."""
    return torch.exp(-beta * (1 - affinity)) @ values.to(affinity.dtype)


def search_scales(
    zero_shot: Tensor, affinity: Tensor, values: Tensor, labels: Tensor, initial: tuple[float, float]
) -> tuple[float, float]:
    """The alpha and beta of the published grid with the best accuracy on validation images.

    Among equals the smallest beta is taken, and of this the smallest alpha, as in the published code; the
    initial values where nothing is better than they are.

    Args:
        zero_shot: (N, C) scores of the zero-shot classifier, as a softmax takes them.
        affinity: (N, K) of images and keys.
        values: (K, C), labels of keys as 0 and 1.
        labels: (N,) int64, in [0, C).
        initial: alpha and beta to begin with.

    Returns:
        Alpha and beta.
    """
    alpha, beta = initial
    best, found = _num_right(zero_shot, cache_scores(affinity, values, beta), alpha, labels), initial
    for beta in _grid(LARGEST_BETA, NUM_BETAS):
        scores = cache_scores(affinity, values, beta)
        for alpha in _grid(LARGEST_ALPHA, NUM_ALPHAS):
            num_right = _num_right(zero_shot, scores, alpha, labels)
            if num_right > best:
                best, found = num_right, (alpha, beta)
    return found


def _grid(largest: float, count: int) -> Iterator[float]:
    """Steps from 0.1 on, the largest value left out."""
    return (_SMALLEST + number * (largest - _SMALLEST) / count for number in range(count))


def _num_right(zero_shot: Tensor, scores: Tensor, alpha: float, labels: Tensor) -> int:
    return int(((zero_shot + alpha * scores).argmax(dim=1) == labels).sum())
