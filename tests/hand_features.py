"""Features of a task made by hand, from unit vectors by angle or from given rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from clipkit.zeroshot.tasks.base import Features, ImageSet
from torch import Tensor

from clipkit.data.samples import RawSample


def at(*degrees: float) -> Tensor:
    """(N, 2) unit vectors at angles."""
    return torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in degrees])


def labelled(
    features: Tensor,
    labels: Sequence[int | None] = (),
    *,
    name: str = "images",
    classnames: Sequence[str] = (),
    templates: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    several: Sequence[Sequence[int]] = (),
) -> ImageSet:
    """An image set with what is given for each image."""
    samples = tuple(
        RawSample(
            f"{name}{row}",
            b"",
            tuple(captions[row]) if captions else (),
            labels[row] if labels else None,
            {"labels": several[row]} if several else {},
        )
        for row in range(len(features))
    )
    return ImageSet(
        name=name,
        features=features,
        samples=samples,
        classnames=tuple(classnames),
        templates=tuple(templates),
    )


def made_features(
    *images: ImageSet, texts: Mapping[str, Tensor] | None = None, logit_scale: float = 100.0
) -> Features:
    """What a task is given; a text that is not in `texts` is a KeyError."""
    known = texts or {}
    return Features(
        images={one.name: one for one in images},
        texts=lambda wanted: torch.stack([known[text] for text in wanted]),
        logit_scale=logit_scale,
    )


def random_rows(num_rows: int, dim: int, seed: int) -> Tensor:
    """(num_rows, dim) fp32 unit vectors."""
    return F.normalize(torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)
