"""`clipkit inspect`: a data set before training, a model directory, or the installation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console

DEFAULT_CONTEXT_LENGTH = 77

app = App(
    name="inspect",
    help="What is in a data set or a model directory; without an argument, in the installation.",
    default_parameter=Parameter(negative=()),
)


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """How a data set is examined; without meaning for other things."""

    model: str | None = None
    """Count tokens as this model directory or architecture does; default: open_clip's tokenizer."""
    context_length: int | None = None
    """Tokens that fit; default: the model's, or 77."""
    sample: int = 1_000
    """Samples to read and decode, spread over the data; 0 reads all."""
    ranks: int = 1
    """Processes that will train."""
    workers: int = 2
    """Loader workers of each of them."""
    image_keys: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    """Members that hold the image."""
    caption_keys: tuple[str, ...] = ("txt",)
    """Members that hold captions, one a line; `json.NAME` reads a field of the json member."""
    image_column: str = "filepath"
    """Column of a table that holds the path of the image."""
    caption_column: str = "title"
    """Column of a table that holds a caption."""
    labels: bool = False
    """The data is labelled (`cls` members, or a folder for each class), captions are not required."""
    regions: bool = False
    """Also read the json members, and tell of the regions in them."""

    def __post_init__(self) -> None:
        for name in ("ranks", "workers", "sample"):
            least = 1 if name == "ranks" else 0
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        if self.context_length is not None and self.context_length < 1:
            raise ValueError(f"--context-length must be at least 1, got {self.context_length}")


@app.default
def inspect(
    path: str | None = None,
    *,
    options: Annotated[InspectOptions | None, Parameter(name="*")] = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Look before training: what is there, what is broken, what would be cut.

    Args:
        path: tar shards (a folder, a brace range such as `dir/{00000..00031}.tar`, several joined by `::`),
            a CSV, TSV or parquet table, a folder of images, or a model directory. Without it, the
            installation.
        options: how a data set is examined.
        as_json: print JSON instead of tables.

    Returns:
        1 where a data set has nothing usable, else 0.
    """
    from clipkit.commands import inspect_data, inspect_installation, inspect_model

    options = options or InspectOptions()
    console = Console()
    facts: dict[str, Any]
    if path is None:
        facts = inspect_installation.facts()
        render = inspect_installation.render
    elif inspect_model.is_model(Path(path)):
        facts = inspect_model.facts(Path(path))
        render = inspect_model.render
    else:
        facts = inspect_data.facts(path, options, show=not as_json)
        render = inspect_data.render
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        for part in render(facts):
            console.print(part)
    return 0 if facts.get("usable", True) else 1
