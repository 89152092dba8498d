"""Metadata as JSON, and the hits of a search."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .catalog import Served
from .engine import Engine
from .pictures import PATH_COLUMN


def json_safe(value: Any) -> Any:
    """A value of a table as JSON has it: no NaN, dates as text, bytes as text or base64."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if hasattr(value, "tolist"):  # numpy
        return json_safe(value.tolist())
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def hits(
    engine: Engine,
    served: Served,
    ids: Sequence[int],
    similarities: Sequence[float],
    rows: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """The hits of `/search`; `image` is where the picture is, if the service may send it.

    Whether the file of an `image_path` really lies below a root is looked up when it is asked for.
    """
    has_files = bool(engine.settings.image_roots)
    return [
        {
            "id": row_id,
            "similarity": similarity,
            "image": f"/image/{served.name}/{row_id}" if has_files and row.get(PATH_COLUMN) else None,
            "metadata": json_safe(row),
        }
        for row_id, similarity, row in zip(ids, similarities, rows, strict=True)
    ]
