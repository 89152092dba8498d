"""Labelled images in three parts, to learn from a few: the published split files, and splits of folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.data.samples import RawSample, Source
from clipkit.data.tables import read_file
from clipkit.json_files import read_json

PARTS = ("train", "val", "test")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
TRAIN_FRACTION, VAL_FRACTION = 0.5, 0.2
"""Of each class of a folder that says nothing else (CoOp, arXiv:2109.01134); the rest is for tests."""
MAX_VALIDATION_SHOTS = 4

Item = tuple[Path, int]
"""A file and its label."""


class LabelledFiles(Source):
    """Image files with labels, in a given order."""

    def __init__(self, name: str, items: Iterable[Item], names: Sequence[str]) -> None:
        super().__init__(name)
        self._items = tuple(items)
        self.classnames = tuple(names)
        self.sizes_per_shard = (len(self._items),)
        self.labels = torch.tensor([label for _, label in self._items], dtype=torch.int64)
        """(N,) int64 into `classnames`."""

    def read(self, index: int) -> RawSample:
        """See `Source`."""
        path, label = self._items[index]
        return RawSample(str(path), read_file(path), (), label)

    def where(self, index: int) -> str:
        """See `Source`."""
        return str(self._items[index][0])

    def of_classes(self, wanted: Sequence[int]) -> LabelledFiles:
        """The images of some classes, labelled by their places in `wanted`."""
        places = {label: place for place, label in enumerate(wanted)}
        items = [(path, places[label]) for path, label in self._items if label in places]
        assert self.classnames is not None
        return LabelledFiles(self.name, items, [self.classnames[label] for label in wanted])

    def rows(self, numbers: Tensor) -> LabelledFiles:
        """The images at some places, in that order."""
        assert self.classnames is not None
        return LabelledFiles(self.name, [self._items[row] for row in numbers.tolist()], self.classnames)


@dataclass(frozen=True)
class ClassSplits:
    """Images to train on, to choose settings by, and to test on; labels are places in `names`."""

    names: tuple[str, ...]
    train: LabelledFiles
    val: LabelledFiles
    test: LabelledFiles

    def of_classes(self, wanted: Sequence[int]) -> ClassSplits:
        """All parts with some classes alone, relabelled from 0 in the order of `wanted`."""
        parts = [part.of_classes(wanted) for part in (self.train, self.val, self.test)]
        return ClassSplits(tuple(self.names[label] for label in wanted), *parts)


def open_class_splits(place: str) -> ClassSplits:
    """Open labelled images.

    Args:
        place: a `split_zhou_*.json` of CoOp with images relative to its folder or, where there is one, to
            `images` in it, or to FOLDER in `JSON::FOLDER`. Or a folder of class folders, which are sorted by
            name: with `train`, `test` and perhaps `val` above the classes these are the parts; else the
            images of a class, in the order of the sha256 of their paths inside the folder, are half for
            training, a fifth for validation (both rounded) and the rest for tests.

    Raises:
        FileNotFoundError: there is nothing at `place`, or images of the split file are not where it says.
        ValueError: the split file is damaged, a folder has fewer than two classes, or a class has no image
            to train on or none to test on.
    """
    file, separator, images = place.partition("::")
    path = Path(file).expanduser()
    if path.suffix == ".json":
        splits = _of_file(path, Path(images).expanduser() if separator else None)
    elif path.is_dir():
        splits = _of_folder(path)
    else:
        raise FileNotFoundError(f"no folder of class folders and no split file (.json) at {place}")
    _check(splits, place)
    return splits


def base_classes(names: Sequence[str]) -> list[int]:
    """The first half of the classes, the larger one: labels 0 .. ceil(C / 2) - 1."""
    return list(range((len(names) + 1) // 2))


def new_classes(names: Sequence[str]) -> list[int]:
    """The classes that are no base classes."""
    return list(range((len(names) + 1) // 2, len(names)))


def few_shot(labels: Tensor, shots: int, seed: int) -> Tensor:
    """Rows of images drawn class by class: (K,) int64, by class, `shots` of each or all that it has.

    Draws are in the order of labels, so that those of the first classes do not depend on the others.

    Args:
        labels: (N,) int64.
        shots: images a class; 0 takes all.
        seed: of the draw.
    """
    drawn = [rows[: shots or None] for rows in draw_order(labels, seed)]
    return torch.cat(drawn) if drawn else labels.new_zeros(0)


def draw_order(labels: Tensor, seed: int) -> list[Tensor]:
    """All rows of each class that there is, (N_c,) int64, in the order in which `few_shot` draws them."""
    generator = torch.Generator().manual_seed(seed)
    ordered = []
    for label in sorted(set(labels.tolist())):
        rows = (labels == label).nonzero()[:, 0]
        ordered.append(rows[torch.randperm(len(rows), generator=generator)])
    return ordered


def validation_shots(shots: int) -> int:
    """Images a class that stand beside `shots` for training: at most 4, 0 (all) beside all."""
    return min(shots, MAX_VALIDATION_SHOTS)


def _of_file(path: Path, images: Path | None) -> ClassSplits:
    content = read_json(path)
    if images is None:
        images = path.parent / "images" if (path.parent / "images").is_dir() else path.parent
    names: dict[int, str] = {}
    parts: dict[str, list[Item]] = {}
    for part in PARTS:
        if not isinstance(content.get(part), list):
            raise ValueError(f"{path} must have lists train, val and test, {part} is missing")
        parts[part] = [_item(row, part, path, images, names) for row in content[part]]
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{path}: labels must run from 0 without gaps, got {sorted(names)[:8]} ...")
    _check_there(parts, path)
    ordered = tuple(names[label] for label in range(len(names)))
    return ClassSplits(ordered, *(LabelledFiles(part, parts[part], ordered) for part in PARTS))


def _item(row: Any, part: str, path: Path, images: Path, names: dict[int, str]) -> Item:
    if not (isinstance(row, list) and [type(value) for value in row] == [str, int, str]):
        raise ValueError(f"{path}: a row of {part} must be [path, label, class name], got {str(row)[:80]}")
    file, label, name = row
    if names.setdefault(label, name) != name:
        raise ValueError(f"{path}: label {label} is named {names[label]!r} and {name!r}")
    return images / file, label


def _check_there(parts: dict[str, list[Item]], path: Path) -> None:
    """Refuse a wrong folder of images; single files that are missing are counted when they are read."""
    files = [file for items in parts.values() for file, _ in items]
    if files and not any(file.is_file() for file in files[:: max(1, len(files) // 50)]):
        raise FileNotFoundError(
            f"no image at {files[0]}, which {path.name} names: give the folder of the images as JSON::FOLDER"
        )


def _of_folder(folder: Path) -> ClassSplits:
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        names = _class_names(folder / "train")
        parts = [
            LabelledFiles(part, [item for items in _files(folder / part, names) for item in items], names)
            for part in PARTS
        ]
        return ClassSplits(names, *parts)
    names = _class_names(folder)
    items: dict[str, list[Item]] = {part: [] for part in PARTS}
    for own in _files(folder, names):
        ordered = sorted(own, key=lambda item: _order(item[0].relative_to(folder)))
        num_train = max(1, round(TRAIN_FRACTION * len(own)))
        end = min(num_train + round(VAL_FRACTION * len(own)), max(num_train, len(own) - 1))
        items["train"] += ordered[:num_train]
        items["val"] += ordered[num_train:end]
        items["test"] += ordered[end:]
    return ClassSplits(names, *(LabelledFiles(part, items[part], names) for part in PARTS))


def _order(path: Path) -> str:
    return hashlib.sha256(path.as_posix().encode()).hexdigest()


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."))


def _files(folder: Path, names: Sequence[str]) -> list[list[Item]]:
    """The image files of each class, sorted by path."""
    return [
        [
            (path, label)
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in EXTENSIONS and path.name[0] != "." and path.is_file()
        ]
        for label, name in enumerate(names)
    ]


def _check(splits: ClassSplits, place: str) -> None:
    if len(splits.names) < 2:
        raise ValueError(
            f"{place} must have at least two classes, a folder for each, got {len(splits.names)}"
        )
    for part in (splits.train, splits.test):
        counts = part.labels.bincount(minlength=len(splits.names))
        if int(counts.min()) == 0:
            name = splits.names[int(counts.argmin())]
            raise ValueError(
                f"class {name!r} of {place} has no image in the part {part.name}: a class needs at least two "
                f"images ({', '.join(EXTENSIONS)})"
            )
