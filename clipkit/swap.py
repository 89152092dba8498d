"""Write a directory so that its path always holds the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from clipkit.scratch import scratch_folder, umask

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """Yield an empty temporary directory beside `path`; it takes the place of `path` when the block ends.

    Everything is flushed to disk before. When the block raises (a full disk, Ctrl-C) the temporary
    directory is removed and `path` is as it was; that of a killed process is removed by the next one.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(path) as temporary:
        yield temporary
        _flush(temporary)
        if path.exists():
            _exchange(temporary, path)  # and the old content is what is removed
        else:
            os.rename(temporary, path)
        _flush_entry(path.parent)


def _exchange(temporary: Path, path: Path) -> None:
    """Swap two directories in one step where Linux and the file system can; else in two renames."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        names = os.fsencode(temporary), os.fsencode(path)
        if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
    aside = temporary.with_suffix(".old")
    os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except OSError:
        os.rename(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _flush(directory: Path) -> None:
    for folder, _, files in os.walk(directory):
        for name in files:
            # safetensors creates files that only the owner can read.
            (Path(folder) / name).chmod(0o666 & ~umask())
            _flush_entry(Path(folder) / name)
        _flush_entry(Path(folder))


def _flush_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
