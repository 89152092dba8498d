"""What a model directory says about itself, checked against its weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text


def is_model(path: Path) -> bool:
    """Whether `path` is a directory with a model in it rather than with data."""
    return (path / "open_clip_config.json").is_file() or (path / "clipkit.json").is_file()


def facts(path: Path) -> dict[str, Any]:
    """Configuration, identity and size of a model directory; the weights are read but not built.

    Raises:
        ValueError: the weights or the configuration were changed after saving.
        FileNotFoundError: a part of the directory is missing.
    """
    from clipkit.heads.files import head_names
    from clipkit.resolve import resolve

    model = resolve(path)
    record = model.record or {}
    return {
        "path": str(path),
        "model_id": record.get("model_id"),
        "verified": model.record is not None,
        "embed_dim": model.model_cfg["embed_dim"],
        "image_size": model.model_cfg["vision_cfg"].get("image_size"),
        "preprocessing": dict(model.preprocess_cfg),
        "tokenizer": record.get("tokenizer"),
        "parameters": _count_parameters(model.weights),
        "heads": head_names(path),
        "provenance": record.get("provenance"),
    }


def _count_parameters(weights: Path) -> dict[str, int] | None:
    """Elements of the image tower, the text tower and what belongs to both; of safetensors only."""
    from safetensors import safe_open

    if weights.suffix != ".safetensors":
        return None
    counts: Counter[str] = Counter()
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (the file is no mapping)
            tower = "image" if name.startswith(("visual.", "vision_model.")) else "text"
            owner = "shared" if name in ("logit_scale", "logit_bias") else tower
            counts[owner] += math.prod(file.get_slice(name).get_shape())
    return dict(counts)


def render(facts: dict[str, Any]) -> Iterator[RenderableType]:
    """A table for a terminal."""
    table = Table(show_header=False, title=Text(facts["path"]))
    identity = facts["model_id"] or "none: not written by clipkit"
    table.add_row(
        "model id", f"{identity}{' (weights and configuration verified)' if facts['verified'] else ''}"
    )
    table.add_row("embedding width", str(facts["embed_dim"]))
    for name, count in (facts["parameters"] or {}).items():
        table.add_row(f"parameters, {name}", f"{count:,}")
    for group in ("preprocessing", "tokenizer", "provenance"):
        for name, value in (facts[group] or {}).items():
            table.add_row(f"{group}: {name}", Text(str(value), overflow="fold"))
    table.add_row("heads", ", ".join(facts["heads"]) or "none")
    yield table
