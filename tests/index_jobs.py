"""A change of an index that is killed on its way: `python index_jobs.py POINT JOB IDX EMB`.

JOB is build, add, remove, or request: what the service adds, which is in EMB too.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipkit.retrieval import index_change, index_versions
from clipkit.retrieval.index_build import build_index
from clipkit.retrieval.index_faiss import VectorIndex
from clipkit.retrieval.store import EmbeddingFolder

POINTS = ("adding", "written", "unnamed", "not current", "link made", "current")
"""Moments of a change, in their order."""


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any) -> None:
        function(*args)
        die()

    return wrapped


def arm(point: str) -> None:
    """Kill this process when it gets there."""
    if point == "adding":
        VectorIndex.add = after(VectorIndex.add)
    elif point == "written":
        VectorIndex.write = after(VectorIndex.write)
    elif point == "unnamed":
        os.rename = die
    elif point == "not current":
        os.symlink = die
    elif point == "link made":
        os.replace = _only_link(os.replace, die)
    elif point == "current":
        os.replace = _only_link(os.replace, after(os.replace))


def _only_link(real: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    """Other files are renamed in passing."""
    return lambda source, target: (other if str(target).endswith(index_versions.CURRENT) else real)(
        source, target
    )


if __name__ == "__main__":
    point, job, index, embeddings = sys.argv[1:]
    arm(point)
    if job == "build":
        build_index(embeddings, index, replace=True)
    elif job == "add":
        index_change.add(index, embeddings)
    elif job == "request":
        from clipkit.retrieval.service.catalog import Place
        from clipkit.retrieval.service.storage import Folders

        folder = EmbeddingFolder.open(embeddings)
        rows = folder.metadata(range(folder.num_rows)).to_pylist()
        Folders().add(Place(path=Path(index)), folder.image_embeddings.read(0, folder.num_rows), rows)
    else:
        index_change.remove(index, ids=[0, 3])
