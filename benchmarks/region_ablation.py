"""CLIP, CLIP + CLOC and CLIP + GRAIN from scratch on the built-in scenes, and what each part of CLOC is for.

    python benchmarks/region_ablation.py --work WORK

Every row is a run of `clipkit train` with the settings of region_ablation.yaml, the same steps, seed and
images; rows differ in `regions` and `loss.weights` alone. All are measured with `clipkit evaluate` on the
same held-out scenes, which also show the eight combinations of a colour and a shape that no training scene
has. What is done is kept in `--work` and not done again, so that rows may be trained one by one (`--rows`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from binding_scenes import CLASSES as BINDING_CLASSES
from binding_scenes import NAME_TEMPLATE, write_binding_scenes
from region_runs import evaluate, minutes, train
from report import write_result

from clipkit.scene_objects import CLASSES, RADII
from clipkit.scenes import SceneShards, write_shards

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ROOT / "benchmarks" / "region_ablation.yaml"
SCENES = SceneShards(num_train_objects=64, num_objects=640)

GROUNDING_WEIGHT = 10.0
DECODER = {"num_queries": 5, "num_layers": 2, "num_heads": 6, "mlp_width": 384}
NUM_STEPS = 1_500
IMAGE_WEIGHT = 0.5
IMAGES_PER_PAIR = 100


@dataclass(frozen=True)
class Row:
    """A run, by what it has in `regions` and in `loss.weights`."""

    title: str
    regions: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """As in the file of a run."""
        return {"regions": self.regions, "loss": {"weights": self.weights}}


def _cloc(title: str, *, per_image: int = 4, **settings: float | bool) -> Row:
    return Row(
        title,
        {"head": "prompter", "per_image": per_image, "settings": settings},
        {"grounding": GROUNDING_WEIGHT} if settings.get("with_grounding", True) else {},
    )


ROWS = {
    "clip": Row("CLIP"),
    "cloc": _cloc("CLIP + CLOC"),
    "grain": Row(
        "CLIP + GRAIN",
        {"head": "query-decoder", "per_image": 5, "settings": DECODER},
        {"box": 1.5},
    ),
    "m2": _cloc("... M = 2", per_image=2),
    "m1": _cloc("... M = 1", per_image=1),
    "no-filter": _cloc("no filter of alike phrases", max_text_similarity=1.0),
    "no-grounding": _cloc("no grounding loss", with_grounding=False),
    "roi-align": Row("RoIAlign instead of the Prompter", {"head": "roi-align"}),
    "as-published": _cloc(
        "tokens without places, all outputs pooled", places_tokens=False, pools_prompts=False
    ),
}

SUITE = {
    "recognition": "region_recognition",
    "grounding": "region_grounding",
    "boxes": "region_boxes",
    "retrieval": "zeroshot_retrieval",
    "binding": "descriptions",
    "objects": "zeroshot_classification",
}
"""Tasks by what their result is called here."""


def phrases() -> list[str]:
    """The classes of boxes: what scenes call an object whose place need not be said."""
    return [f"the {size} {colour} {shape}" for size in RADII for colour, shape in CLASSES]


def settings(work: Path, name: str) -> dict[str, Any]:
    """What a row is trained with."""
    content: dict[str, Any] = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    content["data"]["sources"] = {"scenes": str(work / "scenes" / "train")}
    return {**content, **ROWS[name].settings, "steps": NUM_STEPS}


def measure(work: Path, name: str) -> dict[str, dict[str, float]]:
    """Metrics of a row by entry of `SUITE`, those that its head can answer."""
    head = ROWS[name].regions.get("head")
    grounds = head == "prompter" and name != "no-grounding"
    answers = {"boxes": head == "query-decoder", "grounding": grounds or head == "query-decoder"}
    names = work / "phrases.txt"
    names.write_text("\n".join(phrases()) + "\n", encoding="utf-8")
    data = {"objects": work / "scenes" / "objects", "binding": work / "binding"}
    suite = {
        entry: {"task": task, "data": str(data.get(entry, work / "scenes" / "val"))}
        for entry, task in SUITE.items()
        if answers.get(entry, True)
    }
    suite["recognition"]["class_names"] = str(names)
    suite["binding"] |= {"descriptions": str(work / "binding" / "descriptions.json"), "template": "{d}"}
    suite["binding"] |= {"name_template": NAME_TEMPLATE, "joiner": "none"}
    if head == "query-decoder":
        suite["binding"]["image_weight"] = IMAGE_WEIGHT
    found = evaluate(work, name, suite)
    return {entry: result.metrics for entry, result in found.items()}


COLUMNS = (
    ("regions by head", "recognition", "mean_per_class_accuracy"),
    ("by tokens", "recognition", "tokens_mean_per_class_accuracy"),
    ("by crop", "recognition", "crop_mean_per_class_accuracy"),
    ("grounding IoU", "grounding", "mean_iou"),
    ("IoU >= 0.5", "grounding", "accuracy@0.5"),
    ("found boxes IoU", "boxes", "mean_iou"),
    ("T2I R@1", "retrieval", "image_retrieval_recall@1"),
    ("I2T R@1", "retrieval", "text_retrieval_recall@1"),
    ("objects", "objects", "acc1"),
    ("pairs by caption", "binding", "names_acc1"),
    ("pairs by regions", "binding", "regions_mixed_acc1"),
)
"""Head of the column, entry of `SUITE`, metric."""


def table(found: dict[str, dict[str, dict[str, float]]], work: Path) -> str:
    """A line a row, in percent."""
    lines = [
        f"| trained with | {' | '.join(title for title, _, _ in COLUMNS)} | minutes |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for name, metrics in found.items():
        values = [metrics.get(entry, {}).get(metric) for _, entry, metric in COLUMNS]
        cells = ["" if value is None else f"{100 * value:.1f}" for value in values]
        lines.append(f"| {ROWS[name].title} | {' | '.join(cells)} | {minutes(work, name):.1f} |")
    return "\n".join(lines) + "\n"


def report(work: Path, names: Sequence[str]) -> str:
    """The whole text of the result."""
    found = {name: measure(work, name) for name in names}
    rows = "\n".join(f"{name}: {ROWS[name].settings}" for name in names)
    return (
        f"{SCENES.num_train:,} training scenes of 64 pixels, {SCENES.num_val:,} held-out ones with the boxes "
        f"of all their objects. {NUM_STEPS:,} steps of each row. Percent.\n\n{table(found, work)}\n"
        f"- Regions: mean per-class accuracy of the true boxes among {len(phrases())} phrases such as "
        f'"{phrases()[0]}", 16 of them of combinations that were never trained; boxes whose phrase says '
        "a place are left out. By the region head; by RoIAlign on the tower's own tokens, the control; by "
        "the tower on the box cut out.\n"
        "- Grounding: the box that the head gives for a phrase of the image, mean IoU, and the share with an "
        "IoU of 0.5 or more. Found boxes: those of the query decoder, matched with the true ones.\n"
        "- T2I and I2T: retrieval among the held-out scenes and their captions. Objects: images of one "
        "object among 64 names.\n"
        f"- Pairs: {IMAGES_PER_PAIR * len(BINDING_CLASSES):,} images of two objects among "
        f"{len(BINDING_CLASSES)} classes, half of which have the colours of another exchanged: who sees "
        "colours and shapes but not what belongs together reaches 50. By a caption of both objects; and as "
        "GRAIN classifies, by the image query and the regions found, each with the name that fits it best "
        f"(image weight {IMAGE_WEIGHT:g}).\n"
        "- Minutes: of the steps, on one core of a machine that did other things too.\n\n"
        f"```yaml\n{SETTINGS.read_text(encoding='utf-8')}```\n\n```\n{rows}\n```\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for scenes, runs and results")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="train these alone, and write no result")
    arguments = parser.parse_args()
    write_shards(arguments.work / "scenes", SCENES, num_processes=2)
    write_binding_scenes(arguments.work / "binding", per_class=IMAGES_PER_PAIR)
    for name in arguments.rows or ROWS:
        train(arguments.work, name, settings(arguments.work, name))
    if arguments.rows is None:
        body = report(arguments.work, tuple(ROWS))
        command = ["benchmarks/region_ablation.py", *sys.argv[1:]]
        write_result("region_ablation", "Regions from scratch on scenes", body, command=command)


if __name__ == "__main__":
    main()
