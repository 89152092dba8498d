"""Files of paired evaluations: JSON values and lines, Winoground's examples, MMVP-VLM's questions."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.data.image_files import EXTENSIONS, ImageFiles

MMVP_IMAGE_FOLDERS = ("MLLM_VLM Images", "MMVP_VLM_Images", "images")
"""Names under which the images of MMVP-VLM have been released."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two images, each with its text."""

    images: tuple[Path, Path]
    texts: tuple[str, str]
    groups: tuple[str, ...]
    """What it is counted under, one name for every way of grouping; empty where it has none."""


def read_json_value(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: it does not parse.
        OSError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} does not parse as JSON: {error}") from None


def read_json_lines(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """The objects in a file with one a line, each with where it is, for messages; blank lines do not count.

    Raises:
        ValueError: a line does not parse or holds something else, or there is none.
        OSError: it cannot be read.
    """
    found: list[tuple[str, Mapping[str, Any]]] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} does not parse as JSON: {error}") from None
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a JSON object, got {line.strip()[:60]!r}")
        found.append((where, value))
    if not found:
        raise ValueError(f"{path} holds no line")
    return found


def text_field(where: str, entry: Mapping[str, Any], name: str) -> str:
    """A field that must be a text and not blank.

    Raises:
        ValueError: it is missing or something else.
    """
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        found = f"got {value!r:.60}" if name in entry else f"it has {', '.join(map(str, entry))}"
        raise ValueError(f"{where} needs a text {name!r}, {found}")
    return value


def texts_field(where: str, entry: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A field that must be a list of at least one text, none of them blank.

    Raises:
        ValueError: it is missing or something else.
    """
    value = entry.get(name)
    texts = value if isinstance(value, list) else []
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{where} needs a list of texts {name!r}, got {value!r:.60}")
    return tuple(texts)


def image_source(paths: Sequence[Path], *, folder: Path) -> ImageFiles:
    """The image files that a data set names, each once; missing ones count as unusable when they are read.

    Args:
        paths: at least one.
        folder: where they are looked for, for the message.

    Raises:
        FileNotFoundError: not one of them is there.
    """
    unique = list(dict.fromkeys(paths))
    check_any_exists(unique, folder)
    return ImageFiles(unique)


def check_any_exists(paths: Sequence[Path], folder: Path) -> None:
    """Refuse a folder that has none of the images.

    Raises:
        FileNotFoundError: not one of them is there.
    """
    if not any(path.is_file() for path in paths):
        raise FileNotFoundError(
            f"none of the {len(paths):,} images is in {folder}, such as {paths[0]}; name their folder by the "
            "setting images"
        )


def images_beside(given: Path | None, file: Path) -> Path:
    """The folder of the images: the given one, else `images` beside a file, else the file's own folder."""
    if given is not None:
        return given
    beside = file.parent / "images"
    return beside if beside.is_dir() else file.parent


def read_winoground(folder: Path, images: Path | None) -> list[Pair]:
    """Winoground's `examples.jsonl`, in `folder` or its folder `data`; grouped by `tag` and `collapsed_tag`.

    Images are named with or without extension; those without are PNG files in the release.

    Raises:
        ValueError: an example is incomplete, or an id occurs twice.
        OSError: the file is not there.
    """
    file = folder / "examples.jsonl"
    if not file.is_file() and (folder / "data" / file.name).is_file():
        file = folder / "data" / file.name
    place = images_beside(images, file)
    pairs, ids = [], set()
    for where, entry in read_json_lines(file):
        if entry.get("id") is None or str(entry["id"]) in ids:
            raise ValueError(f"{where} needs an 'id' of its own, got {entry.get('id')!r}")
        ids.add(str(entry["id"]))
        names = [text_field(where, entry, f"image_{i}") for i in (0, 1)]
        texts = [text_field(where, entry, f"caption_{i}") for i in (0, 1)]
        pairs.append(
            Pair(
                images=(_with_extension(place / names[0]), _with_extension(place / names[1])),
                texts=(texts[0], texts[1]),
                groups=tuple(str(entry.get(name) or "") for name in ("tag", "collapsed_tag")),
            )
        )
    return pairs


def _with_extension(path: Path) -> Path:
    if path.suffix.lower() in EXTENSIONS:
        return path
    options = [path.with_name(path.name + extension) for extension in (".png", *EXTENSIONS)]
    return next((option for option in options if option.is_file()), options[0])


def read_mmvp(folder: Path, images: Path | None) -> tuple[list[Pair], Path]:
    """MMVP-VLM's `Questions.csv`: number, pattern and statement of an image; consecutive rows are a pair.

    The image of row n is `PATTERN/n.jpg`.

    Returns:
        The pairs, grouped by pattern, and the folder of the images.

    Raises:
        ValueError: a row is incomplete, a pair mixes two patterns, or a row is left over.
        OSError: the file or the folder of the images is not there.
    """
    file = folder / "Questions.csv"
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream)
        next(reader, None)  # the header
        rows = [(f"{file}, line {reader.line_num}", row) for row in reader if any(map(str.strip, row))]
    for where, row in rows:
        if len(row) != 3 or not all(map(str.strip, row)):
            raise ValueError(f"{where} must hold a number, a pattern and a statement, got {row!r:.80}")
    if not rows or len(rows) % 2:
        raise ValueError(f"{file} must hold pairs of rows, got {len(rows)} rows")
    place = images if images is not None else _mmvp_images(folder, rows[0][1][1].strip())
    pairs = []
    for (_, first), (where, second) in zip(rows[::2], rows[1::2], strict=True):
        patterns = [first[1].strip(), second[1].strip()]
        if patterns[0] != patterns[1]:
            raise ValueError(
                f"{where}: the rows of a pair must share a pattern, got {' and '.join(patterns)}"
            )
        paths = [place / patterns[0] / f"{row[0].strip()}.jpg" for row in (first, second)]
        pairs.append(
            Pair(
                images=(paths[0], paths[1]),
                texts=(first[2].strip(), second[2].strip()),
                groups=(patterns[0],),
            )
        )
    return pairs, place


def _mmvp_images(folder: Path, pattern: str) -> Path:
    """The folder that has a folder for the first pattern."""
    others = sorted(path.name for path in folder.iterdir() if path.is_dir())
    for name in (*MMVP_IMAGE_FOLDERS, "", *others):
        if (folder / name / pattern).is_dir():
            return folder / name
    raise FileNotFoundError(
        f"{folder} has no folder with the images of the pattern {pattern!r}, such as "
        f"{folder / MMVP_IMAGE_FOLDERS[0] / pattern}; name it by the setting images"
    )
