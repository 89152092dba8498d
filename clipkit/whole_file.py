"""Files that are there as a whole or not at all."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def whole_file(path: Path, *, is_shared: bool = False) -> Iterator[Path]:
    """The name of a file to write, `.NAME.tmp` beside `path`; at the end it takes the place of `path`.

    Where writing fails it is removed, and what was at `path` is as it was; the error names `path` where the
    system ran out of room and said no name.

    Args:
        path: in a folder that exists.
        is_shared: several processes may write this file at once: each gets a name that no other has,
            `.NAME.*.tmp`, and the last to end stays.
    """
    own = f".{uuid.uuid4().hex}" if is_shared else ""
    temporary = path.with_name(f".{path.name}{own}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM and error.filename is None:
            error.filename = os.fspath(path)
        raise


def flush_to_disk(path: Path) -> None:
    """Wait until the disk has a file's content, so that a power failure cannot leave its name with less."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
