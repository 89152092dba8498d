"""Features of images and texts that a test has made by hand, as a task is given them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from clipkit.zeroshot.tasks.base import Features, ImageSet
from torch import Tensor
from torch.nn.functional import normalize

from clipkit.data.samples import RawSample


def random_unit(*shape: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def features_of(
    images: Mapping[str, Sequence[float] | Tensor],
    texts: Mapping[str, Sequence[float] | Tensor],
    *,
    labels: Iterable[int] = (),
    fields: Iterable[Mapping[str, Any]] = (),
    classnames: tuple[str, ...] = (),
) -> Features:
    """One source of images by key; a text that is not in `texts` fails the test."""
    numbers, described = list(labels), list(fields)
    samples = tuple(
        RawSample(
            key,
            b"",
            (),
            numbers[row] if numbers else None,
            described[row] if described else {},
        )
        for row, key in enumerate(images)
    )
    sources = {}
    if samples:
        stacked = _stacked(images.values())
        sources["images"] = ImageSet(name="made", features=stacked, samples=samples, classnames=classnames)

    def text_features(wanted: Sequence[str]) -> Tensor:
        return _stacked(texts[text] for text in wanted)

    return Features(images=sources, texts=text_features, logit_scale=100.0)


def _stacked(vectors: Iterable[Sequence[float] | Tensor]) -> Tensor:
    return torch.stack([torch.as_tensor(vector, dtype=torch.float32) for vector in vectors])
