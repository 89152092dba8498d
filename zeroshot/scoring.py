"""Scores of images from the prompts of each class, and what they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SCORES_PER_BLOCK = 2**26


def class_means(features: Tensor, class_of_row: Tensor, num_classes: int) -> Tensor:
    """Mean feature of each class, not normalised again.

    Args:
        features: (P, D), rows L2-normalised.
        class_of_row: (P,) int64 in [0, C).
        num_classes: C.

    Returns:
        (C, D). Its product with a unit vector is the mean cosine with the rows of the class.

    Raises:
        ValueError: a row has no class, or a class no row.
    """
    counts = rows_per_class(class_of_row, features.shape[0], num_classes)
    sums = features.new_zeros(num_classes, features.shape[1])
    return sums.index_add_(0, class_of_row.to(sums.device), features) / counts.to(sums.device)[:, None]


def mean_scores(
    image_features: Tensor, prompt_features: Tensor, class_of_prompt: Tensor, num_classes: int
) -> Tensor:
    """Mean of the cosines with the prompts of each class (DCLIP, arXiv:2210.07183, equation 1).

    Args:
        image_features: (N, D), rows L2-normalised.
        prompt_features: (P, D), rows L2-normalised.
        class_of_prompt: (P,) int64 in [0, C).
        num_classes: C.

    Returns:
        (N, C) in [-1, 1].

    Raises:
        ValueError: a prompt has no class, or a class no prompt.
    """
    return image_features @ class_means(prompt_features, class_of_prompt, num_classes).T


def max_scores(
    image_features: Tensor, prompt_features: Tensor, class_of_prompt: Tensor, num_classes: int
) -> Tensor:
    """Largest of the cosines with the prompts of each class; arguments and result as of `mean_scores`.

    Works through the images in blocks, so memory beyond the result stays flat in their number.
    """
    rows_per_class(class_of_prompt, prompt_features.shape[0], num_classes)
    classes = class_of_prompt.to(image_features.device)
    scores = image_features.new_full((image_features.shape[0], num_classes), -torch.inf)
    block = max(1, _SCORES_PER_BLOCK // max(1, prompt_features.shape[0]))
    for start in range(0, image_features.shape[0], block):
        cosines = image_features[start : start + block] @ prompt_features.T
        scores[start : start + block].scatter_reduce_(1, classes.expand_as(cosines), cosines, "amax")
    return scores


def weighted_scores(name_scores: Tensor, description_scores: Tensor, weight: float) -> Tensor:
    """`weight * name_scores + description_scores`; with weight 0 the descriptions alone.

    Args:
        name_scores: (N, C), of the plain class names.
        description_scores: (N, C).
        weight: at least 0.

    Raises:
        ValueError: the weight is negative.
    """
    if weight < 0:
        raise ValueError(f"the weight of the class names must be >= 0, got {weight}")
    return weight * name_scores + description_scores


def region_scores(
    image_scores: Tensor,
    region_features: Tensor,
    descriptor_features: Tensor,
    class_of_descriptor: Tensor,
    alpha: float,
) -> Tensor:
    """Score of the image and of its regions: each region counts with the descriptor that it fits best.

    `alpha * image + (1 - alpha) * mean over regions of max over the class's descriptors`, as in the
    evaluation of GRAIN (arXiv:2412.04429).

    Args:
        image_scores: (N, C).
        region_features: (N, Q, D), L2-normalised.
        descriptor_features: (P, D), rows L2-normalised.
        class_of_descriptor: (P,) int64 in [0, C).
        alpha: in [0, 1].

    Returns:
        (N, C).

    Raises:
        ValueError: `alpha` is outside, there are no regions, or a class has no descriptor.
    """
    num_images, num_regions, embed_dim = region_features.shape
    if not 0 <= alpha <= 1 or num_regions == 0:
        raise ValueError(f"expected alpha in [0, 1] and a region or more, got {alpha} and {num_regions}")
    num_classes = image_scores.shape[1]
    best = torch.empty_like(image_scores)
    block = max(1, _SCORES_PER_BLOCK // (num_regions * num_classes))
    for start in range(0, num_images, block):
        regions = region_features[start : start + block].reshape(-1, embed_dim)
        scores = max_scores(regions, descriptor_features, class_of_descriptor, num_classes)
        best[start : start + block] = scores.reshape(-1, num_regions, num_classes).mean(dim=1)
    return alpha * image_scores + (1 - alpha) * best


@dataclass(frozen=True, kw_only=True)
class ClassExplanation:
    """Why a class has its score for one image."""

    class_name: str
    score: float
    descriptors: tuple[tuple[str, float], ...]
    """Each descriptor of the class with its own cosine, the largest first."""


def explain(
    image_feature: Tensor,
    prompt_features: Tensor,
    class_of_prompt: Tensor,
    descriptors: Sequence[str],
    class_names: Sequence[str],
    *,
    scores: Tensor | None = None,
    top: int = 2,
) -> list[ClassExplanation]:
    """The best classes of an image with what speaks for each: the predicted one, then the runner-up.

    Args:
        image_feature: (D,), L2-normalised.
        prompt_features: (P, D), rows L2-normalised.
        class_of_prompt: (P,) int64 in [0, C).
        descriptors: P texts to show, the prompts or the descriptors in them.
        class_names: C names.
        scores: (C,), what the classes were ranked by; by default the mean of the cosines.
        top: how many classes.

    Returns:
        At most `top` classes, the best first; of equal ones the first in `class_names`.

    Raises:
        ValueError: the number of texts is not P, a prompt has no class, or a class no prompt.
    """
    if len(descriptors) != prompt_features.shape[0]:
        raise ValueError(
            f"expected a text for each of {prompt_features.shape[0]} prompts, got {len(descriptors)}"
        )
    if scores is None:
        scores = mean_scores(image_feature[None], prompt_features, class_of_prompt, len(class_names))[0]
    cosines = (prompt_features @ image_feature).tolist()
    owners = class_of_prompt.tolist()
    found = []
    for index in scores.sort(descending=True, stable=True).indices[:top].tolist():
        own = [(descriptors[p], cosines[p]) for p, owner in enumerate(owners) if owner == index]
        own.sort(key=lambda pair: -pair[1])
        found.append(
            ClassExplanation(
                class_name=class_names[index], score=float(scores[index]), descriptors=tuple(own)
            )
        )
    return found


def rows_per_class(class_of_row: Tensor, num_rows: int, num_classes: int) -> Tensor:
    """(C,) int64 counts; refuses a row without a class and a class without a row."""
    if class_of_row.shape != (num_rows,):
        raise ValueError(f"expected the class of each of {num_rows} rows, got {tuple(class_of_row.shape)}")
    if num_rows and not 0 <= int(class_of_row.min()) <= int(class_of_row.max()) < num_classes:
        raise ValueError(
            f"expected classes 0 to {num_classes - 1}, got {int(class_of_row.min())} to "
            f"{int(class_of_row.max())}"
        )
    counts = torch.bincount(class_of_row, minlength=num_classes)
    if not bool(counts.all()):
        raise ValueError(f"every class needs a row, class {int((counts == 0).nonzero()[0])} has none")
    return counts
