"""What every reader gives: images with captions and boxes, as their files have them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from clipkit.data.problems import Problems
from clipkit.regions.boxes import BoxFormat

CROWD = "box_of_a_crowd"
UNKNOWN_IMAGE = "box_of_an_image_that_is_not_listed"
UNKNOWN_CATEGORY = "box_of_a_category_that_is_not_listed"


class AnnotatedRegion(NamedTuple):
    """A box and a phrase for it."""

    box: Sequence[float]
    """Four numbers in pixels, in the `box_format` of the annotations; not checked."""
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
    """Turn what trips over the entries of a file into one line.

    Raises:
        ValueError: an entry lacks a field, or has one of another type.
    """
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path} is no {form}: an entry lacks {error}") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no {form}: {error}") from None
