"""The regions of training images: moved with the crop, drawn by a hash, counted where they are left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipkit.data.order import stateless_hash
from clipkit.data.problems import Problems, SampleError, describe_counts
from clipkit.data.regions import FIELD, SampleRegions, given_boxes, read_regions, shown
from clipkit.data.samples import Source
from clipkit.distributed import all_gather_objects, rank
from clipkit.regions.conventions import wrong_convention
from clipkit.windows import Window

NOT_DRAWN = "region_not_drawn"
"""An image had more regions than a step takes of it."""
_REGION = -3  # purpose of a hash; see `batches`
_NUM_LOOKED_AT = 200
_NUM_LOOKED_AT_IF_RARE = 20_000
"""Of each source, where the first look finds no regions at all, until `_NUM_LOOKED_AT` regions are found."""

LostRegions = Mapping[str, Problems]
"""By source: regions left out, by reason, with examples of where."""


@dataclass(frozen=True)
class RegionSampler:
    """What a step shows of an image, and up to `per_image` of the regions in that."""

    with_window: Callable[[Tensor], tuple[Tensor, Window]]
    """uint8 (3, H, W) -> uint8 (3, h, w) and what it shows; random by torch's global generator."""
    per_image: int
    seed: int

    def prepare(
        self, pixels: Tensor, fields: Mapping[str, Any], epoch: int, position: int
    ) -> tuple[Tensor, SampleRegions]:
        """The image as the tower gets it, and its regions in the order of the file.

        Args:
            pixels: uint8 (3, H, W).
            fields: the json member.
            epoch: of the draw.
            position: in the order of the epoch.
        """
        image, window = self.with_window(pixels)
        visible = shown(read_regions(fields), window)
        count = len(visible.phrases)
        if count <= self.per_image:
            return image, visible
        by_chance = sorted(
            range(count), key=lambda row: stateless_hash(self.seed, epoch, position, _REGION, row)
        )
        rows = torch.tensor(sorted(by_chance[: self.per_image]))
        return image, visible.select(rows, {NOT_DRAWN: count - self.per_image})


def collate(regions: Sequence[SampleRegions], tokenizer: Callable[[list[str]], Tensor]) -> dict[str, Tensor]:
    """`boxes` (R, 4) fp32, `box_index` (R,) int64 and `region_text` (R, L) int64 of b images."""
    counts = torch.tensor([len(own.phrases) for own in regions])
    phrases = [phrase for own in regions for phrase in own.phrases]
    return {
        "boxes": torch.cat([own.boxes for own in regions]),
        "box_index": torch.arange(len(regions)).repeat_interleave(counts),
        # Not every tokenizer takes an empty list.
        "region_text": tokenizer(phrases or [""])[: len(phrases)],
    }


class RegionLog:
    """Regions left out over all draws of a run; the same region counts each time."""

    def __init__(self, sources: Iterable[Source]) -> None:
        names = [source.name for source in sources]
        self._earlier, self._own, self._others = ({name: Problems() for name in names} for _ in range(3))

    def add(self, lost: LostRegions) -> None:
        """Count what this rank has left out of a batch."""
        _merge(self._own, lost)

    def gather(self) -> None:
        """Learn what the other ranks have counted. All ranks must call it together."""
        self._others = {name: Problems() for name in self._own}
        for number, state in enumerate(all_gather_objects(_as_json(self._own))):
            if number != rank():
                _merge(self._others, _from_json(state))

    def problems(self) -> LostRegions:
        """By source, of the whole run as far as is known here."""
        merged = {name: Problems() for name in self._own}
        for part in (self._earlier, self._own, self._others):
            _merge(merged, part)
        return merged

    def state(self) -> dict[str, Any]:
        """The counts as JSON values, to be called after `gather`."""
        return _as_json(self.problems())

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on counting from a `state`."""
        _merge(self._earlier, _from_json(state))


@dataclass
class _Look:
    """What some samples of a source have."""

    num_samples: int = 0
    num_usable: int = 0
    """Regions."""
    lost: Problems = field(default_factory=Problems)
    hint: str | None = None
    boxes: list[Tensor] = field(default_factory=list)
    """(R, 4) of each sample, as they came."""

    @property
    def num_regions(self) -> int:
        """Usable or not."""
        return self.num_usable + sum(self.lost.counts.values())


def check_regions(sources: Sequence[Source]) -> None:
    """Read some samples of every source, so that regions that cannot be used are found before training.

    Raises:
        ValueError: none has regions, most regions of a source cannot be used, or its boxes as a whole are in
            another convention, with what they look like.
    """
    looks = [_look(source, _NUM_LOOKED_AT) for source in sources]
    if not any(look.num_regions for look in looks):
        looks = [_look(source, _NUM_LOOKED_AT_IF_RARE, enough=_NUM_LOOKED_AT) for source in sources]
    for source, look in zip(sources, looks, strict=True):
        _refuse_unusable(source.name, look)
    if not any(look.num_usable for look in looks):
        num_looked_at = sum(look.num_samples for look in looks)
        raise ValueError(
            f"none of {num_looked_at:,} samples looked at has `{FIELD}` in its json member; add them, or set "
            "regions.head to none"
        )


def _look(source: Source, num_samples: int, enough: float = math.inf) -> _Look:
    """Read samples evenly spread over a source, until there are enough regions."""
    look = _Look()
    for index in np.linspace(0, len(source) - 1, min(len(source), num_samples)).astype(int).tolist():
        if look.num_regions >= enough:
            break
        look.num_samples += 1
        try:
            fields = source.read(index).fields
        except SampleError:
            continue
        regions = read_regions(fields)
        look.num_usable += len(regions.phrases)
        look.hint = look.hint or regions.hint
        look.boxes.append(given_boxes(fields))
        for reason, count in regions.lost.items():
            look.lost.add(reason, [source.where(index)], count)
    return look


def _refuse_unusable(name: str, look: _Look) -> None:
    """Refuse a source most of whose regions are lost, or whose boxes as a whole are something else."""
    cure = "write them as `clipkit regions convert` does"
    problem = wrong_convention(torch.cat(look.boxes), "xyxy") if look.boxes else None
    if problem is not None:
        raise ValueError(f"source {name!r}: {problem}; {cure}")
    if sum(look.lost.counts.values()) > look.num_usable:
        raise ValueError(
            f"most regions of source {name!r} cannot be used ({describe_counts(look.lost.counts)}"
            f"{'; ' + look.hint if look.hint else ''}); a region is a phrase and a box x0, y0, x1, y1 in "
            f"fractions of the image: {cure}"
        )


def _merge(into: Mapping[str, Problems], more: LostRegions) -> None:
    for name, problems in more.items():
        into[name].update(problems)


def _as_json(problems: LostRegions) -> dict[str, Any]:
    return {name: {"counts": found.counts, "examples": found.examples} for name, found in problems.items()}


def _from_json(state: Mapping[str, Any]) -> dict[str, Problems]:
    return {name: Problems(dict(found["counts"]), dict(found["examples"])) for name, found in state.items()}
