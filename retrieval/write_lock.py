"""A file that keeps a second process from writing."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_held: set[str] = set()
"""Locks of this process, by their absolute path."""


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Hold a lock; that of a process of this machine which has ended counts as none.

    Args:
        path: a file that exists while the lock is held.

    Raises:
        OSError: another process holds it, on this machine or another.
    """
    own = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    while not _created(path, own):
        there = _content(path)
        if there is not None:
            if not _is_stale(path, there):
                raise OSError(f"another process is writing ({there}); if it is not, remove {path}")
            _remove_stale(path, there)
    name = os.path.abspath(path)
    _held.add(name)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _held.discard(name)


def _created(path: Path, content: str) -> bool:
    """Whether the file was not there; it appears together with its content."""
    partial = path.with_name(f"{path.name}-{os.getpid()}-{threading.get_ident()}")
    partial.write_text(content, encoding="utf-8")
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    finally:
        partial.unlink()
    return True


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _is_stale(path: Path, content: str) -> bool:
    try:
        holder = json.loads(content)
        pid, host = int(holder["pid"]), holder["host"]
    except (ValueError, KeyError, TypeError):
        return False
    if host != socket.gethostname():
        return False
    if pid == os.getpid():  # of an earlier process of the same number, unless this one holds it
        return os.path.abspath(path) not in _held
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _remove_stale(path: Path, content: str) -> None:
    """Remove the lock with this content, and not one that another process has made meanwhile."""
    taken = path.with_name(f"{path.name}-stale-{os.getpid()}")
    try:
        os.rename(path, taken)
    except FileNotFoundError:
        return
    if _content(taken) != content:
        os.link(taken, path)
    taken.unlink()
