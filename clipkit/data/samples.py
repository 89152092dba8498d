"""What one sample is, which members of it are read, and what a source of samples offers."""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipkit.data import problems
from clipkit.data.problems import Problems, SampleError


@dataclass(frozen=True, kw_only=True)
class SampleKeys:
    """Names of the parts of a sample."""

    image: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    """Extensions of the image, the first that a sample has is read."""
    caption: tuple[str, ...] = ("txt",)
    """Extensions of caption files (one caption a line), or `json.FIELD` for a field of a json file (a string
    or a list of strings). The captions of all that a sample has are its captions, in this order."""
    label: str = "cls"
    """Extension (in a table: column) of the class number; `npy` holds a 0 or 1 for every class, which becomes
    the json field `labels`."""
    require: tuple[str, ...] = ("caption",)
    """What a sample must have besides its image: `caption`, `label`, both or neither."""
    fields: bool = False
    """Whether the json file of a sample is read where no caption needs it."""
    image_column: str = "filepath"
    """Column of a table that holds the path of the image, relative to the table's folder."""
    caption_column: str = "title"
    """Column of a table that holds one caption."""

    def __post_init__(self) -> None:
        if not self.image:
            raise ValueError("image keys must name at least one extension, such as jpg")
        if "caption" in self.require and not self.caption:
            raise ValueError("caption keys must name at least one extension, such as txt or json.caption")
        unknown = set(self.require) - {"caption", "label"}
        if unknown:
            raise ValueError(
                f"a sample can be required to have 'caption' or 'label', not {sorted(unknown)[0]!r}"
            )

    @property
    def caption_members(self) -> tuple[str, ...]:
        """The distinct extensions that captions are read from."""
        return tuple(dict.fromkeys("json" if key.startswith("json.") else key for key in self.caption))

    @property
    def text_members(self) -> tuple[str, ...]:
        """Extensions of all that is read besides image and label."""
        extra = ("json",) if self.fields and "json" not in self.caption_members else ()
        return self.caption_members + extra


@dataclass(frozen=True)
class RawSample:
    """One sample as it is stored."""

    key: str
    image: bytes
    """Content of the image file, not decoded."""
    captions: tuple[str, ...]
    """Stripped and not empty; at least one where captions are required."""
    label: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The json object of the sample, where it was read."""


class Source(ABC):
    """A fixed number of samples that can be read in any order, from any process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems = Problems()
        """What was found while indexing: samples that are not in the source, tars that are damaged."""
        self.sizes_per_shard: tuple[int, ...] = ()
        """Usable samples in each shard; their sum is `len(source)`."""
        self.classnames: tuple[str, ...] | None = None
        """Names of the classes by label, where the source knows them."""
        self.templates: tuple[str, ...] = ()
        """Prompts with `{c}` for the class name that lie beside the data."""

    def __len__(self) -> int:
        return sum(self.sizes_per_shard)

    @abstractmethod
    def read(self, index: int) -> RawSample:
        """Read sample `index`, 0 <= index < len(source).

        Raises:
            SampleError: this sample cannot be used, and why.
        """

    @abstractmethod
    def where(self, index: int) -> str:
        """Where sample `index` is, for messages."""


def check_usable(source: Source) -> None:
    """Refuse a source without any sample.

    Raises:
        ValueError: nothing is usable, with what was found instead.
    """
    if len(source) == 0:
        found = problems.describe_counts(source.problems.counts)
        raise ValueError(
            f"nothing usable in source {source.name!r} (found: {found}); "
            "look at it with `clipkit inspect` and check the image and caption keys"
        )


def parse_members(
    members: Mapping[str, bytes], keys: SampleKeys
) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """Captions and json fields of a sample from the content of its text members.

    Raises:
        SampleError: unreadable json, undecodable text, a required caption missing or empty.
    """
    fields: Mapping[str, Any] = _parse_json(members["json"]) if "json" in members else {}
    found: list[str] = []
    for key in keys.caption:
        if key.startswith("json."):
            found += _field_captions(fields, key.split(".")[1:])
        elif key in members:
            found += _decode(members[key]).splitlines() or [""]
    return clean_captions(found, required="caption" in keys.require), fields


def clean_captions(captions: Sequence[str], *, required: bool) -> tuple[str, ...]:
    """Strip captions and drop the empty ones.

    Raises:
        SampleError: a caption is required, and there is none, or none that is not empty.
    """
    cleaned = tuple(stripped for caption in captions if (stripped := caption.strip()))
    if required and not cleaned:
        raise SampleError(problems.EMPTY_CAPTION if captions else problems.MISSING_CAPTION)
    return cleaned


def parse_label(text: bytes | str) -> int:
    """A class number.

    Raises:
        SampleError: it is not an integer.
    """
    try:
        return int(text)
    except ValueError as error:
        raise SampleError(problems.MISSING_LABEL, f"{text!r} is not a class number") from error


def parse_label_member(content: bytes, key: str) -> tuple[int | None, Mapping[str, Any]]:
    """The label of a sample, or the json field `labels` of one with several, from its label member.

    Raises:
        SampleError: it is neither an integer nor, under the key `npy`, an array of 0 and 1.
    """
    if key != "npy":
        return parse_label(content), {}
    try:
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise SampleError(problems.MISSING_LABEL, f"no npy array: {error}") from error
    if values.ndim != 1 or not np.isin(values, (0, 1)).all():
        raise SampleError(problems.MISSING_LABEL, "expected an array with a 0 or 1 for every class")
    return None, {"labels": values.astype(int).tolist()}


def _decode(text: bytes) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(problems.UNDECODABLE_TEXT, str(error)) from error


def _parse_json(text: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SampleError(problems.UNREADABLE_JSON, str(error)) from error
    if not isinstance(value, dict):
        raise SampleError(problems.UNREADABLE_JSON, f"expected an object, got {type(value).__name__}")
    return value


def _field_captions(fields: Mapping[str, Any], path: Sequence[str]) -> list[str]:
    value: Any = fields
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    candidates = value if isinstance(value, list) else [value]
    return [candidate for candidate in candidates if isinstance(candidate, str)]
