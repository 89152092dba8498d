"""COCO's instances JSON (cocodataset.org/#format-data), which LVIS and RefCOCO build on; captions JSON.

```
{"images": [{"id": 9, "file_name": "000000000009.jpg", "width": 640, "height": 480, "coco_url": ...}],
 "annotations": [{"image_id": 9, "category_id": 51, "bbox": [x, y, width, height], "iscrowd": 0}],
 "categories": [{"id": 51, "name": "bowl"}]}

{"annotations": [{"image_id": 9, "caption": "A bowl of soup."}]}
```
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipkit.data.problems import Problems
from clipkit.regions.formats.base import (
    CROWD,
    UNKNOWN_CATEGORY,
    UNKNOWN_IMAGE,
    AnnotatedImage,
    AnnotatedRegion,
    Annotations,
    load_json,
    one_line,
    refusing,
)

Entry = Mapping[str, Any]


def read_instances(source: Path, captions: Path | None, phrase_of: Callable[[Entry], str]) -> Annotations:
    """Every image that is listed, with its boxes; those of crowds are left out.

    Args:
        source: an instances JSON.
        captions: a captions JSON about the same image ids.
        phrase_of: the phrase for a category.

    Raises:
        ValueError: a file is not of its form.
    """
    content = load_json(source, dict)
    captions_by_id = read_captions(captions) if captions else {}
    with refusing(source, "instances file"):
        phrases = {category["id"]: phrase_of(category) for category in content["categories"]}
        left_out = Problems()
        regions = _regions_by_image(content, phrases, left_out)
        images = annotated_images(content["images"], captions_by_id, regions)
    return Annotations(images=images, box_format="xywh", left_out=left_out)


def annotated_images(
    entries: Iterable[Entry],
    captions: Mapping[Any, tuple[str, ...]],
    regions: Mapping[Any, Sequence[AnnotatedRegion]],
) -> list[AnnotatedImage]:
    """The entries of `images`, with captions and regions by their ids."""
    return [
        AnnotatedImage(
            paths=image_paths(entry),
            width=int(entry["width"]),
            height=int(entry["height"]),
            captions=captions.get(entry["id"], ()),
            regions=tuple(regions.get(entry["id"], ())),
        )
        for entry in entries
    ]


def _regions_by_image(
    content: Entry, phrases: Mapping[Any, str], left_out: Problems
) -> dict[Any, list[AnnotatedRegion]]:
    known = {image["id"] for image in content["images"]}
    regions: dict[Any, list[AnnotatedRegion]] = defaultdict(list)
    for annotation in content["annotations"]:
        where = f"annotation {annotation.get('id', '?')}"
        if annotation.get("iscrowd", 0):
            left_out.add(CROWD, [where])
        elif annotation["image_id"] not in known:
            left_out.add(UNKNOWN_IMAGE, [where])
        elif annotation["category_id"] not in phrases:
            left_out.add(UNKNOWN_CATEGORY, [where])
        else:
            region = AnnotatedRegion(annotation["bbox"], phrases[annotation["category_id"]])
            regions[annotation["image_id"]].append(region)
    return regions


def read_captions(path: Path) -> dict[Any, tuple[str, ...]]:
    """Captions by image id, from a captions JSON.

    Raises:
        ValueError: the file is not of this form.
    """
    content = load_json(path, dict)
    captions: dict[Any, tuple[str, ...]] = {}
    with refusing(path, "captions file"):
        for annotation in content["annotations"]:
            known = captions.get(annotation["image_id"], ())
            captions[annotation["image_id"]] = (*known, one_line(annotation["caption"]))
    return captions


def image_paths(image: Entry) -> tuple[str, ...]:
    """Where the file of an entry of `images` may lie: by its name, and in the folder of its part of COCO.

    LVIS 1.0 has no `file_name`, only `coco_url`, which ends in `train2017/000000391895.jpg`; the names of
    2014 begin with their folder: `COCO_train2014_000000581857.jpg`.
    """
    paths = []
    if "file_name" in image:
        name = image["file_name"]
        paths.append(name)
        if part := re.match(r"COCO_([a-z]+\d+)_\d+\.", name):
            paths.append(f"{part[1]}/{name}")
    if "file_name" not in image or "coco_url" in image:
        url = urlsplit(image["coco_url"]).path.split("/")
        paths += ["/".join(url[-2:]), url[-1]]
    return tuple(dict.fromkeys(paths))
