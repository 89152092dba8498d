"""Where every member of a tar lies, found once by reading its headers and kept in the user's cache.

With the index a sample is one or two reads at known offsets, so any sample can be read at any time, counts
are known before training, and the order of the data need not follow the order of the files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tarfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipkit.data import problems
from clipkit.data.problems import Problems
from clipkit.user_cache import user_cache
from clipkit.whole_file import whole_file

_FORMAT_VERSION = 1
_ARRAYS = ("group", "extension", "offset", "size")
_META = re.compile(r"__[^/]*__($|/)")  # what webdataset keeps about the archive itself
_LOGGER = logging.getLogger(__name__)

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TarIndex:
    """Members of one tar, grouped to samples as webdataset does: neighbours with the same key."""

    size_bytes: int
    mtime_ns: int
    keys: tuple[str, ...]
    """Key of every group: the member's path up to the first dot of its file name."""
    extensions: tuple[str, ...]
    """The distinct extensions, lower case, everything after that dot."""
    group: Int32s
    """(members,) index into `keys`."""
    extension: Int32s
    """(members,) index into `extensions`."""
    offset: Int64s
    """(members,) position of the data in the file, bytes."""
    size: Int64s
    """(members,) bytes."""
    problems: Problems


def load_indexes(paths: Sequence[Path], on_done: Callable[[int], None] | None = None) -> Iterator[TarIndex]:
    """Indexes of many tars in their order, from the cache or scanned by a few threads.

    Args:
        paths: existing tar files.
        on_done: called with the number of tars done, for a progress bar.
    """
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        for number, index in enumerate(pool.map(load_index, paths), start=1):
            if on_done is not None:
                on_done(number)
            yield index


def load_index(path: Path) -> TarIndex:
    """Index of one tar: the cached one if the file's size and modification time are still the same."""
    stat = path.stat()
    cached = _cache_file(path)
    index = _read_cache(cached)
    if index is not None and (index.size_bytes, index.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
        return index
    index = scan_tar(path)
    _write_cache(cached, index)
    return index


def scan_tar(path: Path) -> TarIndex:
    """Read all headers of a tar. Of a truncated file the whole members count, and the cut is a problem."""
    stat = path.stat()
    found = Problems()
    groups, kinds, offsets, sizes = array("i"), array("i"), array("q"), array("q")
    keys: list[str] = []
    extensions: dict[str, int] = {}
    seen_keys: set[str] = set()
    members: set[str] = set()
    for key, extension, offset, size in _sample_members(path, stat.st_size, found):
        if not keys or key != keys[-1]:
            if key in seen_keys:
                found.add(problems.DUPLICATE_KEY, [f"{path.name}: {key}"])
            seen_keys.add(key)
            keys.append(key)
            members = set()
        if extension in members:
            found.add(problems.DUPLICATE_MEMBER, [f"{path.name}: {key}.{extension}"])
            continue
        members.add(extension)
        groups.append(len(keys) - 1)
        kinds.append(extensions.setdefault(extension, len(extensions)))
        offsets.append(offset)
        sizes.append(size)
    return TarIndex(
        size_bytes=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        keys=tuple(keys),
        extensions=tuple(extensions),
        group=np.array(groups, dtype=np.int32),
        extension=np.array(kinds, dtype=np.int32),
        offset=np.array(offsets, dtype=np.int64),
        size=np.array(sizes, dtype=np.int64),
        problems=found,
    )


def _sample_members(path: Path, size_bytes: int, found: Problems) -> Iterator[tuple[str, str, int, int]]:
    """(key, extension, offset, size) of the complete regular members."""
    from webdataset.tariterators import base_plus_ext

    for member in _headers(path, found):
        is_hidden = member.name.rsplit("/", 1)[-1].startswith(".")  # macOS adds `._name`
        if not member.isreg() or member.issparse() or is_hidden or _META.match(member.name):
            continue
        if member.offset_data + member.size > size_bytes:
            continue  # the member that the end of a truncated file cuts
        key, extension = base_plus_ext(member.name)
        if key is not None:
            yield key, extension.lower(), member.offset_data, member.size


def _headers(path: Path, found: Problems) -> Iterator[tarfile.TarInfo]:
    try:
        tar = tarfile.open(path, "r:")  # noqa: SIM115 (closed below)
    except tarfile.TarError as error:
        found.add(problems.UNREADABLE_TAR, [f"{path.name}: {error}"])
        return
    with tar:
        is_whole = True
        while is_whole:
            try:
                member = tar.next()
            except tarfile.TarError:
                is_whole = False
                break
            if member is None:
                break
            tar.members.clear()  # type: ignore[attr-defined]  # or it keeps every header it has read
            yield member
        # A whole archive ends with blocks of zeros; tarfile also stops, silently, at a damaged header.
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        if not is_whole or tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            found.add(problems.TRUNCATED_TAR, [path.name])


def cache_folder() -> Path:
    """Where indexes are kept: `$XDG_CACHE_HOME/clipkit/tar-index`, by default under `~/.cache`."""
    return user_cache("tar-index")


def _cache_file(path: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return cache_folder() / digest[:2] / f"{digest[2:34]}.npz"


def _read_cache(file: Path) -> TarIndex | None:
    """The stored index, or None where there is none that can be read: it is then made again."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            text: dict[str, Any] = json.loads(stored["text"].tobytes())
            if text["version"] != _FORMAT_VERSION:
                return None
            return TarIndex(
                size_bytes=text["size_bytes"],
                mtime_ns=text["mtime_ns"],
                keys=tuple(text["keys"]),
                extensions=tuple(text["extensions"]),
                problems=Problems(text["counts"], text["examples"]),
                **{name: stored[name] for name in _ARRAYS},
            )
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged zip raises many things
        _LOGGER.debug("index cache %s cannot be read (%s); scanning again", file, error)
        return None


def _write_cache(file: Path, index: TarIndex) -> None:
    text = {
        "version": _FORMAT_VERSION,
        "size_bytes": index.size_bytes,
        "mtime_ns": index.mtime_ns,
        "keys": index.keys,
        "extensions": index.extensions,
        "counts": index.problems.counts,
        "examples": index.problems.examples,
    }
    encoded = np.frombuffer(json.dumps(text).encode(), dtype=np.uint8)
    arrays: dict[str, Any] = {name: getattr(index, name) for name in _ARRAYS}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file, is_shared=True) as partial, partial.open("wb") as stream:
            np.savez(stream, text=encoded, **arrays)
    except OSError as error:
        _LOGGER.debug("index cache %s cannot be written (%s)", file, error)
