"""What every reader gives: images with captions and boxes, as their files have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from clipkit.data.problems import Problems
from clipkit.regions.boxes import BoxFormat

CROWD = "box_of_a_crowd"
UNKNOWN_IMAGE = "box_of_an_image_that_is_not_listed"
UNKNOWN_CATEGORY = "box_of_a_category_that_is_not_listed"
NO_BOX = "annotation_without_a_box"
LISTED_BEFORE = "listed before"
"""Another entry of the list of images has the same id."""
UNREADABLE_IMAGE = "unreadable entry"
"""An entry of the list of images that lacks its id, name or size."""

ENTRY_ERRORS = (KeyError, TypeError, AttributeError, ValueError, OverflowError)
"""What an entry that lacks a field, or has one of another type, raises where it is read."""


class AnnotatedRegion(NamedTuple):
    """A box and a phrase for it."""

    box: Any
    """Four numbers in pixels, in the `box_format` of the annotations, or whatever the file has instead."""
    phrase: str


@dataclass(frozen=True, kw_only=True)
class AnnotatedImage:
    """One image."""

    paths: tuple[str, ...]
    """Where its file may lie, relative to the folder of images: the first that is there is taken."""
    width: int
    """Pixels, as annotated."""
    height: int
    captions: tuple[str, ...] = ()
    regions: tuple[AnnotatedRegion, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """A data set of images with boxes."""

    images: Sequence[AnnotatedImage]
    box_format: BoxFormat
    left_out: Problems
    """Boxes that the reader left out, by reason."""
    images_left_out: Problems = field(default_factory=Problems)
    """Entries of the list of images that the reader left out, by reason."""


def one_line(text: Any) -> str:
    """A text with runs of white space, line ends among them, as one space; empty for what is no text."""
    return " ".join(text.split()) if isinstance(text, str) else ""


def load_json(path: Path, kind: type[dict[str, Any]] | type[list[Any]]) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not parse, or is not of the kind (dict or list).
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} does not parse as JSON: {error}") from None
    if not isinstance(content, kind):
        expected = "an object" if kind is dict else "a list"
        raise ValueError(f"{path} must hold {expected}, got a JSON {type(content).__name__}")
    return content


@contextmanager
def refusing(path: Path, form: str) -> Iterator[None]:
    """Turn what trips over the content of a file into one line.

    Raises:
        ValueError: something lacks a field, or has one of another type.
    """
    try:
        yield
    except ENTRY_ERRORS as error:
        raise ValueError(f"{path} is no {form}: {what_is_wrong(error)}") from None


def entries_of(content: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The entries of a list in a JSON object, each with what to call it in a message.

    Raises:
        KeyError: there is no such list.
        TypeError: it is something else.
    """
    if not isinstance(content[name], list):
        raise TypeError(f"{name} must be a list, got {type(content[name]).__name__}")
    for number, entry in enumerate(content[name]):
        yield f"{name}[{number}]", entry


@contextmanager
def naming(entry: str) -> Iterator[None]:
    """Name the entry that is wrong, within `refusing`."""
    try:
        yield
    except ENTRY_ERRORS as error:
        raise ValueError(f"{entry}: {what_is_wrong(error)}") from None


def readable_images(
    entries: Iterable[tuple[str, Any]], read: Callable[[Any], AnnotatedImage], left_out: Problems
) -> list[AnnotatedImage]:
    """What `read` makes of the entries of a list of images; those that lack something are counted.

    Args:
        entries: each with its name for messages.
        read: raises one of `ENTRY_ERRORS` for an entry that it cannot read.
        left_out: takes the counts.
    """
    images = []
    for where, entry in entries:
        try:
            images.append(read(entry))
        except ENTRY_ERRORS as error:
            left_out.add(UNREADABLE_IMAGE, [f"{where}: {what_is_wrong(error)}"])
    return images


def what_is_wrong(error: Exception) -> str:
    """What one of `ENTRY_ERRORS` says about an entry."""
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def is_in(known: Container[Any], key: Any) -> bool:
    """Whether a key is known; what cannot be a key, such as a list, is not."""
    try:
        return key in known
    except TypeError:
        return False
