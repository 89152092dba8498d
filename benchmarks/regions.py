"""What training with regions costs: a step with the Prompter against a step of plain CLIP, at the same batch.

    python benchmarks/regions.py --repeats 12

Photos, captions and boxes of coco_mini; a phrase is two to four successive words of a caption of its photo.
Every image has four regions. The kinds of step take turns; the plain one is the step without `regions.head`.
The Prompter as published pools all its outputs, not those of prompts alone. Memory is the largest resident
set of a process that makes steps of one kind only.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import random
import resource
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from clipkit.training.build import build_model, build_trainer
from clipkit.training.config import DataConfig, ModelConfig, TrainConfig
from clipkit.training.regions_config import RegionsConfig
from clipkit.training.step import Trainer, train_step
from PIL import Image
from report import write_result

from clipkit.preprocess import train_transform
from clipkit.regions import boxes as region_boxes
from clipkit.regions.phrases import encode_texts, prepare_texts

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "coco_mini"
PER_IMAGE = 4
WORDS = (2, 4)
SETTINGS: dict[str, dict[str, float | bool]] = {
    "prompter": {},
    "published": {"pools_prompts": False, "places_tokens": False},
}
"""Of the head, by kind of step."""

Batch = dict[str, Any]
Steps = dict[str, Callable[[Batch, int], object]]
Seconds = dict[str, list[float]]
"""By kind of step."""


def make_trainer(model: str, batch_size: int, kind: str) -> Trainer:
    """A trainer of CLIP and the Prompter from random weights."""
    config = TrainConfig(
        output=Path("unused"),
        model=ModelConfig(name=model),
        data=DataConfig(sources={"unused": "unused"}, batch_size_per_rank=batch_size),
        regions=RegionsConfig(head="prompter", settings=SETTINGS[kind], per_image=PER_IMAGE),
        steps=1_000,
    )
    torch.manual_seed(0)
    return build_trainer(config, build_model(config), torch.device("cpu"), num_steps=1_000)


def make_batches(trainer: Trainer, batch_size: int, count: int) -> list[Batch]:
    """Batches as the loader gives them, of photos with at least one box."""
    photos = [one for one in json.loads((DATA / "annotations.json").read_text()) if _clean(one)[0]]
    draw = random.Random(0)
    with tarfile.open(DATA / "images_320.tar") as tar:
        return [
            _batch(trainer, [_photo(tar, photo, draw) for photo in draw.sample(photos, batch_size)])
            for _ in range(count)
        ]


def _clean(photo: dict[str, Any]) -> tuple[list[list[float]], int]:
    found = region_boxes.clean(
        [box["xywh"] for box in photo["boxes"]], "xywh", (photo["height"], photo["width"])
    )
    return found.boxes.tolist(), len(found.boxes)


def _photo(tar: tarfile.TarFile, photo: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    content = tar.extractfile(photo["image"])
    assert content is not None
    boxes, _ = _clean(photo)
    phrases = []
    for _ in range(PER_IMAGE):
        words = draw.choice(photo["captions"]).strip(". ").lower().split()
        length = draw.randint(*WORDS)
        start = draw.randint(0, max(0, len(words) - length))
        phrases.append(" ".join(words[start : start + length]))
    return {
        "pixels": content.read(),
        "caption": draw.choice(photo["captions"]),
        "boxes": [draw.choice(boxes) for _ in range(PER_IMAGE)],
        "phrases": phrases,
    }


def _batch(trainer: Trainer, photos: list[dict[str, Any]]) -> Batch:
    tokenizer = trainer.model.tokenizer
    transform = train_transform(trainer.model.preprocess_config, dtype=torch.uint8)
    return {
        "image": torch.stack([transform(Image.open(io.BytesIO(photo["pixels"]))) for photo in photos]),
        "text": tokenizer([photo["caption"] for photo in photos]),
        "key": [photo["caption"] for photo in photos],
        "boxes": torch.tensor([box for photo in photos for box in photo["boxes"]]),
        "box_index": torch.arange(len(photos)).repeat_interleave(PER_IMAGE),
        "region_text": tokenizer([phrase for photo in photos for phrase in photo["phrases"]]),
    }


def kinds_of_step(trainer: Trainer) -> Steps:
    """What is timed of a trainer: its step, the one without its head, and the texts of both alone."""
    plain = dataclasses.replace(trainer, region_objective=None)

    def texts_alone(batch: Batch, _step: int) -> None:
        prepared = prepare_texts(trainer.model.model, batch["text"], batch["region_text"])
        captions, phrases = encode_texts(trainer.model, prepared)
        (captions.sum() + phrases.sum()).backward()

    def captions_alone(batch: Batch, _step: int) -> None:
        trainer.model.encode_text(batch["text"], normalize=True).sum().backward()

    return {
        "regions": lambda batch, step: train_step(trainer, batch, step),
        "plain": lambda batch, step: train_step(plain, batch, step),
        "texts": texts_alone,
        "captions": captions_alone,
    }


def measure(steps: Steps, batches: list[Batch], repeats: int) -> tuple[Seconds, Seconds]:
    """Seconds of each kind of step, which take turns, by the clock and of the processor.

    The first of each does not count.
    """
    by_clock: Seconds = {}
    of_processor: Seconds = {}
    for number in range(repeats + 1):
        for name, step in steps.items():
            clock, processor = time.perf_counter(), time.process_time()
            step(batches[number % len(batches)], number)
            by_clock.setdefault(name, []).append(time.perf_counter() - clock)
            of_processor.setdefault(name, []).append(time.process_time() - processor)
    by_clock, of_processor = (
        {name: values[1:] for name, values in found.items()} for found in (by_clock, of_processor)
    )
    return by_clock, of_processor


def peak_bytes(name: str, model: str, batch_size: int, threads: int) -> int:
    """Largest resident set of a process that makes three steps of one kind."""
    arguments = ["--only", name, "--model", model, "--batch-size", str(batch_size), "--threads", str(threads)]
    command = [sys.executable, __file__, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def row(name: str, kind: str, by_clock: Seconds, of_processor: Seconds, peak: int | None) -> str:
    """A line of the table."""
    cells = [name]
    for seconds in (by_clock, of_processor):
        ratios = [own / base for own, base in zip(seconds[kind], seconds["plain"], strict=True)]
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        cells += [f"{statistics.median(seconds[kind]):.3f}", f"{middle:.3f} ({low:.3f} to {high:.3f})"]
    cells.append("" if peak is None else f"{peak / 2**30:.2f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("plain", *SETTINGS), help="three steps, then the peak memory")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        kind, step = ("prompter", "plain") if options.only == "plain" else (options.only, "regions")
        trainer = make_trainer(options.model, options.batch_size, kind)
        for number, batch in enumerate(make_batches(trainer, options.batch_size, 3)):
            kinds_of_step(trainer)[step](batch, number)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    peaks = {
        name: peak_bytes(name, options.model, options.batch_size, options.threads)
        for name in ("plain", *SETTINGS)
    }
    trainers = {kind: make_trainer(options.model, options.batch_size, kind) for kind in SETTINGS}
    batches = make_batches(trainers["prompter"], options.batch_size, options.repeats + 1)
    steps = kinds_of_step(trainers["prompter"])
    steps |= {kind: kinds_of_step(trainer)["regions"] for kind, trainer in trainers.items()}
    del steps["regions"]
    seconds = measure(steps, batches, options.repeats)
    num_distinct = statistics.mean(len(torch.unique(batch["region_text"], dim=0)) for batch in batches)
    lines = [
        row("plain CLIP", "plain", *seconds, peaks["plain"]),
        row("with the Prompter", "prompter", *seconds, peaks["prompter"]),
        row("with the Prompter as published", "published", *seconds, peaks["published"]),
        row("of the first: captions through the text tower", "captions", *seconds, None),
        row("of the others: captions and phrases, packed", "texts", *seconds, None),
    ]
    body = (
        f"{options.model}, random weights, fp32, batch {options.batch_size}, {options.threads} thread(s); "
        f"{PER_IMAGE} regions an image, phrases of {WORDS[0]} to {WORDS[1]} words of which "
        f"{num_distinct:.0f} of {PER_IMAGE * options.batch_size} are distinct; the Prompter by its default "
        f"settings, and as published ({SETTINGS['published']}). {options.repeats} steps of each kind in "
        "turns after one warm-up; seconds are medians; a ratio is the median (and range) of those of two "
        "steps on the same batch, one after the other.\n\n"
        "| step | seconds, clock | x plain CLIP | seconds, processor | x plain CLIP | peak memory, GiB |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )
    write_result("regions", "A training step with regions", body, command=sys.argv)


if __name__ == "__main__":
    main()
