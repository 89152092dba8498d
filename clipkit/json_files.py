"""Read and write JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipkit.whole_file import whole_file


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not parse, or holds something else than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} does not parse as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that people can read, by way of a temporary name."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def canonical_json(content: Any) -> str:
    """One text for one content: sorted keys, no spaces. Tuples and lists come out the same."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
