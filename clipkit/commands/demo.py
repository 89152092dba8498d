"""`clipkit demo`: generate captioned scenes, train on them, evaluate, search, and write a report page."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from clipkit.scene_descriptions import VarietyShards
    from clipkit.scenes import SceneShards

app = App(name="demo", help="Train and evaluate on built-in data; ends with a report page.")

REPORT_NAME = "report.html"
CONFIG_NAME = "train.yaml"
SUITE_NAME = "suite.yaml"

TRAIN_CONFIG = """\
# What `clipkit demo` trains: a small model on the scenes that it has generated, and on the boxes in them.
model:
  name: tiny-conv
data:
  batch_size_per_rank: 128
  num_workers: 1
regions:
  head: prompter
loss:
  weights: {grounding: 10}
optim:
  lr: 2.0e-3
  weight_decay: 0.1
  warmup_steps: 50
epochs: 3
log:
  every_steps: 10
"""


@dataclass(frozen=True)
class DemoFolder:
    """Where the demo puts things."""

    path: Path

    @property
    def scenes(self) -> Path:
        """Shards of the three splits."""
        return self.path / "scenes"

    @property
    def varieties(self) -> Path:
        """Fine-grained classes with descriptions."""
        return self.path / "varieties"

    @property
    def object_descriptions(self) -> Path:
        """Descriptions of the classes of the single objects."""
        return self.path / "object_descriptions.json"

    @property
    def results(self) -> Path:
        """Result files and the report of `clipkit evaluate`."""
        return self.path / "results"

    @property
    def run(self) -> Path:
        """The training run, with the model directory in it."""
        return self.path / "run"

    @property
    def model(self) -> Path:
        """The model directory."""
        return self.run / "model"

    @property
    def pictures(self) -> Path:
        """The held-out scenes as files: pictures with captions."""
        return self.path / "pictures"

    @property
    def embeddings(self) -> Path:
        """What `clipkit embed` makes of them."""
        return self.path / "emb"

    @property
    def index(self) -> Path:
        """What `clipkit index build` makes of that."""
        return self.path / "index"

    @property
    def search_results(self) -> Path:
        """What `clipkit search` finds in it for one caption."""
        return self.path / "search.json"


@app.default
def demo(
    *,
    output: Annotated[Path, Parameter(help="Folder for scenes, run and report.")] = Path("demo"),
    num_train: Annotated[int, Parameter(help="Scenes to train on.")] = 16_000,
    num_train_objects: Annotated[int, Parameter(help="Images of one object to train on.")] = 10_000,
    num_val: Annotated[int, Parameter(help="Held-out scenes for retrieval.")] = 1_000,
    num_varieties_test: Annotated[int, Parameter(help="Test images of each fine-grained class.")] = 40,
    seed: Annotated[int, Parameter(help="Fixes scenes and training.")] = 0,
) -> int:
    """Train a small model on generated scenes in a few minutes and show what it can do.

    An interrupted demo goes on where it was when it is started again.
    """
    from clipkit.commands import demo_search
    from clipkit.scene_descriptions import VarietyShards
    from clipkit.scenes import SceneShards

    folder = DemoFolder(output)
    with_search = demo_search.has_faiss()
    began = time.monotonic()
    settings = SceneShards(
        num_train=num_train, num_train_objects=num_train_objects, num_val=num_val, seed=seed
    )
    generate_scenes(folder, settings)
    describe_classes(folder, VarietyShards(num_test=num_varieties_test, seed=seed))
    status = train(folder, seed=seed) or evaluate_suite(folder)
    if status == 0 and with_search:
        status = demo_search.search_scenes(folder)
    if status != 0:
        return status

    from clipkit.commands.demo_report import evaluate, write_report

    results = evaluate(folder)
    report = output / REPORT_NAME
    minutes = (time.monotonic() - began) / 60
    write_report(report, results, folder, minutes=minutes, with_search=with_search)
    for name, value in results.headline().items():
        print(f"{name:58s} {value}")
    print(f"report: {report}")
    print(f"serve: {demo_search.serve_command(folder)}" if with_search else demo_search.LEFT_OUT)
    return 0


def generate_scenes(folder: DemoFolder, settings: SceneShards) -> None:
    """Write the shards, unless they are there."""
    from clipkit.console import progress
    from clipkit.scenes import write_shards

    with progress("scenes", settings.num_scenes) as meter:
        last = 0

        def report(done: int, _total: int) -> None:
            nonlocal last
            meter.advance(done - last)
            last = done

        write_shards(folder.scenes, settings, num_processes=min(2, os.cpu_count() or 1), progress=report)


def describe_classes(folder: DemoFolder, settings: VarietyShards) -> None:
    """Write the fine-grained classes and the descriptions of all classes, unless they are there."""
    from clipkit.scene_descriptions import object_descriptions, write_varieties

    write_varieties(folder.varieties, settings)
    described = json.dumps(object_descriptions(seed=settings.seed), indent=2) + "\n"
    folder.object_descriptions.write_text(described, encoding="utf-8")


def train(folder: DemoFolder, *, seed: int) -> int:
    """Run `clipkit train` as a user would; returns its exit status."""
    config = folder.path / CONFIG_NAME
    config.write_text(TRAIN_CONFIG, encoding="utf-8")
    arguments = ["train", str(config), "--output", str(folder.run)]
    arguments += ["--data.sources.scenes", str(folder.scenes / "train")]
    arguments += ["--data.sources.objects", str(folder.scenes / "train_objects")]
    arguments += ["--eval.retrieval.val", str(folder.scenes / "val")]
    arguments += ["--eval.zero-shot.objects", str(folder.scenes / "objects" / "test")]
    arguments += ["--seed", str(seed), "--resume", "auto"]
    return run(arguments)


def evaluate_suite(folder: DemoFolder) -> int:
    """Run `clipkit evaluate` as a user would; returns its exit status."""
    import yaml

    from clipkit.commands.demo_tasks import suite_entries

    entries = suite_entries(
        val=folder.scenes / "val",
        objects=folder.scenes / "objects",
        object_descriptions=folder.object_descriptions,
        varieties=folder.varieties,
    )
    suite = folder.path / SUITE_NAME
    suite.write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")
    arguments = ["evaluate", str(folder.model), "--suite", str(suite), "--output", str(folder.results)]
    arguments += ["--no-cache"]  # nothing outside the demo's folder
    return run(arguments)


def run(arguments: list[str]) -> int:
    """Run a command and say so; returns its exit status."""
    from clipkit.cli import main

    print(f"$ clipkit {shlex.join(arguments)}", file=sys.stderr)
    return main(arguments)
