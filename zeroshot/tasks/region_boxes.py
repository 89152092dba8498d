"""The boxes that a query decoder finds by itself, against the annotated ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from clipkit.data.samples import Source
from clipkit.losses.grounding import match
from clipkit.regions.boxes import area, pairwise_iou

from ..region_source import QUERIES, ImageRegions, RegionSource, no_queries
from .base import Features, Measurement, Table
from .counts import percent
from .region_data import IMAGES, lost_notes
from .region_intervals import interval_over_images
from .region_sizes import rows_by_size
from .region_task import RegionTask

MIN_IOU = 0.5


@dataclass(frozen=True, kw_only=True)
class RegionBoxes(RegionTask):
    """Overlap of annotated boxes with the predicted ones that they match (GRAIN, arXiv:2412.04429).

    Matched as in training: image by image at the least total of 5 times the L1 distance less 2 times the
    GIoU. A box that occurs with several phrases counts once; one that is left without a query, because an
    image has more boxes than there are queries, counts as an overlap of 0.
    """

    summary: ClassVar[str] = "boxes that a query decoder finds: mean IoU with the annotated ones"

    def sources(self) -> dict[str, Source]:
        """See `Task`. The json members are read."""
        pool = self._pool
        return {IMAGES: RegionSource(pool.source, pool.numbers, pool.asked(), wanted=(QUERIES,))}

    def measure(self, features: Features) -> Measurement:
        """Mean IoU and recall.

        Raises:
            ValueError: the model has no query decoder.
        """
        answers = features.regions[IMAGES]
        if answers.lacking:
            raise ValueError(no_queries(answers.lacking))
        found = [_overlaps(image) for image in answers.images]
        ious, areas = (torch.cat(parts) for parts in zip(*found, strict=True))
        if not len(ious):
            raise ValueError(f"{self._pool.source.name}: no box is left")
        counts = torch.tensor([len(own) for own, _ in found])
        image = torch.arange(len(found)).repeat_interleave(counts)
        outcomes = {"mean_iou": ious, "recall@0.5": (ious >= MIN_IOU).double()}
        boxes = [{tuple(box) for box in one.boxes.tolist()} for one in self._pool.regions]
        num_queries = len(answers.images[0].queries.boxes) if answers.images[0].queries else 0
        num_unmatched = int((counts - num_queries).clamp(min=0).sum())
        notes = lost_notes(self._pool, {**self._pool.lost, **answers.problems})
        if num_unmatched:
            notes += (
                f"{num_unmatched:,} of {len(ious):,} boxes are more than the {num_queries} queries of an "
                "image and count as not found.",
            )
        return Measurement(
            metrics={name: float(values.mean()) for name, values in outcomes.items()},
            outcomes=outcomes if len(ious) == sum(map(len, boxes)) else {},
            intervals={name: interval_over_images(values, image) for name, values in outcomes.items()},
            tables=(
                Table(
                    title="By size of the true box",
                    header=("size", "boxes", *outcomes),
                    rows=rows_by_size(areas, list(outcomes.values()), percent),
                ),
            ),
            notes=notes,
        )


def _overlaps(answer: ImageRegions) -> tuple[Tensor, Tensor]:
    """(K,) fp64 IoU of each distinct box of an image with the query that it matches, and its area."""
    assert answer.queries is not None
    distinct = list(dict.fromkeys(map(tuple, answer.boxes.tolist())))
    boxes = torch.tensor(distinct).reshape(-1, 4)
    predicted = answer.queries.boxes
    pairs = match(predicted[None], boxes, torch.zeros(len(boxes), dtype=torch.int64))
    ious = torch.zeros(len(boxes), dtype=torch.float64)
    ious[pairs.box] = pairwise_iou(predicted, boxes)[pairs.query, pairs.box].double()
    return ious, area(boxes).double()
