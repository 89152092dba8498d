"""Files of referring expressions: which regions of an image are candidates, and which of them are meant.

Three forms are read.

Our own is a `.jsonl` with an image a line, boxes as x0, y0, x1, y1 in pixels, and either `answer`, the number
of the right box (or a list of them), or `truth`, the true box, where the boxes are proposals. `masks` may
name an image file for each box:

    {"image": "a.jpg", "expressions": ["left dog"], "boxes": [[0, 0, 9, 9], [9, 0, 30, 20]], "answer": 1}
    {"image": "b.jpg", "expressions": ["a cup"], "boxes": [[2, 2, 9, 9]], "truth": [1, 1, 9, 9]}

ReCLIP's release of RefCOCO, RefCOCO+ and RefCOCOg (arXiv:2204.05991) is a `.jsonl` with `file_name`, `anns`
(with `bbox` as x, y, width, height), `ann_id`, `sentences` and `image_id`; its detections are
`{image_id: [[x, y, width, height], ...]}`. Shards whose json members have
`regions: [{"box": [x0, y0, x1, y1], "phrase": ...}]` with boxes in [0, 1], such as the built-in scenes, ask
for every phrase among the regions of its image.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.ops import box_iou

from clipkit.data.image_files import ImageFiles
from clipkit.data.problems import SampleError
from clipkit.data.prompted_images import Region
from clipkit.data.samples import Source

MIN_IOU = 0.5
"""A proposal is right whose intersection over union with a true box is larger."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Question:
    """Expressions that mean the same among the same candidates."""

    image: int
    """Which sample of the source."""
    candidates: tuple[Region, ...]
    expressions: tuple[str, ...]
    right: frozenset[int]
    """Which candidates are meant; none where no proposal is near enough to the true box."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """A data set of referring expressions."""

    source: Source
    questions: tuple[Question, ...]

    @property
    def expressions(self) -> tuple[str, ...]:
        """All of them, in order, with repetitions."""
        return tuple(text for question in self.questions for text in question.expressions)


def read_questions(data: str, *, images: str = "", proposals: str = "") -> Questions:
    """Read a data set in any of the three forms.

    Args:
        data: a `.jsonl` file, or whatever `open_images` opens, with regions.
        images: the folder of images (and masks) that a `.jsonl` names; by default that of the file.
        proposals: ReCLIP's detections, which take the place of the annotated boxes.

    Raises:
        ValueError: a line or sample is of no such form, or there is no expression.
        OSError: a file cannot be read.
    """
    if not data.endswith(".jsonl"):
        for name, value in (("images", images), ("proposals", proposals)):
            if value:
                raise ValueError(f"{name} goes with a .jsonl file, got data {data!r}")
        return _of_shards(data)
    path = Path(data).expanduser()
    folder = Path(images).expanduser() if images else path.parent
    detections = _read_detections(Path(proposals).expanduser()) if proposals else None
    names: dict[str, int] = {}
    questions = []
    for where, line in _lines(path):
        try:
            if "anns" in line:
                name, found = _reclip_questions(line, folder, detections)
            else:
                if detections is not None:
                    raise ValueError("proposals go with ReCLIP's form; name these boxes in `boxes`")
                name, found = _own_question(line, folder)
            number = names.setdefault(name, len(names))
            questions += [Question(image=number, **question) for question in found]
        except KeyError as error:
            raise ValueError(f"{where} lacks {error}") from None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from None
    if not questions:
        raise ValueError(f"{path} has no referring expression")
    return Questions(source=ImageFiles([folder / name for name in names]), questions=tuple(questions))


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            where = f"{path}, line {number}"
            try:
                line = json.loads(text)
            except ValueError as error:
                raise ValueError(f"{where} does not parse as JSON: {error}") from None
            if not isinstance(line, Mapping):
                raise ValueError(f"{where} must be an object, got {text.strip():.40}")
            yield where, line


def _own_question(line: Mapping[str, Any], folder: Path) -> tuple[str, list[dict[str, Any]]]:
    boxes = [_checked(box) for box in _list(line, "boxes")]
    masks = line.get("masks", [None] * len(boxes))
    if len(masks) != len(boxes):
        raise ValueError(f"expected a mask for each of {len(boxes)} boxes, got {len(masks)}")
    if ("answer" in line) == ("truth" in line):
        raise ValueError("expected either answer, the number of a box, or truth, the true box")
    if "truth" in line:
        right = _near(boxes, [_checked(line["truth"])])
    else:
        answers = line["answer"] if isinstance(line["answer"], list) else [line["answer"]]
        right = frozenset(answers)
        if not right or not all(type(answer) is int and 0 <= answer < len(boxes) for answer in answers):
            raise ValueError(f"answer must be a box 0 to {len(boxes) - 1}, got {line['answer']!r}")
    regions = [
        Region(box, in_pixels=True, mask=None if mask is None else folder / mask)
        for box, mask in zip(boxes, masks, strict=True)
    ]
    expressions = tuple(_text(text) for text in _list(line, "expressions"))
    question = {"candidates": tuple(regions), "expressions": expressions, "right": right}
    return _text(line["image"]), [question]


def _reclip_questions(
    line: Mapping[str, Any], folder: Path, detections: Mapping[str, list[Box]] | None
) -> tuple[str, list[dict[str, Any]]]:
    """As in the published evaluation, an annotated box too is right if it is near enough to the true one."""
    # COCO_train2014_000000581857_16.jpg is reference 16 to COCO_train2014_000000581857.jpg.
    name = re.sub(r"(_\d{12})_\d+(?=\.\w+$)", r"\1", _text(line["file_name"]))
    wanted = line["ann_id"] if isinstance(line["ann_id"], list) else [line["ann_id"]]
    annotated = [_checked(_corners(ann["bbox"])) for ann in line["anns"]]
    true = [box for box, ann in zip(annotated, line["anns"], strict=True) if ann["id"] in wanted]
    if not true:
        raise ValueError(f"none of its anns has the ann_id {line['ann_id']}")
    boxes = annotated
    if detections is not None:
        # Where nothing was detected, the image as a whole is the only candidate.
        boxes = detections.get(str(line["image_id"])) or [_whole(folder / name)]
    question = {
        "candidates": tuple(Region(box, in_pixels=True) for box in boxes),
        "expressions": tuple(_text(sentence["raw"]).lower() for sentence in line["sentences"]),
        "right": _near(boxes, true),
    }
    return name, [question]


def _whole(path: Path) -> Box:
    try:
        with Image.open(path) as image:
            return 0.0, 0.0, float(image.width), float(image.height)
    except OSError:
        return 0.0, 0.0, 1.0, 1.0  # whatever it is: without its image the question is left out


def _read_detections(path: Path) -> dict[str, list[Box]]:
    """Boxes by image id, from a mapping or from a list of `{"image_id", "box"}`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} does not parse as JSON: {error}") from None
    found: dict[str, list[Box]] = defaultdict(list)
    try:
        if isinstance(content, Mapping):
            for key, boxes in content.items():
                found[str(int(key))] = [_checked(_corners(box)) for box in boxes]
        else:
            for entry in content:
                found[str(entry["image_id"])].append(_checked(_corners(entry["box"])))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} holds no detections {{image_id: [[x, y, width, height]]}}: {error}"
        ) from None
    return found


def _of_shards(data: str) -> Questions:
    from ..datasets import open_images

    source = open_images(data, require=("fields",))
    questions = []
    for image in range(len(source)):
        try:
            fields = source.read(image).fields
        except SampleError:
            continue  # the engine meets it again when it encodes, and reports it
        try:
            regions = fields["regions"]
            candidates = tuple(Region(_checked(region["box"])) for region in regions)
            phrases = [_text(region["phrase"]) for region in regions]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'{source.where(image)} has no regions [{{"box", "phrase"}}] in its json: {error}'
            ) from None
        for phrase in dict.fromkeys(phrases):
            right = frozenset(number for number, other in enumerate(phrases) if other == phrase)
            questions.append(Question(image=image, candidates=candidates, expressions=(phrase,), right=right))
    if not questions:
        raise ValueError(f"{data} has no regions with phrases in its json members")
    return Questions(source=source, questions=tuple(questions))


def _near(boxes: Sequence[Box], true: Sequence[Box]) -> frozenset[int]:
    overlaps = box_iou(torch.tensor(boxes, dtype=torch.float64), torch.tensor(true, dtype=torch.float64))
    return frozenset((overlaps > MIN_IOU).any(dim=1).nonzero().flatten().tolist())


def _corners(box: Sequence[float]) -> Box:
    x, y, width, height = box
    return x, y, x + width, y + height


def _checked(box: Any) -> Box:
    if not isinstance(box, list | tuple) or len(box) != 4:
        raise ValueError(f"expected a box of four numbers, got {box!r:.60}")
    x0, y0, x1, y1 = map(float, box)
    if not (0 <= x1 - x0 < math.inf and 0 <= y1 - y0 < math.inf) or x0 == x1 or y0 == y1:
        raise ValueError(f"expected a box with x0 < x1 and y0 < y1, got {box}")
    return x0, y0, x1, y1


def _list(line: Mapping[str, Any], key: str) -> list[Any]:
    value = line[key]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{key} must be a list with something in it, got {value!r:.60}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected a text, got {value!r:.60}")
    return value.strip()
