"""Every method of adaptation on small real images, base-to-new: accuracy, seconds and megabytes.

    python benchmarks/adaptation.py --work /tmp/adaptation --data ../shared/data

A small base model is trained first (benchmarks/adaptation.yaml) on parts of the same sets that are used for
nothing else; see adaptation_data.py. Then every method learns 16 images a class of the first half of the
classes, with three seeds, and is tested on the test images of these classes among their names (base) and on
those of the other classes among theirs (new). The harmonic mean is that of the two averages over seeds.

What is done is kept in `--work` and not done again. Each run is a process of its own, forked from one with
the model and the images: seconds are those of training, memory the rise of the resident set's peak in it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from adaptation_data import SETS, prepare
from clipkit.heads.methods import build_head
from loss import _resident as resident
from PIL import Image
from report import write_result
from torch import Tensor

import clipkit
from clipkit.augment import AugmentConfig
from clipkit.heads.base import Head, frozen_text_features
from clipkit.prompts.class_texts import ClassTexts, class_texts

ROOT = Path(__file__).resolve().parent.parent
ZERO_SHOT = "zero-shot"
"""What stands in the table where nothing is learned."""
SHOTS = 16
Items = Sequence[tuple[str, int]]
"""Paths and labels."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a method learns; SGD of momentum 0.9, a first epoch at 1e-5, then a cosine over epochs to 0."""

    lr: float
    epochs: int
    batch_size: int
    settings: dict[str, Any] = field(default_factory=dict)


class ZeroShot(Head):
    """The model as it is, with the text that the methods begin with."""

    method: ClassVar[str] = ZERO_SHOT
    changes_text: ClassVar[bool] = False

    def class_texts(self, model: clipkit.DualEncoder, names: Sequence[str]) -> ClassTexts:
        """See `Head`."""
        return class_texts(model, names, "a photo of a {c}.", 0)

    def text_features(self, model: clipkit.DualEncoder, texts: ClassTexts) -> Tensor:
        """See `Head`."""
        return frozen_text_features(model, texts)


@dataclass(frozen=True)
class Split:
    """A set of images with a half of its classes: pixels are read once."""

    folder: Path
    parts: dict[str, list[tuple[str, int, str]]]

    @property
    def names(self) -> list[str]:
        """All classes, in the order of their labels."""
        return [name for _, name in sorted({(label, name) for _, label, name in self.parts["test"]})]

    @property
    def base(self) -> list[str]:
        """The first half of the classes, the larger one."""
        return self.names[: (len(self.names) + 1) // 2]

    @property
    def new(self) -> list[str]:
        """The other classes."""
        return self.names[len(self.base) :]

    def items(self, part: str, names: Sequence[str]) -> list[tuple[str, int]]:
        """Images of some classes, with labels into `names`."""
        places = {name: label for label, name in enumerate(names)}
        return [(path, places[name]) for path, _, name in self.parts[part] if name in places]

    def few(self, shots: int, seed: int) -> list[tuple[str, int]]:
        """So many training images of every base class, drawn by the seed."""
        generator = torch.Generator().manual_seed(seed)
        chosen = []
        items = self.items("train", self.base)
        for label in range(len(self.base)):
            own = [item for item in items if item[1] == label]
            chosen += [own[i] for i in torch.randperm(len(own), generator=generator)[:shots].tolist()]
        return chosen


def open_split(work: Path, name: str) -> Split:
    """A set that `prepare` has written."""
    content = json.loads((work / name / f"split_zhou_{name}.json").read_text(encoding="utf-8"))
    return Split(work / name, content)


@cache
def picture(path: Path) -> Image.Image:
    """An image, decoded."""
    return Image.open(path).convert("RGB")


def learn(model: clipkit.DualEncoder, head: Head, split: Split, recipe: Recipe, seed: int) -> float:
    """Train a head on base classes; the last loss in nats."""
    texts = head.class_texts(model, split.base)
    transform = model.preprocess(train=True, augment=AugmentConfig(scale=(0.08, 1.0), horizontal_flip=0.5))
    optimizer = torch.optim.SGD(head.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)
    items = split.few(SHOTS, seed)
    head.train()
    loss = torch.zeros(())
    for epoch in range(recipe.epochs):
        for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate if epoch else 1e-5
        for places in torch.randperm(len(items)).split(recipe.batch_size):
            chosen = [items[place] for place in places.tolist()]
            batch = {
                "image": torch.stack([transform(picture(split.folder / path)) for path, _ in chosen]),
                "label": torch.tensor([label for _, label in chosen]),
            }
            loss = head.loss(model, batch, texts)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        head.end_epoch(epoch + 1, recipe.epochs)
    head.finish()
    return loss.item()


@torch.no_grad()
def accuracy(model: clipkit.DualEncoder, head: Head, split: Split, part: str, names: Sequence[str]) -> float:
    """Percent of the images of some classes that are named rightly among these."""
    head.eval()
    texts = head.class_texts(model, names)
    items = split.items(part, names)
    transform = model.preprocess()
    right = 0
    for begin in range(0, len(items), 200):
        some = items[begin : begin + 200]
        images = torch.stack([transform(picture(split.folder / path)) for path, _ in some])
        logits = head.logits(model, head.image_features(model, images), texts)
        right += int((logits.argmax(dim=1) == torch.tensor([label for _, label in some])).sum())
    return 100 * right / len(items)


@dataclass(frozen=True)
class Run:
    """What came of a method with a seed."""

    set: str
    method: str
    seed: int
    base: float
    new: float
    seconds: float
    megabytes: float
    recipe: str = ""


def measure(
    model: clipkit.DualEncoder, name: str, split: Split, method: str, recipe: Recipe, seed: int, part: str
) -> Run:
    """Train and test, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    Path("/proc/self/clear_refs").write_text("5")
    before, began = resident("VmRSS"), time.perf_counter()
    head = build_head(method, model, recipe.settings)
    head.prepare(model, split.base)
    learn(model, head, split, recipe, seed)
    seconds, peak = time.perf_counter() - began, resident("VmHWM") - before
    base, new = (accuracy(model, head, split, part, names) for names in (split.base, split.new))
    return Run(name, method, seed, base, new, seconds, peak / 1e6, str(recipe))


def measure_alone(*arguments: Any) -> Run:
    """`measure` in a process of its own."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=lambda: answers.put(measure(*arguments)))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{arguments[3]} on {arguments[1]} ended with exit code {process.exitcode}")
    run: Run = answers.get()
    return run


def train_base(work: Path) -> Path:
    """The base model, trained once with `clipkit train`; its model directory."""
    run = work / "run"
    if not (run / "model").exists():
        command = [sys.executable, "-m", "clipkit", "train", str(ROOT / "benchmarks" / "adaptation.yaml")]
        command += ["--output", str(run), "--resume", "auto"]
        for name in (*SETS[:-1], "flickr8k"):
            command += [f"--data.sources.{name}", str(work / f"{name}.csv")]
        command += ["--data.sources.objects", str(work / "scene_shards" / "train_objects")]
        subprocess.run(command, check=True)
    return run / "model"


def all_runs(
    work: Path, sets: Iterable[str], recipes: dict[str, Recipe], seeds: Sequence[int], part: str
) -> Iterator[Run]:
    """Every run, from the file of those that are done or done now."""
    done_path = work / f"runs_{part}.jsonl"
    lines = done_path.read_text(encoding="utf-8").splitlines() if done_path.exists() else []
    done = {(run.set, run.method, run.seed, run.recipe): run for run in (Run(**json.loads(x)) for x in lines)}
    model = clipkit.load(train_base(work)).requires_grad_(False)
    for name in sets:
        split = open_split(work, name)
        for path, _ in split.items("test", split.names):
            picture(split.folder / path)
        base, new = (accuracy(model, ZeroShot(None), split, part, names) for names in (split.base, split.new))
        yield Run(name, ZERO_SHOT, 0, base, new, 0.0, 0.0)
        for method, recipe in recipes.items():
            for seed in seeds:
                key = (name, method, seed, str(recipe))
                if key not in done:
                    done[key] = measure_alone(model, name, split, method, recipe, seed, part)
                    with done_path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(done[key].__dict__) + "\n")
                yield done[key]


def harmonic_mean(base: float, new: float) -> float:
    """Of two accuracies."""
    return 2 * base * new / (base + new) if base + new else 0.0


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    mean = statistics.fmean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"


def table(runs: Sequence[Run]) -> str:
    """Rows by method, of one set or of the means over sets."""
    rows = []
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        base, new = (statistics.fmean(getattr(run, part) for run in own) for part in ("base", "new"))
        cost = " | ".join(f"{statistics.median(getattr(run, what) for run in own):,.0f}" for what in COSTS)
        rows.append(
            f"| {method} | {spread([run.base for run in own])} | {spread([run.new for run in own])} "
            f"| **{harmonic_mean(base, new):.2f}** ± "
            f"{statistics.stdev(h) if len(h := [harmonic_mean(r.base, r.new) for r in own]) > 1 else 0:.2f} "
            f"| {cost if method != ZERO_SHOT else '- | -'} |"
        )
    return (
        "| method | base | new | harmonic mean | seconds | MB |\n|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


COSTS = ("seconds", "megabytes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for images, base model and runs")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(1, 2, 3))
    parser.add_argument("--methods", nargs="+", help="all by default")
    parser.add_argument("--recipes", type=Path, default=ROOT / "benchmarks" / "adaptation_recipes.yaml")
    parser.add_argument("--part", choices=("val", "test"), default="test", help="images to test on")
    arguments = parser.parse_args()
    if not (arguments.work / SETS[-1]).exists():
        prepare(arguments.data, arguments.work)
    content = yaml.safe_load(arguments.recipes.read_text(encoding="utf-8"))
    recipes = {
        method: Recipe(**values)
        for method, values in content.items()
        if method in (arguments.methods or content)
    }
    runs = list(all_runs(arguments.work, arguments.sets, recipes, arguments.seeds, arguments.part))
    tables = []
    for name in arguments.sets:
        split = open_split(arguments.work, name)
        tables.append(
            f"## {name}\n\n{len(split.base)} base classes: {', '.join(split.base)}. {len(split.new)} new "
            f"ones: {', '.join(split.new)}.\n\n" + table([run for run in runs if run.set == name])
        )
    body = "\n".join(tables)
    if arguments.part == "val":
        print(body)
        return
    command = ["benchmarks/adaptation.py", *sys.argv[1:]]
    write_result("adaptation", "Adaptation, base-to-new", body, command=command)


if __name__ == "__main__":
    main()
