"""What `clipkit classify` asks a model about pictures, and the answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipkit.data.image_files import ImageFiles
from clipkit.data.problems import describe_counts
from clipkit.data.prompted_images import Region

from .answers import Answer, answers, ranked
from .classifier import Classifier
from .encoder import EncodedImages, Encoder, Progress
from .head_encoder import HeadEncoder, head_logits
from .region_encoder import RegionEncoder
from .region_source import HEAD, QUERIES, Asked, RegionSource
from .scoring import region_scores

if TYPE_CHECKING:
    from clipkit.heads.adapted import AdaptedEncoder


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How pictures are encoded and answers are made."""

    batch_size: int = 64
    num_workers: int = 0
    top: int = 5
    """Classes of an answer."""
    with_explanations: bool = False


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a question found."""

    images: EncodedImages
    answers: Iterator[Answer]
    notes: tuple[str, ...] = ()
    """What was left out besides unreadable pictures."""


class Question(ABC):
    """One way to ask about pictures."""

    @abstractmethod
    def ask(self, files: ImageFiles, asking: Asking, progress: Progress) -> Found:
        """Encode pictures, and answer about each."""


@dataclass(frozen=True)
class ByPrompts(Question):
    """Classes of whole pictures by prompts or stored features."""

    encoder: Encoder
    classifier: Classifier

    def ask(self, files: ImageFiles, asking: Asking, progress: Progress) -> Found:
        """See `Question`."""
        images = _images(self.encoder, files, asking, progress)
        found = _by_prompts(self.encoder, self.classifier, images.features, _paths(files, images), asking)
        return Found(images=images, answers=found)


@dataclass(frozen=True)
class ByHead(Question):
    """Classes of whole pictures by a head of the model directory."""

    encoder: HeadEncoder
    adapted: AdaptedEncoder
    class_names: Sequence[str]

    def ask(self, files: ImageFiles, asking: Asking, progress: Progress) -> Found:
        """See `Question`."""
        images = _images(self.encoder, files, asking, progress)
        logits = head_logits(self.adapted.model, self.adapted.head, images.features, self.class_names)
        found = ranked(self.class_names, logits, logits, _paths(files, images), top=asking.top)
        return Found(images=images, answers=found)


@dataclass(frozen=True)
class InBoxes(Question):
    """Classes of boxes of pictures, by features of the model's region head."""

    encoder: RegionEncoder
    classifier: Classifier
    regions: Sequence[tuple[Region, ...]]
    """Of each picture, one or more."""

    def ask(self, files: ImageFiles, asking: Asking, progress: Progress) -> Found:
        """See `Question`."""
        asked = [Asked(boxes=own) for own in self.regions]
        images, found = self.encoder.regions(
            RegionSource(files, range(len(files)), asked, wanted=(HEAD,)),
            batch_size=asking.batch_size,
            num_workers=asking.num_workers,
            progress=progress,
        )
        boxes, paths, rows = [], [], [torch.empty(0, self.encoder.model.embed_dim)]
        for number, answer in zip(found.index.tolist(), found.images, strict=True):
            boxes += [self.regions[number][row].box for row in answer.kept.tolist()]
            paths += [str(files.paths[number])] * len(answer.kept)
            rows.append(answer.features[HEAD])
        said = _by_prompts(self.encoder, self.classifier, torch.cat(rows), paths, asking)
        notes = (f"boxes left out: {describe_counts(found.problems)}",) if found.problems else ()
        return Found(
            images=images,
            answers=(replace(answer, box=box) for answer, box in zip(said, boxes, strict=True)),
            notes=notes,
        )


@dataclass(frozen=True)
class WithRegions(Question):
    """Classes of whole pictures by what the queries of a query decoder found in them (GRAIN)."""

    encoder: RegionEncoder
    classifier: Classifier
    image_weight: float

    def ask(self, files: ImageFiles, asking: Asking, progress: Progress) -> Found:
        """See `Question`.

        Raises:
            ValueError: the model has no query decoder.
        """
        images, found = self.encoder.regions(
            RegionSource(files, range(len(files)), [Asked()] * len(files), wanted=(QUERIES,)),
            batch_size=asking.batch_size,
            num_workers=asking.num_workers,
            progress=progress,
        )
        queries = [image.queries for image in found.images if image.queries is not None]
        prompts = self.classifier.prompt_set
        scores = torch.empty(0, len(prompts.class_names))
        if queries:
            scores = region_scores(
                self.classifier.scores(torch.stack([one.image_feature for one in queries])),
                torch.stack([one.features for one in queries]),
                self.classifier.prompt_features,
                prompts.class_of_prompt,
                self.image_weight,
            )
        logits = _logit_scale(self.encoder) * scores
        paths = _paths(files, images)
        return Found(
            images=images, answers=ranked(prompts.class_names, scores, logits, paths, top=asking.top)
        )


def _images(encoder: Encoder, files: ImageFiles, asking: Asking, progress: Progress) -> EncodedImages:
    return encoder.images(
        files, batch_size=asking.batch_size, num_workers=asking.num_workers, progress=progress
    )


def _paths(files: ImageFiles, images: EncodedImages) -> list[str]:
    return [str(files.paths[number]) for number in images.index.tolist()]


def _by_prompts(
    encoder: Encoder, classifier: Classifier, features: Tensor, paths: list[str], asking: Asking
) -> Iterator[Answer]:
    return answers(
        classifier,
        features,
        paths,
        logit_scale=_logit_scale(encoder),
        top=asking.top,
        with_explanations=asking.with_explanations,
    )


def _logit_scale(encoder: Encoder) -> float:
    return float(encoder.model.logit_scale.detach().exp())
