"""Files that say which boxes of which pictures are asked about."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.data.prompted_images import Region
from clipkit.regions import boxes as region_boxes
from clipkit.regions.boxes import BoxFormat


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
        return Path(name) if Path(name).exists() else self.folder / name


def read_boxes(path: Path) -> BoxFile:
    """Boxes from a JSON file.

    Either `{image: [[x0, y0, x1, y1], ...]}`, in fractions of the image if no number of the file exceeds 1,
    and else in pixels; or COCO's instances, `images` with `file_name` and `annotations` with `bbox` as x, y,
    width and height in pixels.

    Raises:
        ValueError: it is of neither form, or most boxes are in another convention.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} does not parse as JSON: {error}") from None
    try:
        if isinstance(content, Mapping) and {"images", "annotations"} <= content.keys():
            return _cleaned(path, _of_coco(content), "xywh", in_pixels=True)
        boxes = {str(name): list(own) for name, own in content.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} must hold {{image: [[x0, y0, x1, y1], ...]}} or COCO's images and annotations: {error!r}"
        ) from None
    numbers = region_boxes.as_rows(box for own in boxes.values() for box in own)
    return _cleaned(path, boxes, "xyxy", in_pixels=bool((numbers > 1).any()))


def _of_coco(content: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = {image["id"]: str(image["file_name"]) for image in content["images"]}
    found: dict[str, list[Any]] = {}
    for annotation in content["annotations"]:
        found.setdefault(names[annotation["image_id"]], []).append(annotation["bbox"])
    return found


def _cleaned(
    path: Path, boxes: Mapping[str, list[Any]], box_format: BoxFormat, *, in_pixels: bool
) -> BoxFile:
    """Leave out what is no box; what lies outside its picture is only known when that has been read."""
    names = [name for name, own in boxes.items() for _ in own]
    numbers = region_boxes.as_rows(box for own in boxes.values() for box in own)
    finite = numbers[numbers.isfinite().all(dim=1)]
    side = max(1, int(finite.abs().max() * 2)) if len(finite) else 1
    try:
        clean = region_boxes.clean(numbers, box_format, (side, side) if in_pixels else None)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    corners = region_boxes.to_fractions(numbers, box_format)
    found: dict[str, list[Region]] = {name: [] for name in boxes}
    for row in clean.kept.tolist():
        x0, y0, x1, y1 = corners[row].tolist()
        found[names[row]].append(Region((x0, y0, x1, y1), in_pixels=in_pixels))
    return BoxFile(
        regions={name: tuple(own) for name, own in found.items()},
        folder=path.parent,
        in_pixels=in_pixels,
        problems=clean.problems,
    )
