"""Files of captions with negatives: SugarCrepe, ARO, VL-Checklist, and lines of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cropped_files import Box, ImagePart
from .paired_files import images_beside, read_json_lines, read_json_value, text_field, texts_field

JSON_LINES = "jsonl"
_VL_CHECKLIST_ROOTS = ("vg", "hake", "swig")
_NUM_LOOKED_FOR = 20
_BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An image, its caption, and captions that are false of it."""

    key: str
    """Of the image in its source."""
    caption: str
    negatives: tuple[str, ...]
    kind: str


@dataclass(frozen=True, kw_only=True)
class ChoiceFile:
    """All items of a data set, and the images that they are about."""

    format: str
    """A key of `FORMATS`."""
    choices: tuple[Choice, ...]
    parts: tuple[ImagePart, ...]
    """Each once."""
    folder: Path
    """Where the images are looked for."""


def read_choices(place: Path, images: Path | None, format_name: str) -> ChoiceFile:
    """The items of a file, or of all JSON files in a folder and the folders below.

    Args:
        place: the file or folder.
        images: folder of the images; default: `images` beside the (first) file, else that file's folder.
        format_name: a key of `FORMATS`, or `auto`.

    Returns:
        Items of the kinds that the entries name; without such, of a kind for every file, named by its path in
        the folder. Both are joined by a `/` where there are several files.

    Raises:
        ValueError: the format is not recognised, files differ in it, or an entry is incomplete.
        OSError: there is no such file.
    """
    files = _files(place)
    folder = images_beside(images, files[0])
    choices: list[Choice] = []
    parts: dict[ImagePart, None] = {}
    found = format_name
    for file in files:
        content, own = _content(file, found)
        if found not in ("auto", own):
            raise ValueError(
                f"{file} is of the format {own}, {files[0]} of {found}; keep them in two folders"
            )
        found = own
        name = str(file.relative_to(place).with_suffix("")) if len(files) > 1 else ""
        rows = list(FORMATS[own](file, content))
        root = _root(folder, [row[0] for row in rows])
        for name_of_image, box, caption, negatives, kind in rows:
            part = ImagePart(root / name_of_image, box)
            parts[part] = None
            choices.append(
                Choice(
                    key=part.key,
                    caption=caption,
                    negatives=negatives,
                    kind="/".join(filter(None, (name, kind))) or file.stem,
                )
            )
    if not choices:
        raise ValueError(f"{place} holds no item")
    return ChoiceFile(format=found, choices=tuple(choices), parts=tuple(parts), folder=folder)


def _root(folder: Path, names: Sequence[str]) -> Path:
    """The folder itself, or the one in it where VL-Checklist has the images of this file."""
    for root in (folder / name for name in ("", *_VL_CHECKLIST_ROOTS)):
        if any((root / name).is_file() for name in names[:_NUM_LOOKED_FOR]):
            return root
    return folder


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        if not place.is_file():
            raise FileNotFoundError(f"there is no file or folder {place}")
        return [place]
    files = sorted(path for suffix in ("json", "jsonl") for path in place.rglob(f"*.{suffix}"))
    if not files:
        raise ValueError(f"{place} has no .json or .jsonl file of captions with negatives")
    return files


def _content(file: Path, format_name: str) -> tuple[Any, str]:
    """What a file holds, and in which format that is."""
    if format_name == JSON_LINES or (format_name == "auto" and file.suffix == ".jsonl"):
        return read_json_lines(file), JSON_LINES
    content = read_json_value(file)
    return content, _recognised(file, content)


def _recognised(file: Path, content: Any) -> str:
    """The format of a JSON file, by its first entry."""
    entries = (
        content if isinstance(content, list) else list(content.values()) if isinstance(content, dict) else []
    )
    first = entries[0] if entries else None
    if isinstance(content, dict) and isinstance(first, dict) and "negative_caption" in first:
        return "sugarcrepe"
    if isinstance(content, list):
        if isinstance(first, list) and len(first) == 2 and isinstance(first[1], dict) and "POS" in first[1]:
            return "vl_checklist"
        if isinstance(first, dict) and "false_caption" in first:
            return "aro"
        if isinstance(first, dict) and "caption_options" in first:
            return "aro_order"
        if isinstance(first, dict) and "image" in first and "caption" in first:
            raise ValueError(
                f"{file} lists captions without negatives; ARO's order tests shuffle them at random, so "
                'write its test cases, [{"image", "caption_options": [true, false, ...]}], to a file'
            )
    raise ValueError(
        f"{file} is in none of the formats {', '.join(FORMATS)}; its first entry is {first!r:.80}, "
        "see the setting data of caption_choice"
    )


_Row = tuple[str, Box | None, str, tuple[str, ...], str]
"""Name of the image, box, caption, negatives, kind."""


def _sugarcrepe(file: Path, content: Mapping[str, Any]) -> Iterator[_Row]:
    for number, entry in content.items():
        where = f"{file}, entry {number!r}"
        checked = _object(where, entry)
        caption, negative = (
            text_field(where, checked, "caption"),
            text_field(where, checked, "negative_caption"),
        )
        yield text_field(where, checked, "filename"), None, caption, (negative,), ""


def _aro(file: Path, content: Sequence[Any]) -> Iterator[_Row]:
    for where, entry in _entries(file, content):
        box = tuple(entry.get(name) for name in _BOX)
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in box):
            raise ValueError(f"{where} needs the numbers {', '.join(_BOX)}, got {box!r:.80}")
        caption, negative = (
            text_field(where, entry, "true_caption"),
            text_field(where, entry, "false_caption"),
        )
        kind = str(entry.get("relation_name") or "_".join(map(str, entry.get("attributes") or ())))
        yield text_field(where, entry, "image_path"), box, caption, (negative,), kind  # type: ignore[misc]


def _aro_order(file: Path, content: Sequence[Any]) -> Iterator[_Row]:
    for where, entry in _entries(file, content):
        options = texts_field(where, entry, "caption_options")
        if len(options) < 2:
            raise ValueError(
                f"{where} needs a true caption and false ones in 'caption_options', got {options}"
            )
        yield text_field(where, entry, "image"), None, options[0], options[1:], str(entry.get("kind") or "")


def _vl_checklist(file: Path, content: Sequence[Any]) -> Iterator[_Row]:
    for number, pair in enumerate(content, start=1):
        where = f"{file}, entry {number}"
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise ValueError(f'{where} must be [path, {{"POS": [...], "NEG": [...]}}], got {pair!r:.80}')
        texts = _object(where, pair[1])
        # The release compares the first text of either list.
        yield pair[0], None, texts_field(where, texts, "POS")[0], texts_field(where, texts, "NEG")[:1], ""


def _own(file: Path, content: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[_Row]:
    for where, entry in content:
        negatives = texts_field(where, entry, "negatives")
        kind = text_field(where, entry, "kind") if "kind" in entry else ""
        yield text_field(where, entry, "image"), None, text_field(where, entry, "caption"), negatives, kind


FORMATS: dict[str, Callable[[Path, Any], Iterator[_Row]]] = {
    "sugarcrepe": _sugarcrepe,
    "aro": _aro,
    "aro_order": _aro_order,
    "vl_checklist": _vl_checklist,
    JSON_LINES: _own,
}
"""Readers of what a file holds, by the names of the formats."""


def _entries(file: Path, content: Sequence[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, entry in enumerate(content, start=1):
        where = f"{file}, entry {number}"
        yield where, _object(where, entry)


def _object(where: str, entry: Any) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be a JSON object, got {entry!r:.80}")
    return entry
