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


def read_class_names(path: Path, *, each_once: bool = True) -> tuple[str, ...]:
    """Names from a file, one a line.

    Args:
        path: of the file.
        each_once: whether to refuse a name that is there twice. Names by label may be: the usual ones of
            ImageNet have two pairs.

    Raises:
        ValueError: fewer than two, or one twice.
        OSError: the file cannot be read.
    """
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return checked_class_names([line.strip() for line in lines], str(path), each_once=each_once)


def checked_class_names(names: Sequence[str], source: str, *, each_once: bool = True) -> tuple[str, ...]:
    """The names that are not empty, in their order.

    Raises:
        ValueError: fewer than two, or one twice.
    """
    kept = tuple(name for name in names if name)
    if len(kept) < 2:
        raise ValueError(f"{source} must name at least two classes, got {', '.join(kept) or 'none'}")
    twice = [name for name, count in Counter(name.casefold() for name in kept).items() if count > 1]
    if twice and each_once:
        raise ValueError(f"{source} lists {twice[0]!r} more than once; every class needs a name of its own")
    return kept
