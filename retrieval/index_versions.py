"""A folder of versions: what a reader finds in it is always one whole version.

    current -> v000003     link, replaced in one step when a version is complete
    v000003/               files that never change, and clipkit.json with the size and sha256 of each
    .lock                  while somebody writes; names the process

A writer fills a folder under another name. When it is killed at any moment, `current` is as before or after,
and the next writer removes what was left behind. An opened version stays readable when it is superseded.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipkit.checksums import sha256_of
from clipkit.json_files import read_json
from clipkit.version import __version__

from .write_lock import write_lock

MANIFEST_NAME = "clipkit.json"
CURRENT = "current"
FORMAT_VERSION = 1
_PARTIAL = ".partial"


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A version that is being written."""

    folder: Path
    """To be filled."""
    number: int
    manifest: dict[str, Any] = field(default_factory=dict)
    """To be filled, with JSON values."""
    previous: Path | None
    """The version that is current, None if this is the first."""
    kept: dict[str, Any] = field(default_factory=dict)
    """Entries of files that were taken over."""

    def take_over(self, name: str) -> None:
        """Have a file of the previous version in this one as well, without a copy where possible."""
        assert self.previous is not None
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(self.previous / name, target)
        except OSError:
            shutil.copyfile(self.previous / name, target)
        self.kept[name] = read_manifest(self.previous)["files"][name]


def current_version(root: Path) -> Path | None:
    """The folder of the version that is current; None in a folder without one.

    In a copy that was made without links, `current` is that folder.
    """
    link = root / CURRENT
    try:
        return root / os.readlink(link)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        if not link.is_dir():
            raise ValueError(f"{link} is no version: the index is damaged") from None
        return link


def read_manifest(version: Path) -> dict[str, Any]:
    """What `clipkit.json` of a version says.

    Raises:
        ValueError: it is damaged, of something else, or of a format to come.
    """
    manifest = read_json(version / MANIFEST_NAME)
    if not {"indexes", "files", "version", "next_id"} <= manifest.keys():
        raise ValueError(f"{version} is no index: its {MANIFEST_NAME} is of something else")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{version} has format version {manifest.get('format_version')}, this clipkit reads "
            f"{FORMAT_VERSION}: upgrade it"
        )
    return manifest


@contextmanager
def new_version(root: Path) -> Iterator[Draft]:
    """Write a version that becomes current when the block ends without an error.

    Raises:
        OSError: another process is writing.
        ValueError: `root` holds something else.
    """
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a file, an index is a folder: choose another name")
    known = root.is_dir() and any(
        path.name == CURRENT or path.name.startswith(".") for path in root.iterdir()
    )
    if root.is_dir() and any(root.iterdir()) and not known:
        raise ValueError(f"{root} holds something else: choose another name or remove it")
    if (root / CURRENT).is_dir() and not (root / CURRENT).is_symlink():
        raise ValueError(
            f"{root} is a copy without links, which can be searched only: copy the index with `cp -a`"
        )
    root.mkdir(parents=True, exist_ok=True)
    with write_lock(root / ".lock"):
        previous = current_version(root)
        _remove_others(root, previous)
        number = 1 if previous is None else read_manifest(previous)["version"] + 1
        partial = root / f"{_PARTIAL}-v{number:06d}"
        partial.mkdir()
        try:
            draft = Draft(folder=partial, number=number, previous=previous)
            yield draft
            _publish(root, draft)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _remove_others(root, current_version(root))


def _publish(root: Path, draft: Draft) -> None:
    files: dict[str, Any] = {}
    for path in sorted(path for path in draft.folder.rglob("*") if path.is_file()):
        name = path.relative_to(draft.folder).as_posix()
        files[name] = draft.kept.get(name) or {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        _sync(path)
    manifest = {
        "format_version": FORMAT_VERSION,
        "clipkit": __version__,
        "version": draft.number,
        **draft.manifest,
        "files": files,
    }
    path = draft.folder / MANIFEST_NAME
    path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    for place in (path, *(path for path in draft.folder.rglob("*") if path.is_dir()), draft.folder):
        _sync(place)
    version = root / f"v{draft.number:06d}"
    os.rename(draft.folder, version)
    link = root / f"{_PARTIAL}-{CURRENT}"
    os.symlink(version.name, link)
    os.replace(link, root / CURRENT)
    _sync(root)


def _remove_others(root: Path, current: Path | None) -> None:
    """Remove versions that are not current, and what killed writers left."""
    for path in root.iterdir():
        is_version = path.name.startswith("v") and path.name[1:].isdigit()
        if path != current and (is_version or path.name.startswith(_PARTIAL)):
            if path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)


def changed_sizes(version: Path, manifest: Mapping[str, Any]) -> list[str]:
    """What is wrong with the files of a version by their sizes, a line each."""
    problems = []
    for name, entry in manifest["files"].items():
        try:
            size = (version / name).stat().st_size
        except FileNotFoundError:
            problems.append(f"{version / name} is missing")
            continue
        if size != entry["bytes"]:
            problems.append(f"{version / name} has {size} bytes, expected {entry['bytes']}")
    return problems


def _sync(path: Path) -> None:
    """Have what was written on the disk, also after a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
