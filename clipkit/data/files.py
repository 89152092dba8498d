"""Reading a byte range of a file, with a bounded number of files kept open."""

from __future__ import annotations

import functools
import os
from pathlib import Path

MAX_OPEN_FILES = 128


class _Descriptor:
    """An open file that closes when the last user lets go of it, so that eviction never hits a reader."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@functools.lru_cache(maxsize=MAX_OPEN_FILES)
def _open(path: Path, stamp: int) -> _Descriptor:
    # Belongs to the process, not to a source: nothing to pickle, and a forked child closes its own copies.
    return _Descriptor(path)


def read_range(path: Path, offset: int, size: int, *, stamp: int = 0) -> bytes:
    """Read `size` bytes from `offset`; safe in threads and after a fork, since nothing shares a position.

    Args:
        path: the file.
        offset: bytes from its start.
        size: bytes.
        stamp: anything that changes when the file is replaced (its modification time), so that a
            replacement is opened anew.

    Raises:
        OSError: the file cannot be read or has become shorter.
    """
    descriptor = _open(path, stamp)
    data = os.pread(descriptor.number, size, offset)
    while len(data) < size:
        more = os.pread(descriptor.number, size - len(data), offset + len(data))
        if not more:
            raise OSError(f"{path} became shorter while it was in use: restore it or start again")
        data += more
    return data
