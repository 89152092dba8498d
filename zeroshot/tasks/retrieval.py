"""Retrieval of images by texts and of texts by images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clipkit.data.samples import Source
from clipkit.metrics import mean_rank, median_rank, retrieval_ranks

from ..metric_intervals import ratio_interval
from .base import Features, Measurement, Table, Task
from .captioned import Captioned
from .counts import percent

_DIRECTIONS = ("image_retrieval", "text_retrieval")


@dataclass(frozen=True, kw_only=True)
class ZeroshotRetrieval(Task):
    """Find the image of each caption, and a caption of each image (Karpathy's protocol).

    A query counts as found where any of its positives is among the first K. All captions of all images are
    candidates.
    """

    summary: ClassVar[str] = "images found by their captions, and captions by their images"

    data: str
    """Images with captions, see `datasets.open_images`."""
    recall_k: tuple[int, ...] = (1, 5, 10)
    """The K of recall@K."""

    def __post_init__(self) -> None:
        if not self.recall_k or min(self.recall_k) < 1:
            raise ValueError(f"recall_k must hold numbers of at least 1, got {list(self.recall_k)}")

    def sources(self) -> dict[str, Source]:
        """The images, with their captions."""
        from ..datasets import open_images

        return {"images": open_images(self.data, require=("caption",))}

    def measure(self, features: Features) -> Measurement:
        """CLIP_benchmark's recalls, and ranks, both ways."""
        pairs = Captioned.of(features.only)
        text_features = features.texts(pairs.texts)
        ranks = dict(
            zip(
                _DIRECTIONS,
                retrieval_ranks(pairs.image_features, text_features, pairs.image_of_text),
                strict=True,
            )
        )
        outcomes = {
            f"{direction}_recall@{k}": (ranks[direction] < k).double()
            for direction in _DIRECTIONS
            for k in self.recall_k
        }
        metrics = {name: float(values.mean()) for name, values in outcomes.items()}
        for direction in _DIRECTIONS:
            metrics[f"{direction}_mean_rank"] = mean_rank(ranks[direction])
            metrics[f"{direction}_median_rank"] = median_rank(ranks[direction])
        return Measurement(
            metrics=metrics,
            outcomes=outcomes,
            intervals=self._intervals(outcomes, pairs),
            chance=self._chance(pairs),
            plain=tuple(name for name in metrics if name.endswith("_rank")),
            tables=(self._table(metrics, pairs),),
            notes=self._notes(pairs),
        )

    def _intervals(self, outcomes: dict[str, Tensor], pairs: Captioned) -> dict[str, tuple[float, float]]:
        """Captions of an image are no independent queries, so images are drawn, each with all of them."""
        found = {}
        for k in self.recall_k:
            name = f"image_retrieval_recall@{k}"
            hits = torch.bincount(pairs.image_of_text, weights=outcomes[name])
            found[name] = ratio_interval(hits, pairs.texts_per_image)
        return found

    def _chance(self, pairs: Captioned) -> dict[str, float]:
        num_images, num_texts = pairs.image_features.shape[0], len(pairs.texts)
        chance = {f"image_retrieval_recall@{k}": min(1.0, k / num_images) for k in self.recall_k}
        for k in self.recall_k:
            chance[f"text_retrieval_recall@{k}"] = 1 - _mean_miss(pairs.texts_per_image, num_texts, k)
        return chance

    def _table(self, metrics: dict[str, float], pairs: Captioned) -> Table:
        sizes = {"image_retrieval": (len(pairs.texts), pairs.image_features.shape[0])}
        sizes["text_retrieval"] = sizes["image_retrieval"][::-1]
        rows = []
        for direction, shown in zip(_DIRECTIONS, ("text to image", "image to text"), strict=True):
            recalls = [percent(metrics[f"{direction}_recall@{k}"]) for k in self.recall_k]
            places = [f"{metrics[f'{direction}_{which}_rank']:.1f}" for which in ("mean", "median")]
            rows.append((shown, *(f"{size:,}" for size in sizes[direction]), *recalls, *places))
        recall_names = (f"R@{k}" for k in self.recall_k)
        header = ("", "queries", "candidates", *recall_names, "mean rank", "median rank")
        return Table(title="Both directions", header=header, rows=tuple(rows))

    def _notes(self, pairs: Captioned) -> tuple[str, ...]:
        notes = list(pairs.notes())
        num_images, num_texts = pairs.image_features.shape[0], len(pairs.texts)
        shared = shared_captions(pairs.texts, pairs.image_of_text.tolist())
        if shared.num_texts:
            notes.append(
                f"{shared.num_texts:,} of {num_texts:,} captions are those of several images, word for word; "
                f"image_retrieval_recall@1 is {percent(1 - shared.num_lost / num_texts)} at best"
            )
        trivial = [k for k in self.recall_k if k >= num_images]
        if trivial:
            notes.append(f"image_retrieval_recall@{trivial[0]} of {num_images} images is 1 for every model")
        return tuple(notes)


@dataclass(frozen=True)
class SharedCaptions:
    """How many captions cannot tell their image from another."""

    num_texts: int
    """Captions that occur, word for word, with more than one image."""
    num_lost: int
    """Of these, those that miss their image at rank 1 whatever the scores are: a text finds one image first,
    at best the one that has it most often."""


def shared_captions(texts: Sequence[str], image_of_text: Sequence[int]) -> SharedCaptions:
    """Count captions that several images have.

    Args:
        texts: T of them.
        image_of_text: T images.
    """
    images_of: dict[str, dict[int, int]] = {}
    for text, image in zip(texts, image_of_text, strict=True):
        counts = images_of.setdefault(text, {})
        counts[image] = counts.get(image, 0) + 1
    shared = [counts.values() for counts in images_of.values() if len(counts) > 1]
    return SharedCaptions(
        num_texts=sum(sum(counts) for counts in shared),
        num_lost=sum(sum(counts) - max(counts) for counts in shared),
    )


def _mean_miss(texts_per_image: Tensor, num_texts: int, k: int) -> float:
    """Share of images that have none of their texts among k of all, drawn at random."""
    draws = torch.arange(min(k, num_texts), dtype=torch.float64)
    others = (num_texts - texts_per_image.double())[:, None] - draws
    return float((others.clamp(min=0) / (num_texts - draws)).prod(dim=1).mean())
