"""The demo's model that answers about parts of scenes, and the section of the page that shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

import clipkit
from clipkit.commands.demo import DemoFolder, run
from clipkit.commands.demo_tasks import TaskResults, read_task_results, show_result
from clipkit.data.samples import SampleKeys
from clipkit.data.sources import open_source
from clipkit.images import decode_image
from clipkit.model_dir import read_record
from clipkit.page import Page
from clipkit.regions.look import look_for
from clipkit.regions.pictures import draw_regions, sheet
from clipkit.regions.show import label

RECOGNITION, GROUNDING = "recognition", "grounding"
NUM_SCENES = 6
CONFIG_NAME, SUITE_NAME = "regions.yaml", "regions_suite.yaml"
_SIDE, _NUM_COLUMNS = 320, 3

CONFIG = """\
# The second model of `clipkit demo`: it learns from boxes with phrases, beside pictures with captions.
model:
  name: tiny-vit
data:
  batch_size_per_rank: 64
  num_workers: 1
  augment:
    scale: [1.0, 1.0] # no crop, so that every box stays in the picture
regions:
  head: prompter
  weights: {grounding: 10}
optim:
  lr: 1.0e-3
  weight_decay: 0.1
  warmup_steps: 50
  grad_clip_norm: 1.0
epochs: 2
log:
  every_steps: 10
"""


def train_and_evaluate(folder: DemoFolder, *, seed: int) -> int:
    """Run `clipkit train` and `clipkit evaluate` as a user would; returns the exit status."""
    import yaml

    config = folder.path / CONFIG_NAME
    config.write_text(CONFIG, encoding="utf-8")
    arguments = ["train", str(config), "--output", str(folder.region_run), "--seed", str(seed)]
    arguments += ["--data.sources.scenes", str(folder.scenes / "train"), "--resume", "auto"]
    suite = folder.path / SUITE_NAME
    data = str(folder.scenes / "val")
    entries = {
        RECOGNITION: {"task": "region_recognition", "data": data},
        GROUNDING: {"task": "region_grounding", "data": data},
    }
    suite.write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")
    measure = ["evaluate", str(folder.region_model), "--suite", str(suite)]
    measure += ["--output", str(folder.region_results), "--no-cache"]
    return run(arguments) or run(measure)


def read_results(folder: DemoFolder) -> TaskResults:
    """What `clipkit evaluate` has found of the model."""
    record = read_record(folder.region_model)
    assert record is not None
    return read_task_results(folder.region_results, record["model_id"])


def figures(results: TaskResults) -> dict[str, str]:
    """The figures to print."""
    named, found = (results[name]["metrics"] for name in (RECOGNITION, GROUNDING))
    return {
        "what is in a box, mean over phrases": f"{named['mean_per_class_accuracy']:.1%}",
        "where a phrase is, mean IoU": f"{found['mean_iou']:.1%}",
    }


def show_regions(report: Page, results: TaskResults, folder: DemoFolder) -> None:
    """What the model says of boxes, and where it finds phrases."""
    model = clipkit.load(folder.region_model).eval()
    report.section(
        "Phrases and boxes",
        "A second model has learnt from the boxes of the objects too, by the region-text contrast and the "
        "grounding of CLOC: it says what is in a box, and where what a phrase names is.",
    )
    pictures = list(_grounded(model, folder.scenes / "val"))
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
