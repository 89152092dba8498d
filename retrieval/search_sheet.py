"""A page with the pictures that were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from clipkit.data.tarindex import load_index
from clipkit.images import decode_image
from clipkit.page import Hit, Page

_SIDE = 336
_PER_LINE = 5
_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


def write_sheet(path: Path, described: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the page.

    Args:
        path: of the HTML file.
        described: the query.
        rows: of hits, with `similarity`, `image_path` and, for a picture in a tar, `shard`; what cannot be
            opened is listed.
    """
    page = Page("Search", described)
    missing, shown = [], []
    for row in rows:
        name = str(row.get("image_path"))
        try:
            image = decode_image(_content(row))
        except (OSError, ValueError):
            missing.append(name)
            continue
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        shown.append(Hit(image=image, label=f"{row['similarity']:.3f} {Path(name).name}", is_right=False))
    for start in range(0, len(shown), _PER_LINE):
        page.row(described if start == 0 else "", shown[start : start + _PER_LINE])
    if missing:
        page.note(f"{len(missing)} pictures could not be opened: {', '.join(missing[:20])}")
    page.write(path)


def _content(row: Mapping[str, Any]) -> bytes:
    name, shard = row.get("image_path"), row.get("shard")
    if name is None:
        raise ValueError("the row has no image_path")
    if shard is None:
        return Path(name).read_bytes()
    index = load_index(Path(shard))
    group = index.keys.index(name)
    for member in (index.group == group).nonzero()[0].tolist():
        if index.extensions[index.extension[member]] in _EXTENSIONS:
            with open(shard, "rb") as stream:
                stream.seek(int(index.offset[member]))
                return stream.read(int(index.size[member]))
    raise ValueError(f"{shard} has no picture {name}")
