"""A file that keeps a second writer out, by a lock of the operating system.

The lock is that of one process: those it forks do not have it, and it ends with the process, however that
ends. The file names the holder; left behind by a process that was killed, it keeps nobody out.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)

_held: dict[str, int] = {}
"""The process that holds a file, by its real path: locks of one process do not keep its own threads out."""
_guard = threading.Lock()


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Hold a lock for the duration of a block.

    Args:
        path: a file that is made, and removed at the end; its folder must be there. It is used for nothing
            else: closing it anywhere else in the process would give the lock up.

    Raises:
        OSError: somebody else holds it, another thread of this process included.
    """
    name = os.path.realpath(path)
    with _guard:
        # A process that was forked meanwhile knows the name too, and does not hold the lock.
        if _held.get(name) == os.getpid():
            raise _refusal(path, f"process {os.getpid()}, this one")
        descriptor = _taken(path)
        _held[name] = os.getpid()
    try:
        yield
    finally:
        with _guard:
            if _is_still(path, descriptor):
                path.unlink()
            os.close(descriptor)
            del _held[name]


def _taken(path: Path) -> int:
    """The descriptor of the file, which is locked until that is closed."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(descriptor):
                raise _refusal(path, os.pread(descriptor, 1000, 0).decode(errors="replace").strip())
            if _is_still(path, descriptor):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder had removed it in between


def _lock(descriptor: int) -> bool:
    """Lock an open file; False where another process has locked it."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        _log.warning("this system has no locks of files: see to it that nobody else writes")
        return True
    try:
        # Not flock: its locks are shared with forked processes, and last until these end too.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        _log.warning("this disk has no locks (%s): see to it that nobody else writes", error)
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one of that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _refusal(path: Path, holder: str) -> OSError:
    by = f" ({holder})" if holder else ""
    return OSError(f"another process is writing to {path.parent}{by}: wait for it, or end it")
