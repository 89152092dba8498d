"""The regions of a sample, as its json member has them: boxes with phrases, and what is wrong with others.

`regions: [{"box": [x0, y0, x1, y1], "phrase": "the red star"}, ...]`, boxes in fractions of the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipkit.regions import boxes
from clipkit.windows import Window

FIELD = "regions"
"""Of the json member."""

NOT_REGIONS = "region_not_an_object"
"""It is no `{"box": ..., "phrase": ...}`, or `regions` is no list of such."""
WRONG_CONVENTION = "box_in_wrong_convention"
"""All boxes of a sample, where most are possible in another convention only."""
EMPTY_PHRASE = "region_without_phrase"
REASONS = (*boxes.PROBLEMS, NOT_REGIONS, WRONG_CONVENTION, EMPTY_PHRASE)
"""Why a region is left out."""


@dataclass(frozen=True)
class SampleRegions:
    """The regions of one image that can be used."""

    boxes: Tensor
    """(K, 4) fp32, xyxy fractions of the image, or of what is shown of it."""
    phrases: tuple[str, ...]
    """K texts, stripped and not empty."""
    lost: Mapping[str, int]
    """How many others were left out, by `REASONS`."""
    hint: str | None = None
    """In which convention the boxes seem to be, where that is why they were left out."""

    def select(self, rows: Tensor, lost: Mapping[str, int]) -> SampleRegions:
        """Some of them, (K,) int64, after `lost` more were left out."""
        phrases = tuple(self.phrases[row] for row in rows.tolist())
        return SampleRegions(self.boxes[rows], phrases, _sum(self.lost, lost), self.hint)


def read_regions(fields: Mapping[str, Any]) -> SampleRegions:
    """The usable regions in the json fields of a sample; none where it has no such field.

    Nothing in the field is an error: what cannot be used is counted.
    """
    entries = _entries(fields)
    regions = [entry for entry in entries if isinstance(entry, Mapping)]
    lost = Counter({NOT_REGIONS: len(entries) - len(regions)})
    try:
        clean = boxes.clean([region.get("box") for region in regions])
    except ValueError as error:
        lost[WRONG_CONVENTION] = len(regions)
        return SampleRegions(torch.zeros(0, 4), (), +lost, str(error))
    phrases = [regions[row].get("phrase") for row in clean.kept.tolist()]
    texts = tuple(phrase.strip() if isinstance(phrase, str) else "" for phrase in phrases)
    found_all = SampleRegions(clean.boxes, texts, _sum(lost, clean.problems))
    kept = [row for row, text in enumerate(texts) if text]
    return found_all.select(torch.tensor(kept, dtype=torch.int64), {EMPTY_PHRASE: len(texts) - len(kept)})


def given_boxes(fields: Mapping[str, Any]) -> Tensor:
    """(R, 4) fp64, the boxes of all regions of a sample as they are, for `conventions.wrong_convention`."""
    return boxes.as_rows(entry.get("box") for entry in _entries(fields) if isinstance(entry, Mapping))


def shown(regions: SampleRegions, window: Window) -> SampleRegions:
    """The regions of an image of which enough is in a window, with their boxes in it."""
    clean = boxes.shown(regions.boxes, window)
    kept = regions.select(clean.kept, clean.problems)
    return SampleRegions(clean.boxes, kept.phrases, kept.lost, kept.hint)


def _entries(fields: Mapping[str, Any]) -> list[Any]:
    """What stands for regions, be it one or not."""
    found = fields.get(FIELD)
    return [] if found is None else found if isinstance(found, list) else [found]


def _sum(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    """Counts added up, without zeros."""
    return dict(Counter(first) + Counter(second))
