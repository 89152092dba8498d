"""Regions of real photos: CLIP + CLOC and plain CLIP after a short run on Flickr8k and 80 photos of COCO.

    python benchmarks/region_photos.py --work WORK --data DATA

`clipkit regions convert` makes shards of both halves of coco_mini. Both models see the photos and captions of
Flickr8k, which have no regions, and those of the first half, whose boxes CLOC uses. On the second half the
true boxes are classified among COCO's 80 names. It is small: most classes have few boxes to learn from.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import yaml
from flickr8k import make_shards
from region_ablation import ROWS as SCENE_ROWS
from region_ablation import SETTINGS, Row
from region_runs import evaluate, train
from report import write_result

ROOT = Path(__file__).resolve().parent.parent
NUM_STEPS = 1_500
SUITE = {"regions": "region_recognition"}
ROWS = {name: SCENE_ROWS[name] for name in ("clip", "cloc")}


def convert(data: Path, work: Path, split: str) -> Path:
    """Shards of a half of coco_mini, by way of COCO's own annotation files."""
    records = json.loads((data / "annotations.json").read_text(encoding="utf-8"))
    own = [(number, record) for number, record in enumerate(records) if record["split"] == split]
    folder = work / f"coco_{split}"
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(data / "images_320.tar") as tar:
        tar.extractall(folder / "images", filter="data")
    names = sorted({box["name"] for record in records for box in record["boxes"]})
    boxes = [(number, box) for number, record in own for box in record["boxes"]]
    instances = {
        "images": [
            {"id": number, "file_name": record["image"], "width": record["width"], "height": record["height"]}
            for number, record in own
        ],
        "annotations": [
            {
                "id": place,
                "image_id": number,
                "category_id": names.index(box["name"]),
                "bbox": box["xywh"],
                "iscrowd": box["crowd"],
            }
            for place, (number, box) in enumerate(boxes)
        ],
        "categories": [{"id": place, "name": name} for place, name in enumerate(names)],
    }
    captions = [
        {"image_id": number, "caption": text} for number, record in own for text in record["captions"]
    ]
    (folder / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
    (folder / "captions.json").write_text(json.dumps({"annotations": captions}), encoding="utf-8")
    command = [sys.executable, "-m", "clipkit", "regions", "convert", str(folder / "instances.json")]
    command += ["--format", "coco", "--images", str(folder / "images")]
    command += ["--captions", str(folder / "captions.json"), "--out", str(folder / "shards"), "--quiet"]
    subprocess.run(command, check=True)
    return folder / "shards"


def settings(work: Path, shards: Path, row: Row) -> dict[str, Any]:
    """Those of the runs on scenes, with other data."""
    content: dict[str, Any] = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    content["data"]["sources"] = {"flickr8k": str(work / "flickr8k" / "train"), "coco": str(shards)}
    content["data"]["weights"] = {"coco": 20}
    content["data"]["augment"] = {"scale": [0.5, 1.0], "ratio": [0.5, 2.0], "horizontal_flip": 0.5}
    return {**content, **row.settings, "steps": NUM_STEPS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for shards, runs and results")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    arguments = parser.parse_args()
    work: Path = arguments.work
    if not (work / "flickr8k" / "val").exists():
        shutil.rmtree(work / "flickr8k", ignore_errors=True)
        make_shards(arguments.data / "flickr8k", work / "flickr8k")
    halves = {split: convert(arguments.data / "coco_mini", work, split) for split in ("train", "val")}
    lines = ["| trained with | features | mean per-class accuracy | accuracy |", "|---|---|---|---|"]
    for name, row in ROWS.items():
        train(work, name, settings(work, halves["train"], row))
        suite = {entry: {"task": task, "data": str(halves["val"])} for entry, task in SUITE.items()}
        suite["regions"]["class_names"] = "coco"
        found = evaluate(work, name, suite)
        table, notes = found["regions"].tables[0], found["regions"].notes
        lines += [f"| {name} | {' | '.join(cells)} |" for cells in table.rows]
    body = (
        f"{NUM_STEPS} steps of both from scratch, with the settings of region_ablation.yaml and random "
        "crops. Percent; by the region head, by RoIAlign on the tower's own tokens, and by the tower on the "
        "box cut out.\n\n" + "\n".join(lines) + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
    )
    command = ["benchmarks/region_photos.py", *sys.argv[1:]]
    write_result("region_photos", "Regions of real photos", body, command=command)


if __name__ == "__main__":
    main()
