"""RefCOCO, RefCOCO+ and RefCOCOg (github.com/lichengunc/refer): expressions for boxes of COCO.

```
refs(unc).p     [{"ref_id": 0, "ann_id": 1719310, "image_id": 581857, "category_id": 1, "split": "train",
                  "file_name": "COCO_train2014_000000581857_16.jpg", "sent_ids": [0],
                  "sentences": [{"sent_id": 0, "sent": "the lady with the blue shirt", "raw": "THE LADY ...",
                                 "tokens": [...]}]}], pickled; a JSON file with this list is read too
instances.json  COCO's form, see `instances`
```
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.data.problems import Problems
from clipkit.regions.formats.base import (
    AnnotatedRegion,
    Annotations,
    entries_of,
    load_json,
    naming,
    one_line,
    refusing,
)
from clipkit.regions.formats.instances import (
    Entry,
    annotated_images,
    images_by_id,
    left_out_reason,
    read_captions,
)

INSTANCES = "instances.json"
UNKNOWN_BOX = "expressions_for_a_box_that_is_not_listed"


@dataclass(frozen=True)
class _Reference:
    """What different people said of one box."""

    ref_id: Any
    image_id: Any
    ann_id: Any
    expressions: tuple[str, ...]


def read_refcoco(source: Path, *, captions: Path | None = None, split: str | None = None) -> Annotations:
    """Every image that is referred to; a region for each different expression.

    Args:
        source: `refs(unc).p` or another file of its form, with `instances.json` beside it.
        captions: a captions JSON about the same image ids.
        split: take the references of this split: train, val, test, testA, testB.

    Raises:
        ValueError: a file is not of its form, a pickle holds more than plain data, no reference is in the
            split.
    """
    instances = source.with_name(INSTANCES)
    captions_by_id = read_captions(captions) if captions else {}
    entries = load_references(source)
    with refusing(source, "list of references"):
        references = _of_split(entries, split)
    if split is not None and not references:
        raise ValueError(f"{source} has no reference in the split {split!r}")
    content = load_json(instances, dict)
    left_out, images_left_out = Problems(), Problems()
    with refusing(instances, "instances file"):
        boxes = _by_id(entry for _, entry in entries_of(content, "annotations"))
        wanted = {reference.image_id for reference in references}
        listed = {number: image for number, image in images_by_id(content).items() if number in wanted}
        regions = _regions_by_image(references, boxes, listed, left_out)
        named = [(f"image {number}", image) for number, image in listed.items()]
        images = annotated_images(named, captions_by_id, regions, images_left_out)
    return Annotations(images=images, box_format="xywh", left_out=left_out, images_left_out=images_left_out)


def refcoco_files(source: Path) -> list[Path]:
    """The files that are read beside the captions."""
    return [source, source.with_name(INSTANCES)]


def load_references(path: Path) -> list[Entry]:
    """The references of a JSON file or a pickle, which is refused if it holds anything but plain data.

    Raises:
        ValueError: the file is neither, or no list.
    """
    if path.suffix == ".json":
        references: list[Entry] = load_json(path, list)
        return references
    try:
        with path.open("rb") as stream:
            content = _PlainUnpickler(stream, encoding="utf-8", errors="replace").load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises whatever it trips over
        raise ValueError(f"{path} is no pickle of plain data: {error}") from None
    if not isinstance(content, list):
        raise ValueError(f"{path} must hold a list, got a {type(content).__name__}")
    return content


class _PlainUnpickler(pickle.Unpickler):
    """Makes lists, dicts, tuples, texts and numbers; a pickle can run code only by naming what is to run."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")


def _of_split(entries: Iterable[Entry], split: str | None) -> list[_Reference]:
    found = []
    for number, entry in enumerate(entries):
        with naming(f"entry {number}"):
            if split is None or entry["split"] == split:
                found.append(_reference(entry))
    return found


def _reference(entry: Entry) -> _Reference:
    ref_id, image_id, ann_id = (entry[name] for name in ("ref_id", "image_id", "ann_id"))
    hash((image_id, ann_id))  # a list is no number
    expressions = tuple(one_line(sentence["sent"]) for sentence in entry["sentences"])
    return _Reference(ref_id, image_id, ann_id, expressions)


def _by_id(annotations: Iterable[Any]) -> dict[Any, Entry]:
    """Those that can be referred to."""
    entries = [entry for entry in annotations if isinstance(entry, Mapping)]
    return {entry["id"]: entry for entry in entries if "id" in entry and isinstance(entry["id"], Hashable)}


def _regions_by_image(
    references: Iterable[_Reference],
    boxes: Mapping[Any, Entry],
    images: Mapping[Any, Entry],
    left_out: Problems,
) -> dict[Any, list[AnnotatedRegion]]:
    regions: dict[Any, dict[tuple[Any, str], AnnotatedRegion]] = defaultdict(dict)
    for reference in references:
        annotation = boxes.get(reference.ann_id)
        reason = UNKNOWN_BOX if annotation is None else left_out_reason(annotation, images)
        if annotation is None or reason is not None:
            where = [f"ref_id {reference.ref_id}"]
            left_out.add(reason or UNKNOWN_BOX, where, len(reference.expressions))
            continue
        for expression in reference.expressions:
            region = AnnotatedRegion(annotation["bbox"], expression)
            regions[reference.image_id][reference.ann_id, expression] = region
    return {image: list(found.values()) for image, found in regions.items()}
