"""Grounding: the box of a phrase, predicted from the phrase and the whole image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clipkit.data.samples import Source
from clipkit.region_metrics import best_ious, contain
from clipkit.regions import boxes as region_boxes

from ..region_source import GROUNDED, PEAKS, ImageRegions, RegionSource
from .base import Features, Measurement, Table
from .counts import percent
from .region_data import IMAGES, lost_notes
from .region_intervals import interval_over_images
from .region_sizes import rows_by_size
from .region_task import RegionTask

MIN_IOU = 0.5
_ACCURACY, _MEAN_IOU, _POINTING = "accuracy@0.5", "mean_iou", "pointing_accuracy"
_TOKENS_POINTING = "tokens_pointing_accuracy"
_WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


@dataclass(frozen=True, kw_only=True)
class RegionGrounding(RegionTask):
    """Predicted boxes of the phrases of each image.

    A box is right whose intersection over union with a true box of its phrase is 0.5 or more. Pointing is
    right where the middle of the box, or for the control the token that fits the phrase best, lies in a true
    box: it can be measured without a region head too.
    """

    summary: ClassVar[str] = "boxes predicted for phrases: accuracy at IoU 0.5 and mean IoU"

    def sources(self) -> dict[str, Source]:
        """See `Task`. The json members are read."""
        pool = self._pool
        asked = pool.asked(with_phrases=True)
        return {IMAGES: RegionSource(pool.source, pool.numbers, asked, wanted=(GROUNDED, PEAKS))}

    def measure(self, features: Features) -> Measurement:
        """How well phrases are found; without a region head, how well the tower's tokens point at them."""
        answers = features.regions[IMAGES]
        if {GROUNDED, PEAKS} <= answers.lacking.keys():
            raise ValueError(f"nothing to measure: {'; '.join(dict.fromkeys(answers.lacking.values()))}")
        found = [
            self._of_image(place, image)
            for place, image in zip(answers.index.tolist(), answers.images, strict=True)
        ]
        outcomes = {name: torch.cat([one[name] for one in found]) for name in found[0]}
        if not len(outcomes["area"]):
            raise ValueError(f"{self._pool.source.name}: no box of a phrase is left")
        counts = torch.tensor([len(one["area"]) for one in found])
        image = torch.arange(len(found)).repeat_interleave(counts)
        areas, whole = outcomes.pop("area"), outcomes.pop("whole")
        num_phrases = sum(len(set(one.phrases)) for one in self._pool.regions)
        chance = {_ACCURACY: float((whole >= MIN_IOU).double().mean()), _MEAN_IOU: float(whole.mean())}
        notes = [
            f"{len(areas):,} phrases; chance is what the whole picture as every answer gives.",
            *lost_notes(self._pool, {**self._pool.lost, **answers.problems}),
            *(
                f"No grounded boxes: {reason}."
                for kind, reason in answers.lacking.items()
                if kind == GROUNDED
            ),
        ]
        return Measurement(
            metrics={name: float(values.mean()) for name, values in outcomes.items()},
            outcomes=outcomes if len(areas) == num_phrases else {},
            intervals={name: interval_over_images(values, image) for name, values in outcomes.items()},
            chance={name: value for name, value in chance.items() if name in outcomes},
            tables=(self._size_table(outcomes, areas),),
            notes=tuple(notes),
        )

    def _of_image(self, place: int, answer: ImageRegions) -> dict[str, Tensor]:
        """fp64 outcomes of the phrases of one image that have a box which is shown."""
        texts = self._pool.regions[place].phrases
        every = list(dict.fromkeys(texts))
        of_box = [every.index(texts[row]) for row in answer.kept.tolist()]
        rows = sorted(set(of_box))
        phrase_of_box = torch.tensor([rows.index(phrase) for phrase in of_box], dtype=torch.int64)
        kept = torch.tensor(rows, dtype=torch.int64)
        boxes, num_rows = answer.boxes, len(rows)
        found: dict[str, Tensor] = {}
        if answer.grounded is not None:
            predicted = answer.grounded[kept]
            ious = best_ious(predicted, boxes, phrase_of_box) if num_rows else torch.empty(0)
            middles = (predicted[:, :2] + predicted[:, 2:]) / 2
            found[_ACCURACY] = (ious >= MIN_IOU).double()
            found[_MEAN_IOU] = ious.double()
            found[_POINTING] = contain(middles, boxes, phrase_of_box).double()
        if answer.peaks is not None:
            found[_TOKENS_POINTING] = contain(answer.peaks[kept], boxes, phrase_of_box).double()
        whole = best_ious(_WHOLE.expand(num_rows, 4), boxes, phrase_of_box) if num_rows else torch.empty(0)
        counts = torch.bincount(phrase_of_box, minlength=num_rows)
        areas = torch.bincount(phrase_of_box, weights=region_boxes.area(boxes).double(), minlength=num_rows)
        return found | {"area": areas / counts, "whole": whole.double()}

    def _size_table(self, outcomes: Mapping[str, Tensor], areas: Tensor) -> Table:
        names = [name for name in (_ACCURACY, _MEAN_IOU, _POINTING, _TOKENS_POINTING) if name in outcomes]
        return Table(
            title="By size of the true box",
            header=("size", "phrases", *names),
            rows=rows_by_size(areas, [outcomes[name] for name in names], percent),
        )
