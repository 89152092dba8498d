"""Published figures of region tasks, to stand beside one's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from ..tasks.base import Table

_NOTE = "Published: {source}. Figures on other data are for orientation, not for comparison."


def published_retrieval(own: Sequence[tuple[str, ...]]) -> Table:
    """Own rows (name, data, recall@10 of region to text and text to region, in percent) above CLOC's."""
    content = _content()
    rows = [
        (
            f"{row['model']} (published)",
            content["retrieval_data"],
            *(f"{value:.1f}" for value in row["retrieval"]),
        )
        for row in content["rows"]
    ]
    header = ("features", "data", "region to text R@10", "text to region R@10")
    note = _NOTE.format(source=content["source"])
    return Table(title="Beside published figures", header=header, rows=(*own, *rows), note=note)


def published_recognition(own: Sequence[tuple[str, ...]]) -> Table:
    """Own rows (name, data, mean per-class accuracy in percent) above CLOC's on COCO and on LVIS."""
    content = _content()
    rows = [
        (f"{row['model']} (published)", data, f"{value:.1f}")
        for row in content["rows"]
        for data, value in zip(content["recognition_data"], row["recognition"], strict=True)
    ]
    header = ("features", "data", "mean per-class accuracy")
    note = _NOTE.format(source=content["source"])
    return Table(title="Beside published figures", header=header, rows=(*own, *rows), note=note)


@cache
def _content() -> dict[str, Any]:
    text = (files("clipkit.zeroshot.protocols") / "published_regions.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content
