"""Regions for one sample: phrases, detection and the filters, each of which is counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from clipkit.data.problems import MISSING_CAPTION, MISSING_IMAGE, SampleError
from clipkit.data.samples import SampleKeys, parse_members
from clipkit.data.shard_writer import Sample
from clipkit.images import ImageError, decode_image
from clipkit.regions import boxes
from clipkit.regions.labelling.detectors import Detections, DetectionsError, Detector, open_detector
from clipkit.regions.labelling.phrases import NounPhrases
from clipkit.regions.labelling.settings import (
    ALMOST_SAME_BOX,
    LOW_SCORE,
    NO_PHRASE,
    NOTHING_FOUND,
    SAME_BOX,
    LabelReport,
    LabelSettings,
)

MIN_IOU_ALMOST_SAME = 0.95
"""From here on two boxes of one phrase are one."""
_ROUND = 6
"""Decimals of the edges; boxes that agree in all are one."""


class Labeller:
    """Finds the regions of samples."""

    def __init__(self, settings: LabelSettings, device: torch.device) -> None:
        """Load tagger and detector; see `NounPhrases` and `open_detector` for what raises."""
        self._settings = settings
        self._keys = SampleKeys(caption=settings.caption_keys, require=(), fields=True)
        self._noun_phrases = NounPhrases(settings.tagger)
        self._detector: Detector = open_detector(
            settings.detector, device=device, image_size=settings.detector_size
        )

    def label(self, key: str, members: Mapping[str, bytes], report: LabelReport, *, where: str) -> Sample:
        """The sample with `regions` in its json, in place of those that were there.

        A sample that cannot be read stays as it is, for whoever reads it to report.

        Args:
            key: of the sample.
            members: contents by extension.
            report: counts this sample.
            where: it is, for messages: `00000.tar, sample KEY`.

        Raises:
            RuntimeError: the detector failed.
            DetectionsError: it broke its interface.
        """
        report.num_images += 1
        sample: Sample = {"__key__": key, **members}
        try:
            captions, fields = self._read_texts(members)
            regions = self._regions(members, captions, report, where)
        except (SampleError, ImageError) as error:
            _count(report.images_without_regions, {error.reason: 1})
            return sample
        report.num_images_with_regions += bool(regions)
        report.num_regions += len(regions)
        report.num_region_words += sum(len(region["phrase"].split()) for region in regions)
        sample["json"] = json.dumps({**fields, "regions": regions}, ensure_ascii=False).encode()
        return sample

    def _read_texts(self, members: Mapping[str, bytes]) -> tuple[tuple[str, ...], Mapping[str, Any]]:
        texts = {name: members[name] for name in self._keys.text_members if name in members}
        return parse_members(texts, self._keys)

    def _regions(
        self, members: Mapping[str, bytes], captions: Sequence[str], report: LabelReport, where: str
    ) -> list[dict[str, Any]]:
        found = self._noun_phrases(captions, self._settings.max_phrases)
        report.num_phrases += len(found.phrases)
        _count(report.phrases_left_out, found.left_out)
        image_name = next((name for name in self._keys.image if name in members), None)
        if image_name is None:
            raise SampleError(MISSING_IMAGE)
        image = decode_image(members[image_name])
        if not found.phrases:
            _count(report.images_without_regions, {NO_PHRASE if captions else MISSING_CAPTION: 1})
            return []
        detections = self._detect(image, found.phrases, where)
        regions = keep(detections, found.phrases, self._settings.confidence, report.boxes_left_out)
        if not regions:
            _count(report.images_without_regions, {NOTHING_FOUND: 1})
        return regions

    def _detect(self, image: Image.Image, phrases: Sequence[str], where: str) -> Detections:
        try:
            return self._detector(image, phrases)
        except DetectionsError as error:
            raise DetectionsError(f"{where}: {error}") from error
        except Exception as error:  # a detector is anybody's code
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise RuntimeError(
                f"--detector {self._settings.detector} failed at {where}: {reason} "
                "(CLIPKIT_DEBUG=1 shows where in it)"
            ) from error


def keep(
    detections: Detections, phrases: Sequence[str], confidence: float, left_out: dict[str, int]
) -> list[dict[str, Any]]:
    """The regions among the boxes of a picture, as JSON data, the surest first.

    A box needs a score above the confidence and to be usable (`boxes.usable`); of boxes that are the same,
    the phrase with the highest score stays, and of boxes of one phrase that are almost the same, the surest.

    Args:
        detections: of the picture.
        phrases: that were asked for.
        confidence: the least score, exclusive.
        left_out: takes counts of the others, by reason.
    """
    is_sure = detections.scores > confidence
    _count(left_out, {LOW_SCORE: int((~is_sure).sum())})
    cleaned = boxes.usable(detections.boxes[is_sure].double())
    _count(left_out, cleaned.problems)
    scores, index = detections.scores[is_sure][cleaned.kept], detections.phrase_index[is_sure][cleaned.kept]
    regions: dict[tuple[float, ...], dict[str, Any]] = {}
    of_phrase: dict[str, list[list[float]]] = {}
    for row in scores.argsort(descending=True, stable=True).tolist():
        box = [round(edge, _ROUND) for edge in cleaned.boxes[row].tolist()]
        phrase = phrases[int(index[row])]
        if tuple(box) in regions:
            _count(left_out, {SAME_BOX: 1})
        elif _is_almost_in(box, of_phrase.setdefault(phrase, [])):
            _count(left_out, {ALMOST_SAME_BOX: 1})
        else:
            of_phrase[phrase].append(box)
            regions[tuple(box)] = {"box": box, "phrase": phrase, "score": round(float(scores[row]), 4)}
    return list(regions.values())


def _is_almost_in(box: list[float], others: list[list[float]]) -> bool:
    iou = boxes.pairwise_iou(torch.tensor([box]), torch.tensor(others).reshape(-1, 4))
    return bool((iou >= MIN_IOU_ALMOST_SAME).any())


def _count(counts: dict[str, int], more: Mapping[str, int]) -> None:
    counts.update(Counter(counts) + Counter(more))
