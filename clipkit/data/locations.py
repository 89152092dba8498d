"""What a data location means: tar shards, a table of paths and captions, or a folder of files."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Location:
    """Existing files of one kind: any number of tars, or one table, or one folder."""

    kind: Literal["shards", "table", "folder"]
    paths: tuple[Path, ...]


def resolve(location: str | Path) -> Location:
    """Find what `location` names.

    Args:
        location: a tar, a folder of tars, a brace range such as `data/{00000..00031}.tar`, several of these
            joined by `::`; a `.csv`, `.tsv` or `.parquet` file; a folder of images.

    Raises:
        ValueError: it is not a local path, or a file of another kind.
        FileNotFoundError: something it names does not exist.
    """
    text = str(location)
    if text.startswith("pipe:") or "://" in text:
        raise ValueError(
            f"only local paths are read, got {text!r}: mount or copy the data, then name its path"
        )
    parts = [text] if Path(text).exists() else _expand(text)
    resolved = [_resolve_part(Path(part).expanduser(), text) for part in parts]
    if len(resolved) == 1:
        return resolved[0]
    for part, one in zip(parts, resolved, strict=True):
        if one.kind != "shards":
            raise ValueError(f"only tar shards can be joined, but {part!r} in {text!r} is a {one.kind}")
    return Location("shards", tuple(path for one in resolved for path in one.paths))


def _expand(pattern: str) -> list[str]:
    from webdataset.shardlists import expand_urls

    try:
        parts: list[str] = expand_urls(pattern)
    except AssertionError as error:  # how webdataset says that `${name}` has no WDS_name in the environment
        raise ValueError(f"{pattern!r}: {error}") from error
    missing = [part for part in parts if not Path(part).expanduser().exists()]
    if not missing:
        return parts
    what = repr(pattern) if parts == [pattern] else f"{missing[0]!r} of {pattern!r}"
    share = f" ({len(missing)} of its {len(parts)} files are missing)" if len(parts) > 1 else ""
    raise FileNotFoundError(f"nothing at {what}{share}; {_nearest(Path(missing[0]).expanduser())}")


def _nearest(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    if folder != path.parent:
        return f"the nearest existing folder is {str(folder)!r}"
    names = sorted(entry.name for entry in folder.iterdir())
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.0)
    return (
        f"the nearest existing thing is {str(folder / close[0])!r}" if close else f"{str(folder)!r} is empty"
    )


def _resolve_part(path: Path, location: str) -> Location:
    if path.is_dir():
        tars = tuple(sorted(path.glob("*.tar")))
        nested = sorted(path.glob("*/*.tar"))
        if nested and not tars:
            raise ValueError(
                f"{location!r} holds folders of tars: name one of them, such as {nested[0].parent}"
            )
        return Location("shards", tars) if tars else Location("folder", (path,))
    if path.suffix == ".tar":
        return Location("shards", (path,))
    if path.suffix.lower() in TABLE_SUFFIXES:
        return Location("table", (path,))
    cure = "decompress it, shards are read by offset" if ".tar" in path.suffixes else "see docs/data.md"
    raise ValueError(f"expected a .tar, .csv, .tsv or .parquet file or a folder, got {location!r}: {cure}")
