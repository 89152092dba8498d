"""What `clipkit regions label` is told, and what it tells; imports no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

NO_PHRASE = "no phrase in the captions"
NOTHING_FOUND = "no box found"
LOW_SCORE = "box_below_the_confidence"
SAME_BOX = "box_with_a_phrase_that_fits_less"
ALMOST_SAME_BOX = "box_almost_the_same_as_a_surer_one"


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """How regions are found."""

    detector: str
    """What finds phrases in pictures: an OWLv2, OWL-ViT or Grounding DINO model (a folder, or a repository on
    the hub such as google/owlv2-base-patch16-ensemble), a model directory with a region head, or
    `module:function`."""
    confidence: float = 0.1
    """Boxes of at most this score are left out."""
    max_phrases: int = 20
    """Phrases asked for in a picture; the first of its captions."""
    tagger: Literal["textblob", "nltk"] = "textblob"
    """What tells nouns from other words: textblob needs nothing else, nltk is the paper's and downloads its
    weights by a command of NLTK."""
    detector_size: int | None = None
    """Side in pixels at which OWLv2 or OWL-ViT looks, in place of its own; the paper's labels are of 448."""
    caption_keys: tuple[str, ...] = ("txt",)
    """Members that hold captions, one a line; `json.NAME` reads a field of the json member."""

    def __post_init__(self) -> None:
        if self.max_phrases < 1:
            raise ValueError(f"--max-phrases must be at least 1, got {self.max_phrases}")
        if self.detector_size is not None and self.detector_size < 1:
            raise ValueError(f"--detector-size must be at least 1 pixel, got {self.detector_size}")
        if math.isnan(self.confidence):
            raise ValueError("--confidence must be a number, got nan")
        if not self.caption_keys:
            raise ValueError("--caption-keys must name a member, such as txt")


@dataclass(kw_only=True)
class LabelReport:
    """Counts, of a shard or of all."""

    num_images: int = 0
    num_images_with_regions: int = 0
    num_phrases: int = 0
    """Asked for, summed over the images."""
    num_regions: int = 0
    num_region_words: int = 0
    """In the phrases of all regions."""
    images_without_regions: dict[str, int] = field(default_factory=dict)
    """By reason; they are in the shards too."""
    phrases_left_out: dict[str, int] = field(default_factory=dict)
    """By reason."""
    boxes_left_out: dict[str, int] = field(default_factory=dict)
    """By reason."""
    shard_problems: dict[str, int] = field(default_factory=dict)
    """By reason, such as a tar that is truncated: its last samples are lost."""

    @property
    def regions_per_image(self) -> float:
        """Mean over all images."""
        return self.num_regions / max(1, self.num_images)

    @property
    def words_per_phrase(self) -> float:
        """Mean over all regions."""
        return self.num_region_words / max(1, self.num_regions)

    def to_json(self) -> dict[str, Any]:
        """The counts and means as JSON data."""
        means = {"regions_per_image": self.regions_per_image, "words_per_phrase": self.words_per_phrase}
        return {**vars(self), **{name: round(mean, 3) for name, mean in means.items()}}

    def to_text(self) -> str:
        """One line."""
        counts = (
            f"{self.num_images:,} images ({self.num_images_with_regions:,} with regions), "
            f"{self.num_regions:,} regions, {self.regions_per_image:.1f} an image, "
            f"{self.words_per_phrase:.1f} words a phrase"
        )
        return "; ".join([counts, *self._left_out()])

    def why_no_region(self) -> str:
        """One line on a run that found nothing: the reasons, and what helps against the most frequent."""
        from clipkit.data.problems import MISSING_CAPTION  # imports torch

        reasons = "; ".join([f"no region was found in {self.num_images:,} images", *self._left_out()])
        most = max(self.images_without_regions.items(), key=lambda item: item[1], default=("", 0))[0]
        if most == NOTHING_FOUND and LOW_SCORE in self.boxes_left_out:
            return f"{reasons}: name another folder and a lower --confidence"
        if most == MISSING_CAPTION:
            return f"{reasons}: name another folder and --caption-keys that hold captions"
        return reasons

    def _left_out(self) -> list[str]:
        from clipkit.data.problems import describe_counts  # imports torch

        parts = {
            "images without regions": self.images_without_regions,
            "phrases left out": self.phrases_left_out,
            "boxes left out": self.boxes_left_out,
            "problems of shards": self.shard_problems,
        }
        return [f"{title}: {describe_counts(counts)}" for title, counts in parts.items() if counts]


def total(reports: Iterable[LabelReport]) -> LabelReport:
    """The sum of the reports of shards."""
    result = LabelReport()
    for report in reports:
        for name, value in vars(report).items():
            known = getattr(result, name)
            both = known + value if isinstance(value, int) else dict(Counter(known) + Counter(value))
            setattr(result, name, both)
    return result
