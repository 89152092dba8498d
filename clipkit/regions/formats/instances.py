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
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clipkit.data.problems import Problems
from clipkit.regions.formats.base import (
    CROWD,
    LISTED_BEFORE,
    NO_BOX,
    UNKNOWN_CATEGORY,
    UNKNOWN_IMAGE,
    AnnotatedImage,
    AnnotatedRegion,
    Annotations,
    entries_of,
    is_in,
    load_json,
    naming,
    one_line,
    readable_images,
    refusing,
)

Entry = Mapping[str, Any]


def read_instances(source: Path, captions: Path | None, phrase_of: Callable[[Entry], str]) -> Annotations:
    """Every image that is listed, with its boxes; those of crowds, and entries without a box, are left out.

    Args:
        source: an instances JSON.
        captions: a captions JSON about the same image ids.
        phrase_of: the phrase for a category.

    Raises:
        ValueError: a file is not of its form.
    """
    content = load_json(source, dict)
    captions_by_id = read_captions(captions) if captions else {}
    left_out, images_left_out = Problems(), Problems()
    with refusing(source, "instances file"):
        regions = _regions_by_image(content, _phrases(content, phrase_of), left_out)
        images = annotated_images(entries_of(content, "images"), captions_by_id, regions, images_left_out)
    return Annotations(images=images, box_format="xywh", left_out=left_out, images_left_out=images_left_out)


def annotated_images(
    entries: Iterable[tuple[str, Any]],
    captions: Mapping[Any, tuple[str, ...]],
    regions: Mapping[Any, Sequence[AnnotatedRegion]],
    left_out: Problems,
) -> list[AnnotatedImage]:
    """The entries of `images`, with captions and regions by their ids; see `readable_images`.

    Of entries with the same id the first that can be read is taken, and those after it are counted.
    """
    found: set[Any] = set()

    def read(entry: Entry) -> AnnotatedImage:
        image = AnnotatedImage(
            paths=image_paths(entry),
            width=int(entry["width"]),
            height=int(entry["height"]),
            captions=captions.get(entry["id"], ()),
            regions=tuple(regions.get(entry["id"], ())),
        )
        found.add(entry["id"])
        return image

    return readable_images(_without_known(entries, found, left_out), read, left_out)


def _without_known(
    entries: Iterable[tuple[str, Any]], known: Container[Any], left_out: Problems
) -> Iterator[tuple[str, Any]]:
    """Entries one by one, but those whose id is known by then, which are counted."""
    for where, entry in entries:
        number = entry.get("id") if isinstance(entry, Mapping) else None
        if is_in(known, number):
            left_out.add(LISTED_BEFORE, [f"{where}: id {number}"])
        else:
            yield where, entry


def left_out_reason(annotation: Any, image_ids: Container[Any]) -> str | None:
    """Why an entry of `annotations` is left out, whatever its category; None where it has a box to be read.

    Args:
        annotation: the entry.
        image_ids: of the images that are listed.
    """
    if not isinstance(annotation, Mapping):
        return NO_BOX
    if annotation.get("iscrowd", 0):
        return CROWD
    if not is_in(image_ids, annotation.get("image_id")):
        return UNKNOWN_IMAGE
    return None if "bbox" in annotation else NO_BOX


def _phrases(content: Entry, phrase_of: Callable[[Entry], str]) -> dict[Any, str]:
    """By the id of the category."""
    phrases = {}
    for where, category in entries_of(content, "categories"):
        with naming(where):
            phrases[category["id"]] = phrase_of(category)
    return phrases


def images_by_id(content: Entry) -> dict[Any, Any]:
    """The entries of `images` by their ids, without those that have none."""
    entries = [image for _, image in entries_of(content, "images") if isinstance(image, Mapping)]
    return {image["id"]: image for image in entries if "id" in image and isinstance(image["id"], Hashable)}


def _regions_by_image(
    content: Entry, phrases: Mapping[Any, str], left_out: Problems
) -> dict[Any, list[AnnotatedRegion]]:
    known = images_by_id(content)
    regions: dict[Any, list[AnnotatedRegion]] = defaultdict(list)
    for where, annotation in entries_of(content, "annotations"):
        reason = left_out_reason(annotation, known)
        if reason is None and not is_in(phrases, annotation.get("category_id")):
            reason = UNKNOWN_CATEGORY
        if reason is None:
            region = AnnotatedRegion(annotation["bbox"], phrases[annotation["category_id"]])
            regions[annotation["image_id"]].append(region)
        else:
            left_out.add(reason, [_name_of(annotation, where)])
    return regions


def _name_of(annotation: Any, where: str) -> str:
    has_id = isinstance(annotation, Mapping) and "id" in annotation
    return f"annotation {annotation['id']}" if has_id else where


def read_captions(path: Path) -> dict[Any, tuple[str, ...]]:
    """Captions by image id, from a captions JSON.

    Raises:
        ValueError: the file is not of this form.
    """
    content = load_json(path, dict)
    captions: dict[Any, tuple[str, ...]] = {}
    with refusing(path, "captions file"):
        for where, annotation in entries_of(content, "annotations"):
            with naming(where):
                known = captions.get(annotation["image_id"], ())
                captions[annotation["image_id"]] = (*known, one_line(annotation["caption"]))
    return captions


def image_paths(image: Entry) -> tuple[str, ...]:
    """Where the file of an entry of `images` may lie: by its name, and in the folder of its part of COCO.

    LVIS 1.0 has no `file_name`, only `coco_url`, which ends in `train2017/000000391895.jpg`; the names of
    2014 begin with their folder: `COCO_train2014_000000581857.jpg`.

    Raises:
        KeyError: it has neither name nor address.
        TypeError: one of them is no text.
    """
    paths = []
    name, address = image.get("file_name"), image.get("coco_url")
    if name is None and address is None:
        raise KeyError("file_name")
    if not isinstance(name or "", str) or not isinstance(address or "", str):
        raise TypeError("file_name and coco_url must be texts")
    if name is not None:
        paths.append(name)
        if part := re.match(r"COCO_([a-z]+\d+)_\d+\.", name):
            paths.append(f"{part[1]}/{name}")
    if address is not None:
        url = urlsplit(address).path.split("/")
        paths += ["/".join(url[-2:]), url[-1]]
    return tuple(dict.fromkeys(paths))
