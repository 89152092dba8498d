"""Folders that are there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipkit.scratch import scratch_folder


@contextmanager
def complete_folder(out_dir: Path, marker: str, described: str) -> Iterator[Path | None]:
    """A folder to fill under another name, which becomes `out_dir` at the end unless the filling fails.

    Args:
        out_dir: a folder that does not exist yet or is empty.
        marker: name of the file in it that is written last.
        described: what the marker holds: all that the content of the folder follows from.

    Yields:
        The folder to fill, or None where `out_dir` has this marker already.

    Raises:
        FileExistsError: `out_dir` holds something else.
    """
    known = out_dir / marker
    if known.is_file() and known.read_text(encoding="utf-8") == described:
        yield None
        return
    if out_dir.exists() and not (out_dir.is_dir() and not any(out_dir.iterdir())):
        raise FileExistsError(f"{out_dir} already holds something else; name a new folder or remove it")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(out_dir) as partial:
        yield partial
        (partial / marker).write_text(described, encoding="utf-8")
        os.replace(partial, out_dir)
