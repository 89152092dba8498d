"""LVIS 1.0 (lvisdataset.org/dataset): COCO's form with `coco_url` and names such as `bow_(weapon)`.

`{"id": 160, "name": "bow_(weapon)", "synset": "bow.n.04", "synonyms": ["bow_(weapon)"], "frequency": "r"}`
"""

from __future__ import annotations

from pathlib import Path

from clipkit.regions.formats.base import Annotations, one_line
from clipkit.regions.formats.instances import Entry, read_instances


def read_lvis(source: Path, *, captions: Path | None = None) -> Annotations:
    """Read `lvis_v1_train.json` or another file of its form; see `instances.read_instances`."""
    return read_instances(source, captions, _phrase)


def _phrase(category: Entry) -> str:
    """`bow_(weapon)` -> `bow weapon`: the words in parentheses stay, as they tell classes apart."""
    return one_line(category["name"].translate(str.maketrans("_()", "   ")))
