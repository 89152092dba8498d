"""Data of the adaptation benchmark: what a small base model sees, and four sets to adapt it to.

The base model sees the captioned photos of Flickr8k and scenes of one object, and no image of the three
photo sets, as a published model has not seen those that it is adapted to. Of every class of these sets the
images are divided into train, val and test of `split_zhou_NAME.json`, the format of CoOp's splits; test
images beyond `MAX_TEST` are left out. The scenes of the base model and those of the set come from different
draws.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clipkit.scenes import SceneShards, write_shards


@dataclass(frozen=True)
class PhotoSet:
    """A tar of labelled images and how each class is divided: shares for train and val."""

    tar: str
    train: float
    val: float


PHOTO_SETS = {
    "cifar10": PhotoSet("cifar10_jpg_8k.tar", 0.15, 0.10),
    "clothing": PhotoSet("clothing_train_112.tar", 0.20, 0.10),
    "pacs": PhotoSet("pacs_photo_sketch_64.tar", 0.20, 0.10),
}
MAX_TEST = 150
"""Test images of a class in a folder of the tar; with the 30 runs of a set, more would take hours."""
SETS = (*PHOTO_SETS, "scenes")
SCENES = SceneShards(num_train=1, num_train_objects=4_000, num_val=1, num_objects=64 * 40)
"""40 images of one object a class are adapted to: 18 to train on, 4 to validate, 18 to test."""
SHAPES = ("circle", "star")
"""In every colour: the classes of the set. With all 64, the methods that take a step an image take hours."""
Item = tuple[str, int, str]
"""Path, label and class name, as a split file has them."""


def prepare(shared: Path, work: Path) -> None:
    """Write `work/flickr8k.csv`, scenes, and `work/NAME/split_zhou_NAME.json` of every set, with images."""
    for name, photo_set in PHOTO_SETS.items():
        _divide(shared / photo_set.tar, work, name, photo_set)
    _flickr(shared / "flickr8k", work)
    write_shards(work / "scene_shards", SCENES)
    _scenes(work)


def describe(work: Path) -> str:
    """What went where: images of each part, a table."""
    rows = []
    for name in SETS:
        content = json.loads((work / name / f"split_zhou_{name}.json").read_text(encoding="utf-8"))
        rows.append(
            f"| {name} | {' | '.join(f'{len(content[part]):,}' for part in ('train', 'val', 'test'))} |"
        )
    return (
        "The base model was trained on the 5,997 captioned training photos of Flickr8k and on "
        f"{SCENES.num_train_objects:,} scenes of one object, of all but 8 of the 64 classes, captioned by "
        "name. It has seen no image of the photo sets. Images, in disjoint parts:\n\n"
        "| set | to draw 16 a class from | validation | test |\n"
        "|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def _divide(tar_path: Path, work: Path, name: str, photo_set: PhotoSet) -> None:
    groups: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
    with tarfile.open(tar_path) as tar:
        for member in tar:
            if member.isfile():
                content = tar.extractfile(member)
                assert content is not None
                groups[member.name.rsplit("/", 1)[0]].append((member.name, content.read()))
    names = sorted({group.rsplit("/", 1)[-1] for group in groups})
    parts: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    for group, members in sorted(groups.items()):
        class_name, num_tested = group.rsplit("/", 1)[-1], 0
        for path, share in _shares(members):
            part = _part(share, photo_set)
            num_tested += part == "test"
            if part != "test" or num_tested <= MAX_TEST:
                parts[part].append((path, names.index(class_name), class_name))
        for path, content in members:
            _write(work / name / path, content)
    _write_split(work / name / f"split_zhou_{name}.json", parts)


def _shares(members: list[tuple[str, bytes]]) -> Iterator[tuple[str, float]]:
    """Paths in the order of their hashes, each with its place in [0, 1); equal images have one place."""
    ordered = sorted((hashlib.sha256(content).hexdigest(), path) for path, content in members)
    places: dict[str, float] = {}
    for number, (digest, path) in enumerate(ordered):
        yield path, places.setdefault(digest, number / len(ordered))


def _part(share: float, photo_set: PhotoSet) -> str:
    if share < photo_set.train - 1e-9:
        return "train"
    return "val" if share < photo_set.train + photo_set.val - 1e-9 else "test"


def _flickr(folder: Path, work: Path) -> None:
    entries = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    train = {entry["image"]: entry["captions"] for entry in entries if entry["split"] == "train"}
    with tarfile.open(folder / "images_112.tar") as tar:
        for member in tar:
            if member.name in train:
                content = tar.extractfile(member)
                assert content is not None
                _write(work / "flickr8k" / member.name, content.read())
    rows = [(f"flickr8k/{image}", text) for image, texts in train.items() for text in texts]
    _write_table(work / "flickr8k.csv", rows)


def _scenes(work: Path) -> None:
    objects = work / "scene_shards" / "objects"
    names = (objects / "classnames.txt").read_text().splitlines()
    chosen = sorted(name for name in names if name.endswith(SHAPES))
    order = {name: label for label, name in enumerate(chosen)}
    parts: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    seen: dict[str, int] = defaultdict(int)
    for shard in sorted((objects / "test").glob("*.tar"), key=lambda path: int(path.stem)):
        with tarfile.open(shard) as tar:
            members: dict[str, dict[str, bytes]] = defaultdict(dict)
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                key, kind = member.name.split(".", 1)
                members[key][kind] = content.read()
        for key, kinds in members.items():
            name = names[int(kinds["cls"])]
            if name not in order:
                continue
            path = f"{name}/{shard.stem}_{key}.jpg"
            _write(work / "scenes" / path, kinds["jpg"])
            number, seen[name] = seen[name], seen[name] + 1
            part = "train" if number < 18 else "val" if number < 22 else "test"
            parts[part].append((path, order[name], name))
    _write_split(work / "scenes" / "split_zhou_scenes.json", parts)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _write_split(path: Path, parts: dict[str, list[Item]]) -> None:
    path.write_text(json.dumps(parts), encoding="utf-8")


def _write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([("filepath", "title"), *rows])
    path.write_text(text.getvalue(), encoding="utf-8")
