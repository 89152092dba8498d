"""Lists of class names as users give them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def parse_class_names(text: str) -> tuple[str, ...]:
    """Names between commas.

    Raises:
        ValueError: fewer than two, or one twice.
    """
    return checked_class_names([name.strip() for name in text.split(",")], "--classes")


def read_class_names(path: Path) -> tuple[str, ...]:
    """Names from a file, one a line.

    Raises:
        ValueError: fewer than two, or one twice.
        OSError: the file cannot be read.
    """
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return checked_class_names([line.strip() for line in lines], str(path))


def checked_class_names(names: Sequence[str], source: str) -> tuple[str, ...]:
    """The names that are not empty, in their order.

    Raises:
        ValueError: fewer than two, or one twice.
    """
    kept = tuple(name for name in names if name)
    if len(kept) < 2:
        raise ValueError(f"{source} must name at least two classes, got {', '.join(kept) or 'none'}")
    twice = [name for name, count in Counter(name.casefold() for name in kept).items() if count > 1]
    if twice:
        raise ValueError(f"{source} lists {twice[0]!r} more than once; every class needs a name of its own")
    return kept
