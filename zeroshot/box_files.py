"""Files that say which boxes of which pictures are asked about."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.data.problems import Problems
from clipkit.data.prompted_images import Region
from clipkit.images import ImageError, image_size
from clipkit.regions import boxes as region_boxes
from clipkit.regions.boxes import BoxFormat
from clipkit.regions.conventions import wrong_convention
from clipkit.regions.formats.base import ENTRY_ERRORS, entries_of, what_is_wrong
from clipkit.regions.formats.instances import image_paths, images_by_id, left_out_reason


@dataclass(frozen=True, kw_only=True)
class BoxFile:
    """Boxes by picture."""

    regions: Mapping[str, tuple[Region, ...]]
    """By the names of the pictures, in the order of the file."""
    folder: Path
    """That of the file, which names may be relative to."""
    in_pixels: bool
    problems: Mapping[str, int]
    """Boxes that are left out, by reason."""

    def paths(self) -> list[Path]:
        """The pictures: by path, or else in the folder of the file."""
        return [self._path(name) for name in self.regions]

    def of(self, paths: Sequence[Path]) -> list[tuple[Region, ...]]:
        """The boxes of pictures that were found in some other way: by path, or else by the name of the file.

        Raises:
            ValueError: a name stands for several pictures of the file, or no picture has boxes.
        """
        by_path = {self._path(name).resolve(): own for name, own in self.regions.items()}
        by_name: dict[str, list[str]] = defaultdict(list)
        for name in self.regions:
            by_name[Path(name).name].append(name)
        found = []
        for path in paths:
            names = by_name.get(path.name, [])
            if path.resolve() in by_path or not names:
                found.append(by_path.get(path.resolve(), ()))
            elif len(names) == 1:
                found.append(self.regions[names[0]])
            else:
                raise ValueError(
                    f"the boxes of {path} may be those of {names[0]} or of {names[1]}: name full paths"
                )
        if not any(found):
            raise ValueError(
                f"none of {len(paths)} pictures has boxes in the file, which names such as "
                f"{', '.join(list(self.regions)[:2]) or 'none'}"
            )
        return found

    def _path(self, name: str) -> Path:
        return _picture_path(self.folder, name)


def read_boxes(path: Path) -> BoxFile:
    """Boxes from a JSON file.

    Either `{image: [[x0, y0, x1, y1], ...]}`, in fractions of the image unless most boxes have a number that
    is none, and else in pixels; or COCO's instances, `images` with `file_name` and `annotations` with `bbox`
    as x, y, width and height in pixels, of which crowds and boxes of images that are not listed are left out.

    Raises:
        ValueError: it is of neither form, or the boxes are in another convention.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} does not parse as JSON: {error}") from None
    is_coco = isinstance(content, Mapping) and {"images", "annotations"} <= content.keys()
    try:
        given = _of_coco(content) if is_coco else _of_plain(content)
    except ENTRY_ERRORS as error:
        raise ValueError(
            f"{path} must hold {{image: [[x0, y0, x1, y1], ...]}} or COCO's images and annotations: "
            f"{what_is_wrong(error)}"
        ) from None
    return _cleaned(path, given)


@dataclass(frozen=True)
class _Given:
    """Boxes as a file has them."""

    boxes: Mapping[str, list[Any]]
    """By the names of the pictures."""
    box_format: BoxFormat
    in_pixels: bool
    sizes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Width and height of those pictures of which the file says them."""
    left_out: Problems = field(default_factory=Problems)


def _of_plain(content: Any) -> _Given:
    if not isinstance(content, Mapping):
        raise TypeError(f"got a JSON {type(content).__name__}")
    for name, own in content.items():
        if not isinstance(own, list):
            raise TypeError(f"{name!r} has {json.dumps(own)[:40]} instead of a list of boxes")
    numbers = region_boxes.as_rows(box for own in content.values() for box in own)
    return _Given(content, "xyxy", in_pixels=region_boxes.looks_like_pixels(numbers))


def _of_coco(content: Mapping[str, Any]) -> _Given:
    images = {number: image for number, image in images_by_id(content).items() if _is_named(image)}
    names = {number: image_paths(image)[0] for number, image in images.items()}
    sizes = {
        names[number]: (image["width"], image["height"])
        for number, image in images.items()
        if {"width", "height"} <= image.keys()
    }
    found: dict[str, list[Any]] = {}
    left_out = Problems()
    for where, annotation in entries_of(content, "annotations"):
        reason = left_out_reason(annotation, names)
        if reason is None:
            found.setdefault(names[annotation["image_id"]], []).append(annotation["bbox"])
        else:
            left_out.add(reason, [where])
    return _Given(found, "xywh", in_pixels=True, sizes=sizes, left_out=left_out)


def _is_named(image: Mapping[str, Any]) -> bool:
    try:
        return bool(image_paths(image))
    except (KeyError, TypeError):
        return False


def _cleaned(path: Path, given: _Given) -> BoxFile:
    """Leave out what is no box; what lies outside its picture is only known when that has been read."""
    names = [name for name, own in given.boxes.items() for _ in own]
    numbers = region_boxes.as_rows(box for own in given.boxes.values() for box in own)
    _check_convention(path, given, numbers)
    finite = numbers[numbers.isfinite().all(dim=1)]
    side = max(1, int(finite.abs().max() * 2)) if len(finite) else 1
    try:
        clean = region_boxes.clean(numbers, given.box_format, (side, side) if given.in_pixels else None)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    # Pixels are cut off where the picture is known.
    corners = region_boxes.to_fractions(numbers, given.box_format)[clean.kept]
    corners = corners if given.in_pixels else corners.clamp(0, 1)
    found: dict[str, list[Region]] = {name: [] for name in given.boxes}
    for row, (x0, y0, x1, y1) in zip(clean.kept.tolist(), corners.tolist(), strict=True):
        found[names[row]].append(Region((x0, y0, x1, y1), in_pixels=given.in_pixels))
    return BoxFile(
        regions={name: tuple(own) for name, own in found.items()},
        folder=path.parent,
        in_pixels=given.in_pixels,
        problems=dict(Counter(given.left_out.counts) + Counter(clean.problems)),
    )


def _check_convention(path: Path, given: _Given, numbers: Tensor) -> None:
    """Refuse boxes that as a whole look like something else than the form of the file has.

    Raises:
        ValueError: with what they look like.
    """
    sides = None
    if given.in_pixels:
        sizes = [given.sizes.get(name) or _size_of(path.parent, name) for name in given.boxes]
        counts = torch.tensor([len(own) for own in given.boxes.values()], dtype=torch.int64)
        sides = region_boxes.as_rows(size * 2 for size in sizes).repeat_interleave(counts, dim=0)
    problem = wrong_convention(numbers, given.box_format, sides)
    if problem is not None:
        form = region_boxes.described(given.box_format, in_pixels=given.in_pixels)
        raise ValueError(f"{path}: {problem}; convert the file to {form}")


def _size_of(folder: Path, name: str) -> tuple[Any, Any]:
    """Width and height of a picture of the file, unknown where it is somewhere else or cannot be read."""
    try:
        height, width = image_size(_picture_path(folder, name).read_bytes())
    except (OSError, ImageError):
        return None, None
    return width, height


def _picture_path(folder: Path, name: str) -> Path:
    """The path that a file of boxes in a folder names."""
    return Path(name) if Path(name).exists() else folder / name
