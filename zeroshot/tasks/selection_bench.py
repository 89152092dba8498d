"""Classification by chosen descriptions, with the weight of the class name fixed on training images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..controls import WaffleNoise, alphabet_of
from ..descriptions import DescriptionBank, PromptFormat
from ..scoring import mean_scores
from ..selection import (
    DescriptionPool,
    LocalScores,
    NamedPairs,
    Selection,
    best_neighbours,
    choose_weight,
    class_similarity,
    local_scores,
    select_local,
    selection_images,
)
from .base import TextFeatures
from .compared import Labelled

NAMED = {"named": "mean", "named_max": "largest"}
"""Scores of the prompts that hold class name and description: which of their cosines counts."""

_MAX_WEIGHING = 20_000
"""Training images that a weight is fixed on, about: the sweep goes over all of their classes."""


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """What is selected, and from how many images."""

    num_train: int = 1000
    """Most training images of a class."""
    num_neighbours: int = 3
    """Likely classes of an image, by its caption."""
    num_kept: int = 5
    """Descriptions for each of them."""
    seeds: int = 5
    """How often random characters are drawn."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images with their cosines with one caption of each class."""

    features: Tensor
    """(N, D), L2-normalised."""
    labels: Tensor
    """(N,) int64."""
    captions: Tensor
    """(N, C)."""

    @classmethod
    def of(cls, images: Labelled, captions: Tensor) -> Split:
        """From the features of the captions, (C, D)."""
        return cls(features=images.features, labels=images.labels, captions=images.features @ captions.T)

    def balanced(self, limit: int) -> Split:
        """Equally many images of each class, at most `limit`."""
        rows = selection_images(self.labels, self.captions.shape[1], limit=limit)
        return Split(features=self.features[rows], labels=self.labels[rows], captions=self.captions[rows])


@dataclass(frozen=True, kw_only=True)
class Swept:
    """Name and descriptions, added with each weight of the name."""

    weight: float
    """The best on the training images, of equally good ones the first."""
    right: Tensor
    """(N,) fp64, 1 where a test image is classified right with it."""
    on_train: dict[float, float]
    """Accuracy by weight."""
    on_test: dict[float, float]
    """Accuracy by weight; choosing by it would be choosing by the answers."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Descriptions to choose from, and what the training images say of them."""

    pool: DescriptionPool
    features: Tensor
    """(P, D), L2-normalised, of the descriptions alone."""
    similarity: Tensor
    """(P, C), see `class_similarity`."""


Choice = Callable[[Candidates, Split, SelectionOptions], Selection]


def selected(candidates: Candidates, split: Split, options: SelectionOptions) -> Selection:
    """Those that tell the likely classes of each image apart."""
    return select_local(
        split.captions,
        candidates.similarity,
        candidates.pool.assigned,
        num_neighbours=options.num_neighbours,
        num_kept=options.num_kept,
    )


def as_assigned(candidates: Candidates, split: Split, options: SelectionOptions) -> Selection:
    """All that were written for each of the likely classes: no choice."""
    num_classes = split.captions.shape[1]
    assigned = candidates.pool.assigned
    table = torch.full((num_classes, max(map(len, assigned))), -1)
    for index, places in enumerate(assigned):
        table[index, : len(places)] = torch.tensor(places, dtype=torch.int64)
    neighbours = split.captions.topk(min(options.num_neighbours, num_classes), dim=1).indices
    return Selection(neighbours=neighbours, descriptions=table[neighbours])


def random_pool(pool: DescriptionPool, bank: DescriptionBank, seed: int) -> DescriptionPool:
    """As many strings of random characters, dealt to the classes like the descriptions."""
    num_pairs = (len(pool.descriptions) + 1) // 2
    drawn = WaffleNoise(num_pairs, seed, alphabet=alphabet_of(bank)).descriptors(bank.names)
    return DescriptionPool(descriptions=drawn[: len(pool.descriptions)], assigned=pool.assigned)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The images and texts that all choices are tried on."""

    train: Split
    test: Split
    captions: Tensor
    """(C, D), L2-normalised, a caption of each class."""
    bank: DescriptionBank
    prompt_format: PromptFormat
    texts: TextFeatures
    options: SelectionOptions

    @classmethod
    def of(
        cls,
        train: Labelled,
        test: Labelled,
        bank: DescriptionBank,
        prompt_format: PromptFormat,
        texts: TextFeatures,
        options: SelectionOptions,
    ) -> Bench:
        """From the images and the model's texts."""
        captions = texts([prompt_format.prompt(name) for name in bank.names])
        return cls(
            train=Split.of(train, captions).balanced(options.num_train),
            test=Split.of(test, captions),
            captions=captions,
            bank=bank,
            prompt_format=prompt_format,
            texts=texts,
            options=options,
        )

    def candidates(self, pool: DescriptionPool) -> Candidates:
        """Descriptions of a pool."""
        features, train = self.texts(pool.descriptions), self.train
        similarity = class_similarity(features, train.features, train.labels, len(self.bank.names))
        return Candidates(pool=pool, features=features, similarity=similarity)

    def unnamed(self, candidates: Candidates, choice: Choice) -> Swept:
        """Descriptions without class names, beside one caption, among the likely classes."""

        def scores(split: Split) -> LocalScores:
            selection = choice(candidates, split, self.options)
            return local_scores(selection, split.captions, split.features, candidates.features)

        return self._swept(scores)

    def unnamed_everywhere(self, candidates: Candidates) -> Swept:
        """All assigned descriptions without class names, beside one caption, among all classes."""
        # A class without descriptions has its caption in their place, as in `local_scores`.
        num_pooled = len(candidates.features)
        rows = [places or (num_pooled + n,) for n, places in enumerate(candidates.pool.assigned)]
        features = torch.cat([candidates.features, self.captions])[[place for row in rows for place in row]]
        classes = torch.arange(len(rows))
        class_of_row = classes.repeat_interleave(torch.tensor([len(row) for row in rows]))

        def scores(split: Split) -> LocalScores:
            return LocalScores(
                neighbours=classes.expand_as(split.captions),
                names=split.captions,
                descriptions=mean_scores(split.features, features, class_of_row, len(rows)),
            )

        return self._swept(scores)

    def _swept(self, scores: Callable[[Split], LocalScores]) -> Swept:
        train = self.train.balanced(max(1, _MAX_WEIGHING // len(self.bank.names)))
        weight, on_train = choose_weight(scores(train), train.labels)
        of_test, labels = scores(self.test), self.test.labels
        _, on_test = choose_weight(of_test, labels)
        right = _right(of_test.predictions(weight), labels, of_test.names)
        return Swept(weight=weight, right=right, on_train=on_train, on_test=on_test)

    def named(self, candidates: Candidates, choice: Choice) -> dict[str, Tensor]:
        """Prompts of name and description among the likely classes: (N,) fp64 right or not, by `NAMED`."""
        selection = choice(candidates, self.test, self.options)
        pairs = NamedPairs.of(selection)
        names, descriptions = self.bank.names, candidates.pool.descriptions
        features = self.texts(
            [
                self.prompt_format.prompt(names[index], descriptions[place] if place >= 0 else "")
                for index, place in pairs.pairs.tolist()
            ]
        )
        right = {}
        for kind, which in NAMED.items():
            scores = pairs.scores(self.test.features, features, largest=which == "largest")
            right[kind] = _right(best_neighbours(selection.neighbours, scores), self.test.labels, scores)
        return right


def _right(predictions: Tensor, labels: Tensor, scores: Tensor) -> Tensor:
    """(N,) fp64, 1 where the prediction is right; with NaN among its scores (N, k) none is."""
    return ((predictions == labels) & ~scores.isnan().any(dim=1)).double()
