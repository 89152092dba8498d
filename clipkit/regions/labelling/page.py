"""The report of `clipkit regions label`: counts, and pictures with the boxes that were found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from clipkit.data.problems import SampleError
from clipkit.data.samples import SampleKeys
from clipkit.data.shards import ShardSource
from clipkit.images import ImageError, decode_image
from clipkit.page import Page
from clipkit.regions.labelling.settings import LabelReport, LabelSettings
from clipkit.regions.pictures import draw_regions

NUM_PICTURES = 12
_BOXES_PER_PICTURE = 15
_TRIES = 50
_CAPTIONS_PER_PICTURE = 2


def write_page(path: Path, shards: Sequence[Path], settings: LabelSettings, report: LabelReport) -> None:
    """Write the report as one HTML file.

    Args:
        path: of the page.
        shards: that were written.
        settings: what found the regions.
        report: the counts of all shards.
    """
    page = Page(
        "Regions of captioned images",
        f"Noun phrases of the captions ({settings.tagger}), at most {settings.max_phrases} an image, "
        f"found by {settings.detector}; boxes with a score above {settings.confidence:g}.",
    )
    share = report.num_images_with_regions / max(1, report.num_images)
    page.figures(
        {
            "images": f"{report.num_images:,}",
            "with regions": f"{share:.0%}",
            "regions": f"{report.num_regions:,}",
            "regions an image (CLOC: 11.6)": f"{report.regions_per_image:.1f}",
            "words a phrase (CLOC: 2.1)": f"{report.words_per_phrase:.1f}",
        }
    )
    for title, counts in (
        ("Images without regions", report.images_without_regions),
        ("Phrases left out", report.phrases_left_out),
        ("Boxes left out", report.boxes_left_out),
    ):
        if counts:
            page.section(title)
            page.table(("reason", "number"), _rows(counts))
    page.section("Pictures", "Spread over the shards; the surest boxes of each, with phrase and score.")
    for about, regions, picture in _pictures(shards, settings):
        page.picture(picture, f"{about} ({len(regions)} regions)")
    page.write(path)


def _rows(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return [(reason.replace("_", " "), f"{count:,}") for reason, count in ordered]


def _pictures(
    shards: Sequence[Path], settings: LabelSettings
) -> Iterator[tuple[str, list[dict[str, Any]], Image.Image]]:
    """Where a sample is with its captions, its regions, and its picture with the surest of them."""
    source = ShardSource(
        "labelled", shards, SampleKeys(caption=settings.caption_keys, require=(), fields=True)
    )
    step = max(1, len(source) // NUM_PICTURES)
    for start in range(0, step * NUM_PICTURES, step):
        for index in range(start, min(start + step, start + _TRIES, len(source))):
            try:
                sample = source.read(index)
                regions = list(sample.fields.get("regions", ()))
                if not regions:
                    continue
                image = decode_image(sample.image)
            except (SampleError, ImageError):
                continue
            shown = regions[:_BOXES_PER_PICTURE]
            boxes = torch.tensor([region["box"] for region in shown])
            texts = [f"{region['phrase']} {region['score']:.2f}" for region in shown]
            captions = " / ".join(sample.captions[:_CAPTIONS_PER_PICTURE])
            yield f"{source.where(index)}: {captions}", regions, draw_regions(image, boxes, texts)
            break
