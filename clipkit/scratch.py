"""A folder to fill beside the place that it is for; what a killed process left, the next one removes."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty folder `.NAME.????????.tmp` beside `path`; removed at the end, if it still has its name.

    While the block runs it is locked, also against processes that this one forked. Folders of that name which
    nobody has locked are removed first.
    """
    _remove_abandoned(path)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        descriptor = os.open(folder, os.O_RDONLY)
        _lock(descriptor, wait=True)
        if folder.exists():
            break
        os.close(descriptor)  # another process took it for abandoned before it was locked
    try:
        folder.chmod(0o777 & ~umask())
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


def umask() -> int:
    """The permissions that files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _remove_abandoned(path: Path) -> None:
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")
    for folder in path.parent.iterdir():
        if not pattern.fullmatch(folder.name):
            continue
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except OSError:
            continue
        try:
            if _lock(descriptor, wait=False):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open folder; False where another process has locked it, or the disk has no such locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True
