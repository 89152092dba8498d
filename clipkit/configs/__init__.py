"""Small architectures of our own: JSON files in open_clip's format, read when they are asked for."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def names() -> list[str]:
    """The names that `clipkit.create` takes beside open_clip's own."""
    return sorted(
        entry.name[:-5] for entry in resources.files(__name__).iterdir() if entry.name.endswith(".json")
    )


def path(name: str) -> Path:
    """The JSON file of one of `names()`."""
    return Path(str(resources.files(__name__) / f"{name}.json"))
