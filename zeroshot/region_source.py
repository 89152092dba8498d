"""What a task asks about parts of images, and what a model says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from clipkit.data.prompted_images import Region
from clipkit.data.samples import Source
from clipkit.data.subset import Subset

HEAD, TOKENS = "head", "tokens"
"""Features of boxes: by the model's region head; by RoIAlign on its projected tokens."""
GROUNDED, PEAKS, QUERIES = "grounded", "peaks", "queries"
"""Boxes of phrases by the head; the token that fits a phrase best; what a query decoder found."""
ANSWERS = (HEAD, TOKENS, GROUNDED, PEAKS, QUERIES)


def no_queries(lacking: Mapping[str, str]) -> str:
    """What to say of a model that has no query decoder, and how to get one."""
    return f"{lacking[QUERIES]}: train a query decoder with `clipkit train --regions.head query-decoder`"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked about parts of one image."""

    boxes: tuple[Region, ...] = ()
    phrases: tuple[str, ...] = ()
    """To be found in it."""


class RegionSource(Subset):
    """Some images of another source, with what is asked about parts of each."""

    def __init__(
        self,
        source: Source,
        numbers: Sequence[int],
        asked: Sequence[Asked],
        *,
        wanted: Sequence[str],
    ) -> None:
        """Ask about parts of images.

        Args:
            source: of the images.
            numbers: which of them, N.
            asked: about each of them, N.
            wanted: some of `ANSWERS`.
        """
        super().__init__(source, numbers)
        self.problems = source.problems
        self.asked = tuple(asked)
        self.wanted = frozenset(wanted)


@dataclass(frozen=True, kw_only=True)
class FoundByQueries:
    """What the queries of a query decoder found in one image."""

    boxes: Tensor
    """(Q, 4)."""
    features: Tensor
    """(Q, D) fp32, L2-normalised."""
    image_feature: Tensor
    """(D,) fp32, L2-normalised: the image query's."""


@dataclass(frozen=True, kw_only=True)
class ImageRegions:
    """What a model says of parts of one image; all places are fractions of the image as its tower sees it."""

    kept: Tensor
    """(K,) int64, rising: those of the boxes asked about of which enough is in what the tower sees."""
    boxes: Tensor
    """(K, 4) xyxy."""
    problems: Mapping[str, int] = field(default_factory=dict)
    """How many other boxes had which problem, see `clipkit.regions.boxes`."""
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """(K, D) fp32, L2-normalised, by `HEAD` and `TOKENS`."""
    grounded: Tensor | None = None
    """(P, 4) xyxy, of the phrases asked about."""
    peaks: Tensor | None = None
    """(P, 2) x and y."""
    queries: FoundByQueries | None = None


@dataclass(frozen=True, kw_only=True)
class RegionSet:
    """What a model says of parts of the images of a `RegionSource`."""

    images: tuple[ImageRegions, ...]
    """(N,) of the images that could be used, in the order of their features."""
    index: Tensor
    """(N,) int64, rising: the place of each in the source."""
    lacking: Mapping[str, str] = field(default_factory=dict)
    """Why the model cannot give some of what was wanted, by `ANSWERS`."""
    head: str | None = None
    """Kind of the model's region head."""

    @property
    def problems(self) -> dict[str, int]:
        """Boxes that are left out, by reason."""
        return dict(sorted(sum((Counter(image.problems) for image in self.images), Counter()).items()))
