"""Flickr30k Entities (github.com/BryanPlummer/flickr30k_entities): phrases of captions, with boxes.

```
Sentences/36979.txt    [/EN#7/people A group of men] paint [/EN#9/other a wall] in [/EN#0/notvisual the sun] .
Annotations/36979.xml  <annotation><filename>36979.jpg</filename>
                       <size><width>500</width><height>375</height><depth>3</depth></size>
                       <object><name>7</name><bndbox><xmin>1</xmin><ymin>20</ymin>...</bndbox></object>
                       <object><name>9</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>
{train,val,test}.txt   36979
```
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from clipkit.data.problems import Problems
from clipkit.regions.formats.base import (
    AnnotatedImage,
    AnnotatedRegion,
    Annotations,
    one_line,
    refusing,
)

_PHRASE = re.compile(r"\[/EN#(\d+)(?:/[^\s\]]+)*\s+([^\]]*)\]")
WITHOUT_BOX = "phrase_without_a_box"

Box = tuple[float, float, float, float]


def read_flickr30k_entities(source: Path, *, split: str | None = None) -> Annotations:
    """Every image with its captions; a region for each different phrase of each entity that has boxes.

    Where an entity has several boxes ("two men"), the region is what encloses them, as in the published
    evaluation (arXiv:1505.04870).

    Args:
        source: the folder with `Annotations` and `Sentences`.
        split: take the images that `train.txt`, `val.txt` or `test.txt` in it lists.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a file is not of its form.
    """
    left_out = Problems()
    images = [_read_image(source, stem, left_out) for stem in _stems(source, split)]
    return Annotations(images=images, box_format="xyxy", left_out=left_out)


def flickr30k_entities_files(source: Path) -> list[Path]:
    """The files that may be read."""
    return [
        path for pattern in ("Annotations/*.xml", "Sentences/*.txt", "*.txt") for path in source.glob(pattern)
    ]


def _stems(source: Path, split: str | None) -> list[str]:
    for name in ("Annotations", "Sentences"):
        if not (source / name).is_dir():
            raise FileNotFoundError(f"{source} is no Flickr30k Entities folder: it has no folder {name}")
    if split is None:
        return sorted(path.stem for path in (source / "Annotations").glob("*.xml"))
    path = source / f"{split}.txt"
    if not path.is_file():
        raise ValueError(f"split {split!r} needs the list of its images {path}")
    return path.read_text(encoding="utf-8").split()


def _read_image(source: Path, stem: str, left_out: Problems) -> AnnotatedImage:
    path = source / "Annotations" / f"{stem}.xml"
    with refusing(path, "annotation of Flickr30k Entities"):
        width, height, boxes = _read_boxes(path)
    lines = (source / "Sentences" / f"{stem}.txt").read_text(encoding="utf-8").splitlines()
    phrases: dict[tuple[str, str], None] = {}
    for line in lines:
        phrases.update(dict.fromkeys((entity, one_line(text)) for entity, text in _PHRASE.findall(line)))
    without_box = [f"{stem}: {phrase}" for entity, phrase in phrases if entity not in boxes]
    left_out.add(WITHOUT_BOX, without_box, len(without_box))
    return AnnotatedImage(
        paths=(f"{stem}.jpg", f"flickr30k-images/{stem}.jpg"),
        width=width,
        height=height,
        captions=tuple(one_line(_PHRASE.sub(r"\2", line)) for line in lines if line.strip()),
        regions=tuple(
            AnnotatedRegion(_enclosing(boxes[entity]), phrase)
            for entity, phrase in phrases
            if entity in boxes
        ),
    )


def _read_boxes(path: Path) -> tuple[int, int, dict[str, list[Box]]]:
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"it does not parse as XML: {error}") from None
    boxes: dict[str, list[Box]] = defaultdict(list)
    for entry in root.iter("object"):
        found = entry.find("bndbox")
        if found is None:
            continue
        # Pixels count from 1 in these files.
        x0, y0, x1, y1 = (_number(found, edge) - 1 for edge in ("xmin", "ymin", "xmax", "ymax"))
        for name in entry.iter("name"):
            boxes[(name.text or "").strip()].append((x0, y0, x1, y1))
    return int(_number(root, "size/width")), int(_number(root, "size/height")), boxes


def _number(element: ElementTree.Element, path: str) -> float:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"it has no {path}")
    return float(text)


def _enclosing(boxes: Sequence[Box]) -> Box:
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)
