"""Training-free choice of descriptions that tell an image's likely classes apart (arXiv:2412.11917).

It looks at labelled training images, so its results are not zero-shot and belong in a table of their own,
beside those of random characters that were selected in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .scoring import class_means, rows_per_class, weighted_scores

DEFAULT_WEIGHTS = tuple(step * 0.25 for step in range(160))
"""0 to 39.75, as published."""

_NUMBERS_PER_BLOCK = 2**24


@dataclass(frozen=True, kw_only=True)
class DescriptionPool:
    """The descriptions of all classes, each once."""

    descriptions: tuple[str, ...]
    """P different texts."""
    assigned: tuple[tuple[int, ...], ...]
    """(C,) places in `descriptions` of those that were written for each class, in their order."""

    @classmethod
    def of(cls, descriptors: Sequence[Sequence[str]]) -> DescriptionPool:
        """The pool of each class's descriptors, from `DescriptionBank.match`."""
        places: dict[str, int] = {}
        assigned = tuple(tuple(places.setdefault(text, len(places)) for text in row) for row in descriptors)
        return cls(descriptions=tuple(places), assigned=assigned)


def selection_images(labels: Tensor, num_classes: int, *, limit: int = 1000, seed: int = 0) -> Tensor:
    """A random choice of training images with equally many of each class.

    Args:
        labels: (M,) int64 in [0, C).
        num_classes: C.
        limit: most images of a class.
        seed: of the choice.

    Returns:
        (C * n,) int64 indices, rising; n is `limit` or the size of the smallest class.

    Raises:
        ValueError: a class has no image.
    """
    size = min(limit, int(rows_per_class(labels, labels.shape[0], num_classes).min()))
    order = torch.randperm(labels.shape[0], generator=torch.Generator().manual_seed(seed))
    of_class = [order[labels[order] == index][:size] for index in range(num_classes)]
    return torch.cat(of_class).sort().values


def class_similarity(
    description_features: Tensor, image_features: Tensor, labels: Tensor, num_classes: int
) -> Tensor:
    """Mean cosine of each description with the training images of each class, the `S` of the paper.

    Args:
        description_features: (P, D), L2-normalised; the descriptions alone, without class names.
        image_features: (M, D), L2-normalised.
        labels: (M,) int64 in [0, C).
        num_classes: C.

    Returns:
        (P, C) fp32, whatever the inputs are: the differences that count are near the precision of fp16.

    Raises:
        ValueError: a class has no image.
    """
    return description_features.float() @ class_means(image_features.float(), labels, num_classes).T


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What was chosen for each image."""

    neighbours: Tensor
    """(N, k) int64, the likely classes, by falling similarity of their captions."""
    descriptions: Tensor
    """(N, k, m) int64, those chosen for each of them, the best first; -1 where there are fewer than m."""


def select_local(
    caption_scores: Tensor,
    similarity: Tensor,
    assigned: Sequence[Sequence[int]],
    *,
    num_neighbours: int = 3,
    num_kept: int = 5,
) -> Selection:
    """Choose descriptions for each image within its k likely classes.

    A description is eligible for a class that it fits at least as well as it fits each of the others, by
    `similarity`. The eligible ones are ranked by the mean of these k differences (that with the class itself,
    0, among them) and the first m kept. Where none is eligible, the first m assigned ones are.

    Args:
        caption_scores: (N, C), cosines with one caption of each class, on the CPU like all of this module.
        similarity: (P, C), from `class_similarity`.
        assigned: (C,) descriptions written for each class, from `DescriptionPool`.
        num_neighbours: k; all classes where there are fewer.
        num_kept: m.

    Raises:
        ValueError: k or m is below 1, or the shapes do not fit.
    """
    num_classes = caption_scores.shape[1]
    if num_neighbours < 1 or num_kept < 1:
        raise ValueError(f"expected counts of at least 1, got {num_neighbours} neighbours, {num_kept} kept")
    if not num_classes == similarity.shape[1] == len(assigned):
        raise ValueError(
            f"expected the same classes everywhere, got {num_classes} captions, similarity with "
            f"{similarity.shape[1]} classes and assigned descriptions of {len(assigned)}"
        )
    neighbours = caption_scores.topk(min(num_neighbours, num_classes), dim=1).indices
    # The choice depends on which classes are near and not on their order: images share it.
    by_class, places = neighbours.sort(dim=1)
    hoods, hood_of_image = torch.unique(by_class, dim=0, return_inverse=True)
    chosen = torch.stack(
        [select_in_neighbourhood(similarity, hood, assigned, num_kept=num_kept) for hood in hoods]
    )
    order = places.argsort(dim=1)
    rows = chosen[hood_of_image].gather(1, order[:, :, None].expand(-1, -1, num_kept))
    return Selection(neighbours=neighbours, descriptions=rows)


def select_in_neighbourhood(
    similarity: Tensor, neighbourhood: Tensor, assigned: Sequence[Sequence[int]], *, num_kept: int = 5
) -> Tensor:
    """The choice of `select_local` for one set of k classes: (k, m) int64, -1 where there are fewer."""
    own = similarity.index_select(1, neighbourhood).T
    eligible = own >= own.amax(dim=0)
    margins = own - own.mean(dim=0)
    chosen = torch.full((len(neighbourhood), num_kept), -1)
    for place, index in enumerate(neighbourhood.tolist()):
        candidates = eligible[place].nonzero()[:, 0]
        order = margins[place, candidates].sort(descending=True, stable=True).indices[:num_kept]
        row = candidates[order].tolist() or list(assigned[index][:num_kept])
        chosen[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return chosen


@dataclass(frozen=True, kw_only=True)
class LocalScores:
    """The two parts of the score without class names, for the likely classes of each image."""

    neighbours: Tensor
    """(N, k) int64."""
    names: Tensor
    """(N, k), cosine with the caption, in which the class name occurs once."""
    descriptions: Tensor
    """(N, k), mean cosine with the chosen descriptions, which name no class."""

    def predictions(self, weight: float) -> Tensor:
        """(N,) int64, the class with the largest `weight * names + descriptions`."""
        return best_neighbours(self.neighbours, weighted_scores(self.names, self.descriptions, weight))


def best_neighbours(neighbours: Tensor, scores: Tensor) -> Tensor:
    """(N,) int64, the class of `neighbours` (N, k) with the largest of `scores` (N, k)."""
    return neighbours.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]


def local_scores(
    selection: Selection, caption_scores: Tensor, image_features: Tensor, description_features: Tensor
) -> LocalScores:
    """Scores in which class names count once and the rest is descriptions without them.

    A class that has no description at all has its caption's score in their place, as a class described by
    its name alone.

    Args:
        selection: of these images.
        caption_scores: (N, C), what the selection was made by.
        image_features: (N, D), L2-normalised.
        description_features: (P, D), L2-normalised, the descriptions alone.
    """
    names = caption_scores.gather(1, selection.neighbours)
    means = torch.empty_like(names)
    for rows in _blocks(len(names), max(1, len(description_features))):
        chosen = selection.descriptions[rows]
        cosines = image_features[rows] @ description_features.T
        own = cosines.gather(1, chosen.clamp(min=0).flatten(1)).reshape(chosen.shape)
        counts = (chosen >= 0).sum(dim=2)
        sums = own.masked_fill(chosen < 0, 0.0).sum(dim=2)
        means[rows] = torch.where(counts > 0, sums / counts.clamp(min=1), names[rows])
    return LocalScores(neighbours=selection.neighbours, names=names, descriptions=means)


def choose_weight(
    scores: LocalScores, labels: Tensor, weights: Sequence[float] = DEFAULT_WEIGHTS
) -> tuple[float, dict[float, float]]:
    """Fix the weight of the caption on the selection images, for use on any others.

    The published numbers take the best weight on the test images, which cannot be lower.

    Args:
        scores: of the selection images.
        labels: (N,) int64, their classes.
        weights: those to try, each at least 0.

    Returns:
        The weight, of equally good ones the first, and the accuracy with each of `weights`.

    Raises:
        ValueError: there is nothing to try, or nothing to try it on.
    """
    if not weights or not len(labels):
        raise ValueError(f"expected weights and images, got {len(weights)} and {len(labels)}")
    sweep = {weight: float((scores.predictions(weight) == labels).double().mean()) for weight in weights}
    return max(sweep, key=lambda weight: sweep[weight]), sweep


@dataclass(frozen=True, kw_only=True)
class NamedPairs:
    """The pairs of class and chosen description that occur, for prompts that hold both."""

    pairs: Tensor
    """(U, 2) int64: class, and description or -1 for the class name alone; each pair once."""
    index: Tensor
    """(N, k, m) int64, row of `pairs`; where fewer than m were chosen they are repeated in turn."""

    @classmethod
    def of(cls, selection: Selection) -> NamedPairs:
        """The pairs of a selection."""
        chosen = selection.descriptions
        counts = (chosen >= 0).sum(dim=2, keepdim=True).clamp(min=1)
        filled = chosen.gather(2, torch.arange(chosen.shape[2]).expand_as(chosen) % counts)
        classes = selection.neighbours[:, :, None].expand_as(filled)
        occurring = torch.stack([classes, filled], dim=-1).flatten(0, 2)
        pairs, index = torch.unique(occurring, dim=0, return_inverse=True)
        return cls(pairs=pairs, index=index.reshape(chosen.shape))

    def scores(self, image_features: Tensor, pair_features: Tensor, *, largest: bool = False) -> Tensor:
        """(N, k) mean or largest cosine with the m prompts of each likely class, for `best_neighbours`.

        Takes image features (N, D) and those of a prompt for each of `pairs`, (U, D), both L2-normalised.
        """
        num_images, num_neighbours, num_kept = self.index.shape
        scores = image_features.new_empty(num_images, num_neighbours)
        for rows in _blocks(num_images, num_neighbours * num_kept * image_features.shape[1]):
            cosines = torch.einsum("nkmd,nd->nkm", pair_features[self.index[rows]], image_features[rows])
            scores[rows] = cosines.amax(dim=2) if largest else cosines.mean(dim=2)
        return scores


def _blocks(num_rows: int, numbers_per_row: int) -> Iterator[slice]:
    size = max(1, _NUMBERS_PER_BLOCK // numbers_per_row)
    return (slice(start, start + size) for start in range(0, num_rows, size))
