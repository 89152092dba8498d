"""Folders of embeddings for the tests of search indexes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EMBED_DIM = 16


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def images_of(num_rows: int, seed: int = 0, width: int = EMBED_DIM) -> np.ndarray:
    """Unit rows in fp16."""
    return unit(np.random.default_rng(seed).normal(size=(num_rows, width))).astype(np.float16)


def write_embeddings(
    folder: Path,
    images: np.ndarray,
    *,
    texts: np.ndarray | None = None,
    first: int = 0,
    model_id: str | None = "abc",
    num_files: int = 2,
    columns: dict[str, list[Any]] | None = None,
) -> Path:
    """A folder as `clipkit embed` makes it; row r is the image `{first + r}.jpg`."""
    numbers = np.arange(first, first + len(images))
    parts = [part for part in np.array_split(np.arange(len(images)), num_files) if len(part)]
    for name, rows in (("img_emb", images), ("text_emb", texts)):
        for number, part in enumerate(parts if rows is not None else ()):
            (folder / name).mkdir(parents=True, exist_ok=True)
            np.save(folder / name / f"{name}_{number}.npy", rows[part])
    (folder / "metadata").mkdir(parents=True)
    whole: dict[str, Any] = {
        "image_path": [f"{number}.jpg" for number in numbers],
        "caption": [f"picture {number}" + (" of a dog" if number % 3 == 0 else "") for number in numbers],
        "width": numbers * 10,
        **(columns or {}),
    }
    table = pa.table(whole)
    for number, part in enumerate(parts):
        pq.write_table(table.take(part), folder / "metadata" / f"metadata_{number}.parquet")
    if model_id is not None:
        manifest = {
            "format_version": 1,
            "model_id": model_id,
            "model": "my-model",
            "embedded": ["image"],
            "files": {path.relative_to(folder).as_posix(): "" for path in sorted(folder.glob("*/*"))},
            "complete": True,
        }
        (folder / "clipkit.json").write_text(json.dumps(manifest))
    return folder
