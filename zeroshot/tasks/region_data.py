"""Images with regions, as tasks on regions take them, and what a model says of these."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from clipkit.data.problems import SampleError, describe_counts
from clipkit.data.prompted_images import PromptedImages, Region, RegionPrompt
from clipkit.data.regions import SampleRegions, given_boxes, read_regions
from clipkit.data.samples import Source
from clipkit.regions.conventions import wrong_convention

from ..region_source import HEAD, TOKENS, Asked, RegionSource
from .base import Features

IMAGES, CROPS = "images", "crops"
"""Names of the sources of tasks on regions."""
CROP = "crop"
CONTROLS = (TOKENS, CROP)
"""What region features have to beat: RoIAlign on the tower's tokens, and the tower on the region cut out."""
SHOWN = {HEAD: "region head", TOKENS: "control: tokens in the box", CROP: "control: the box cut out"}


@dataclass(frozen=True, kw_only=True)
class RegionPool:
    """The images of a data set that have regions, or some of them."""

    source: Source
    numbers: tuple[int, ...]
    """(N,) rising, places in the source."""
    regions: tuple[SampleRegions, ...]
    """(N,) of each image, one or more."""
    lost: Mapping[str, int] = field(default_factory=dict)
    """Regions of these images that cannot be used, by reason."""
    num_without: int = 0
    """Images of the whole data set without a usable region."""

    @cached_property
    def phrases(self) -> tuple[str, ...]:
        """(R,) of all regions, image by image."""
        return tuple(phrase for one in self.regions for phrase in one.phrases)

    @cached_property
    def starts(self) -> list[int]:
        """(N,) number of the first region of each image."""
        counts = torch.tensor([0, *(len(one.phrases) for one in self.regions)])
        return list(counts.cumsum(0)[:-1].tolist())

    def asked(self, *, with_phrases: bool = False) -> list[Asked]:
        """All boxes of each image and, perhaps, its distinct phrases."""
        return [
            Asked(
                boxes=tuple(Region((x0, y0, x1, y1)) for x0, y0, x1, y1 in one.boxes.tolist()),
                phrases=tuple(dict.fromkeys(one.phrases)) if with_phrases else (),
            )
            for one in self.regions
        ]

    def crops(self) -> PromptedImages:
        """Each region cut out of its image; sample i is region i."""
        prompts = [
            RegionPrompt(number, place, region, CROP)
            for number, one in zip(self.numbers, self.asked(), strict=True)
            for place, region in enumerate(one.boxes)
        ]
        return PromptedImages(self.source, prompts)


def open_regions(data: str, *, max_images: int = 0, seed: int = 0) -> RegionPool:
    """Read the regions of a data set.

    Args:
        data: what `open_images` opens, with `regions: [{"box", "phrase"}]` in its json members.
        max_images: as many images are drawn of those with regions; 0 takes all.
        seed: of the draw.

    Raises:
        ValueError: there are no regions, or most of them cannot be used.
        OSError: there is nothing at `data`.
    """
    from ..datasets import open_images

    source = open_images(data, require=("fields",))
    found: dict[int, SampleRegions] = {}
    lost: Counter[str] = Counter()
    given: list[Tensor] = []
    hint = None
    num_without = 0
    for number in range(len(source)):
        try:
            fields = source.read(number).fields
        except SampleError:
            continue  # the engine would meet it again
        regions = read_regions(fields)
        given.append(given_boxes(fields))
        lost.update(regions.lost)
        hint = hint or regions.hint
        if regions.phrases:
            found[number] = regions
        else:
            num_without += 1
    problem = wrong_convention(torch.cat(given), "xyxy") if given else None
    if problem is not None:
        raise ValueError(f"{data}: {problem}; write them as `clipkit regions convert` does")
    num_usable = sum(len(one.phrases) for one in found.values())
    if sum(lost.values()) > num_usable:
        raise ValueError(
            f"most regions of {data} cannot be used ({describe_counts(lost)}); boxes must be x0, y0, x1, y1 "
            f"as fractions of the image{': ' + hint if hint else ''}"
        )
    if not found:
        raise ValueError(
            f'{data} has no regions: expected {{"regions": [{{"box", "phrase"}}]}} in its json members, '
            "which `clipkit regions convert` writes"
        )
    numbers = sorted(found)
    if 0 < max_images < len(numbers):
        numbers = sorted(random.Random(f"pool/{seed}").sample(numbers, max_images))
    chosen = tuple(found[number] for number in numbers)
    return RegionPool(
        source=source,
        numbers=tuple(numbers),
        regions=chosen,
        lost=dict(sum((Counter(one.lost) for one in chosen), Counter())),
        num_without=num_without,
    )


def region_sources(pool: RegionPool, controls: Sequence[str]) -> dict[str, Source]:
    """The sources of a task that compares features of regions."""
    wanted = [HEAD, *(TOKENS for control in controls if control == TOKENS)]
    found: dict[str, Source] = {IMAGES: RegionSource(pool.source, pool.numbers, pool.asked(), wanted=wanted)}
    return found | ({CROPS: pool.crops()} if CROP in controls else {})


def check_controls(controls: Sequence[str]) -> None:
    """Refuse controls that there are not."""
    unknown = [control for control in controls if control not in CONTROLS]
    if unknown or len(set(controls)) < len(controls):
        raise ValueError(
            f"controls must be some of {', '.join(CONTROLS)}, each once, got {', '.join(controls)}"
        )


@dataclass(frozen=True, kw_only=True)
class RegionRows:
    """The regions of a pool that all ways to encode them could use."""

    number: Tensor
    """(R,) int64, rising, place among `RegionPool.phrases`."""
    image: Tensor
    """(R,) int64, rising, which image each is of."""
    features: Mapping[str, Tensor]
    """(R, D) unit vectors by `HEAD`, `TOKENS` and `CROP`, as far as there are such."""
    head: str | None
    """Kind of the model's region head."""
    is_whole: bool
    """Whether all usable regions of the pool are there, so that models are compared on the same ones."""
    notes: tuple[str, ...]

    @classmethod
    def of(cls, pool: RegionPool, features: Features) -> RegionRows:
        """Put together what `region_sources` gave.

        Raises:
            ValueError: there is nothing to measure with, or no region is left.
        """
        images, answers = features.images[IMAGES], features.regions[IMAGES]
        places = answers.index.tolist()
        number = torch.cat(
            [pool.starts[place] + one.kept for place, one in zip(places, answers.images, strict=True)]
        )
        image = torch.tensor(places).repeat_interleave(
            torch.tensor([len(one.kept) for one in answers.images])
        )
        found = {
            method: torch.cat([one.features[method] for one in answers.images])
            for method in (HEAD, TOKENS)
            if all(method in one.features for one in answers.images)
        }
        is_usable = torch.ones(len(number), dtype=torch.bool)
        if CROPS in features.images:
            crops = features.images[CROPS]
            row_of = {sample.fields["prompt"]: row for row, sample in enumerate(crops.samples)}
            rows = torch.tensor([row_of.get(region, -1) for region in number.tolist()], dtype=torch.int64)
            is_usable = rows >= 0
            found[CROP] = crops.features[rows]
        if not found:
            raise ValueError(f"nothing to measure: {'; '.join(answers.lacking.values())}; add a control")
        if not bool(is_usable.any()):
            raise ValueError(f"{images.name}: no region is left of {len(pool.phrases)}")
        lost = Counter(pool.lost) + Counter(answers.problems)
        lost["region_that_cannot_be_cut_out"] += int((~is_usable).sum())
        return cls(
            number=number[is_usable],
            image=image[is_usable],
            features={method: rows[is_usable] for method, rows in found.items()},
            head=answers.head,
            is_whole=int(is_usable.sum()) == len(pool.phrases),
            notes=(*lost_notes(pool, +lost), *_lacking_notes(answers.lacking)),
        )

    def shown(self, method: str) -> str:
        """What the report calls features of this kind."""
        return f"{SHOWN[method]} ({self.head})" if method == HEAD else SHOWN[method]


def prefix(method: str) -> str:
    """What the metrics of a way to encode regions begin with; those of the head have the plain names."""
    return "" if method == HEAD else f"{method}_"


def lost_notes(pool: RegionPool, lost: Mapping[str, int]) -> tuple[str, ...]:
    """Sentences on what is left out."""
    notes = []
    if lost:
        num_all = len(pool.phrases) + sum(pool.lost.values())
        notes.append(f"Of {num_all:,} regions {sum(lost.values()):,} are left out: {describe_counts(lost)}.")
    if pool.num_without:
        notes.append(f"{pool.num_without:,} images without a usable region are left out.")
    return tuple(notes)


def _lacking_notes(lacking: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"No {SHOWN[method]}: {reason}." for method, reason in lacking.items() if method in SHOWN)
