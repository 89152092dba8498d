"""Every method of adaptation on small real images, base-to-new: accuracy, seconds and megabytes.

    python benchmarks/adaptation.py --work WORK --data DATA

A small base model is trained first (benchmarks/adaptation.yaml), on other images; see adaptation_data.py.
Then every method learns 16 images a class of the first half of the classes, with three seeds, and is tested
on the test images of these classes among their names (base) and on those of the other classes among theirs
(new). The harmonic mean is that of the two averages over seeds.

What is done is kept in `--work` and not done again; remove the folder when data or base model change.
Each run is a process of its own, forked from one that has all modules. Its cost is read when the head is
ready, before the tests, and so includes loading the model and decoding the images: processor seconds, in
which nothing else counts that the machine does meanwhile, and the rise of the resident set's peak.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from adaptation_data import SETS, describe, prepare
from clipkit.training.adapt import loop
from clipkit.training.adapt.accuracy import accuracy, before_and_after, needs_trained_classes
from clipkit.training.adapt.loop import AdaptJob, adapt
from clipkit.training.adapt.recipe import Recipe, read_recipe
from loss import _resident as resident
from report import write_result

from clipkit.data.class_splits import ClassSplits, base_classes, new_classes, open_class_splits
from clipkit.dual_encoder import DualEncoder
from clipkit.heads.base import Head

ROOT = Path(__file__).resolve().parent.parent
CHOICE = (
    "Those of the papers, with the changes of adaptation_recipes.yaml. That MaPLe, IVLP and VPT have 20 "
    "epochs was chosen by MaPLe's results on validation images of the photo sets, after test images had "
    "been seen with 5. The way in which the base model is trained was chosen after earlier ones, "
    "trained on parts of the same sets, had been tested: on top of these, MaPLe won little or lost."
)
ZERO_SHOT = "zero-shot"
"""What stands in the table where nothing is learned."""


@dataclass(frozen=True)
class Run:
    """What came of a method with a seed; accuracies in percent."""

    set: str
    method: str
    seed: int
    recipe: str
    base: float
    new: float | None
    """None of a method that knows no classes but those it was trained with."""
    zero_shot_base: float
    zero_shot_new: float | None
    seconds: float
    """Of the processor."""
    megabytes: float


def train_base(work: Path) -> Path:
    """The base model, trained once with `clipkit train`; its model directory."""
    run = work / "run"
    if not (run / "model").exists():
        command = [sys.executable, "-m", "clipkit", "train", str(ROOT / "benchmarks" / "adaptation.yaml")]
        command += ["--output", str(run), "--resume", "auto"]
        command += ["--data.sources.flickr8k", str(work / "flickr8k.csv")]
        command += ["--data.sources.objects", str(work / "scene_shards" / "train_objects")]
        subprocess.run(command, check=True)
    return run / "model"


def read_recipes(path: Path, methods: Sequence[str] | None) -> dict[str, Recipe]:
    """The published recipe of each method, with what the file changes."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    unknown = sorted(set(methods or ()) - set(content))
    if unknown:
        raise SystemExit(f"{path} has no {', '.join(unknown)}, it has {', '.join(content)}")
    recipes = {}
    for method in methods or content:
        changes = dict(content[method])
        published = read_recipe(changes.pop("recipe", method))
        settings = {**published.settings, **changes.pop("settings", {})}
        recipes[method] = dataclasses.replace(published, settings=settings, **changes)
    return recipes


def all_runs(
    work: Path, sets: Iterable[str], recipes: dict[str, Recipe], seeds: Sequence[int], part: str
) -> Iterator[Run]:
    """Every run, from the file of those that are done or done now."""
    done_path = work / f"runs_{part}.jsonl"
    lines = done_path.read_text(encoding="utf-8").splitlines() if done_path.exists() else []
    done = {(run.set, run.method, run.seed, run.recipe): run for run in (Run(**json.loads(x)) for x in lines)}
    model = train_base(work)
    for name in sets:
        split = work / name / f"split_zhou_{name}.json"
        if part == "val":
            split = _validation_as_test(split)
        for method, recipe in recipes.items():
            for seed in seeds:
                key = (name, method, seed, str(recipe))
                if key not in done:
                    job = AdaptJob(
                        model=model,
                        data=str(split),
                        name=f"{name}-{method}-{seed}",
                        recipe=recipe,
                        recipe_name=method,
                        split="base",
                        seed=seed,
                        overwrite=True,
                        quiet=True,
                    )
                    frozen = next(
                        (run for run in done.values() if run.set == name and run.new is not None), None
                    )
                    done[key] = _alone(name, job, frozen)
                    with done_path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(done[key])) + "\n")
                    print(done[key], file=sys.stderr, flush=True)
                yield done[key]


def _validation_as_test(split: Path) -> Path:
    """A split that is tested on the validation images, to choose recipes by."""
    content = json.loads(split.read_text(encoding="utf-8"))
    path = split.with_name(split.name.replace(".json", "_val.json"))
    path.write_text(json.dumps({**content, "test": content["val"]}), encoding="utf-8")
    return path


def _alone(name: str, job: AdaptJob, frozen: Run | None) -> Run:
    """A run in a process of its own, which has all modules; see `_measured`."""
    context = multiprocessing.get_context("fork")
    answers: Any = context.SimpleQueue()
    process = context.Process(target=lambda: answers.put(_measured(name, job, frozen)))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{job.name} ended with exit code {process.exitcode}")
    run: Run = answers.get()
    return run


def _measured(name: str, job: AdaptJob, frozen: Run | None) -> Run:
    """A run; what zero-shot is on the set is taken from `frozen`, another run, where there is one."""
    torch.set_num_threads(1)
    before, began = resident("VmRSS"), time.process_time()
    Path("/proc/self/clear_refs").write_text("5")
    seconds = peak = 0.0

    def at_the_test(model: DualEncoder, head: Head, splits: ClassSplits, split: str, precision: Any) -> Any:
        nonlocal seconds, peak
        seconds, peak = time.process_time() - began, resident("VmHWM") - before
        if frozen is None:
            return before_and_after(model, head, splits, split, precision)
        return _after(model, head, splits, precision, frozen)

    with mock.patch.object(loop, "before_and_after", at_the_test):
        facts = adapt(job)
    found = {
        part: {when: 100 * share for when, share in shares.items()}
        for part, shares in facts["accuracy"].items()
    }
    new = found.get("new", {"before": None, "after": None})
    return Run(
        set=name,
        method=job.recipe_name,
        seed=job.seed,
        recipe=str(job.recipe),
        base=found["base"]["after"],
        new=new["after"],
        zero_shot_base=found["base"]["before"],
        zero_shot_new=new["before"],
        seconds=seconds,
        megabytes=peak / 1e6,
    )


def _after(
    model: DualEncoder, head: Head, splits: ClassSplits, precision: Any, frozen: Run
) -> dict[str, dict[str, float]]:
    """What `before_and_after` gives, with nothing measured of the model as it is."""
    halves = {"base": (base_classes(splits.names), frozen.zero_shot_base)}
    if frozen.zero_shot_new is not None and not needs_trained_classes(head):
        halves["new"] = (new_classes(splits.names), frozen.zero_shot_new)
    return {
        part: {
            "before": percent / 100,
            "after": accuracy(model, head, splits.test.of_classes(half), precision),
        }
        for part, (half, percent) in halves.items()
    }


def harmonic_mean(base: float, new: float) -> float:
    """Of two accuracies."""
    return 2 * base * new / (base + new) if base + new else 0.0


def table(runs: Sequence[Run]) -> str:
    """Rows by method, of one set."""
    # A head that knows no classes but its own is not tested on new ones, nor is the model beside it.
    first = next((run for run in runs if run.new is not None), runs[0])
    frozen = (
        [first.zero_shot_base] if first.zero_shot_new is None else [first.zero_shot_base, first.zero_shot_new]
    )
    rows = [f"| {ZERO_SHOT} | {_cells(frozen)} | | 0 | |"]
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        cost = (
            f"{statistics.median(run.seconds for run in own):.1f} "
            f"| {statistics.median(run.megabytes for run in own):,.0f} |"
        )
        bases = [run.base for run in own]
        base = f"| {method} | {statistics.fmean(bases):.2f} ± {_spread(bases):.2f}"
        if any(run.new is None for run in own):
            rows.append(f"{base} | | | | {cost}")
            continue
        means = [statistics.fmean(getattr(run, part) for run in own) for part in ("base", "new")]
        harmonic = [harmonic_mean(run.base, run.new) for run in own]
        rows.append(
            f"{base} | {means[1]:.2f} ± {_spread([run.new for run in own]):.2f} "
            f"| **{harmonic_mean(*means):.2f}** ± {_spread(harmonic):.2f} "
            f"| {harmonic_mean(*means) - harmonic_mean(*frozen):+.2f} | {cost}"
        )
    return (
        "| method | base | new | harmonic mean | to zero-shot | CPU seconds | MB |\n"
        "|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def _cells(shares: Sequence[float]) -> str:
    """Base, new and harmonic mean, or base alone."""
    base, *new = shares
    return f"{base:.2f} | {new[0]:.2f} | {harmonic_mean(base, new[0]):.2f}" if new else f"{base:.2f} | |"


def _spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def report(work: Path, runs: Sequence[Run], recipes: dict[str, Recipe], sets: Sequence[str]) -> str:
    """The whole text of the result."""
    parts = [describe(work)]
    for name in sets:
        names = open_class_splits(str(work / name / f"split_zhou_{name}.json")).names
        base, new = ([names[label] for label in half(names)] for half in (base_classes, new_classes))
        parts.append(
            f"## {name}\n\nBase ({len(base)}): {', '.join(base)}. New ({len(new)}): {', '.join(new)}. "
            f"Chance: {100 / len(base):.1f} and {100 / len(new):.1f} %.\n\n"
            + table([run for run in runs if run.set == name])
        )
    lines = [f"{method}: {asdict(recipe)}" for method, recipe in recipes.items()]
    parts.append("## Recipes\n\n" + CHOICE + "\n\n```\n" + "\n".join(lines) + "\n```\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for images, base model and runs")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(1, 2, 3))
    parser.add_argument("--methods", nargs="+", help="some of those that have a recipe")
    parser.add_argument("--recipes", type=Path, default=ROOT / "benchmarks" / "adaptation_recipes.yaml")
    parser.add_argument("--part", choices=("val", "test"), default="test", help="images to test on")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # processes are forked
    if not (arguments.work / SETS[-1]).exists():
        prepare(arguments.data, arguments.work)
    recipes = read_recipes(arguments.recipes, arguments.methods)
    runs = list(all_runs(arguments.work, arguments.sets, recipes, arguments.seeds, arguments.part))
    body = report(arguments.work, runs, recipes, arguments.sets)
    if arguments.part == "val":
        print(body)
    else:
        command = ["benchmarks/adaptation.py", *sys.argv[1:]]
        write_result("adaptation", "Adaptation, base-to-new", body, command=command)


if __name__ == "__main__":
    main()
