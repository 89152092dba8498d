"""What the demo's model says of parts of scenes: the section of the page that shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

import clipkit
from clipkit.commands.demo_tasks import GROUNDING, RECOGNITION, TaskResults, show_result
from clipkit.data.samples import SampleKeys
from clipkit.data.sources import open_source
from clipkit.images import decode_image
from clipkit.page import Page
from clipkit.regions.look import look_for
from clipkit.regions.pictures import draw_regions, sheet
from clipkit.regions.show import label

NUM_SCENES = 6
_SIDE, _NUM_COLUMNS = 320, 3


def figures(results: TaskResults) -> dict[str, str]:
    """The figures to print."""
    named, found = (results[name]["metrics"] for name in (RECOGNITION, GROUNDING))
    return {
        "what is in a box, mean over phrases": f"{named['mean_per_class_accuracy']:.1%}",
        "where a phrase is, mean IoU": f"{found['mean_iou']:.1%}",
    }


def show_regions(report: Page, results: TaskResults, model: clipkit.DualEncoder, scenes: Path) -> None:
    """What the model says of boxes, and where it finds phrases.

    Args:
        report: the page.
        results: of the suite.
        model: with a head that grounds.
        scenes: shards of held-out scenes.
    """
    report.section(
        "Phrases and boxes",
        "The model has learnt from the boxes of the objects too, by the region-text contrast and the "
        "grounding of CLOC: it says what is in a box, and where what a phrase names is.",
    )
    pictures = list(_grounded(model, scenes))
    report.picture(
        sheet([pictures[start : start + _NUM_COLUMNS] for start in range(0, len(pictures), _NUM_COLUMNS)]),
        "Held-out scenes with the box that the model gives for the phrase of each object, and the cosine of "
        "what is in that box with the phrase. Some combinations of colour and shape were never trained.",
    )
    for name, title in (
        (RECOGNITION, "What is in a true box"),
        (GROUNDING, "Where the object of a phrase is"),
    ):
        report.subsection(title)
        show_result(report, results[name])


def _grounded(model: clipkit.DualEncoder, scenes: Path) -> Iterator[Image.Image]:
    source = open_source("val", scenes, SampleKeys(fields=True))
    for number in range(0, len(source), max(1, len(source) // NUM_SCENES))[:NUM_SCENES]:
        sample = source.read(number)
        picture = decode_image(sample.image)
        phrases = [region["phrase"] for region in sample.fields["regions"]]
        found = look_for(model, picture, phrases)
        boxes = torch.tensor([one.box for one in found])
        yield draw_regions(picture, boxes, [label(one) for one in found], longest_side=_SIDE)
