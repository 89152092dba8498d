"""COCO: a region for each box of an instances JSON, its phrase the name of the category."""

from __future__ import annotations

from pathlib import Path

from clipkit.regions.formats.base import Annotations, one_line
from clipkit.regions.formats.instances import Entry, read_instances


def read_coco(source: Path, *, captions: Path | None = None) -> Annotations:
    """Read `instances_train2017.json` or another file of its form; see `instances.read_instances`."""
    return read_instances(source, captions, _phrase)


def _phrase(category: Entry) -> str:
    return one_line(category["name"])
