"""Whether an index is what was written, byte by byte and row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clipkit.checksums import sha256_of

from .index import SearchIndex
from .index_faiss import ROWS_PER_BLOCK
from .index_versions import MANIFEST_NAME, changed_sizes, current_version, read_manifest


def check(path: str | Path) -> list[str]:
    """What is wrong with the current version of an index, a line each; reads every byte.

    Raises:
        FileNotFoundError: there is no index of clipkit's.
    """
    root = Path(path)
    version = current_version(root)
    if version is None:
        raise FileNotFoundError(f"{root} has no index of clipkit's to check")
    manifest = read_manifest(version)
    problems = changed_sizes(version, manifest)
    if not problems:
        problems = [
            f"{version / name} has changed: its sha256 is not that of {MANIFEST_NAME}"
            for name, entry in manifest["files"].items()
            if sha256_of(version / name) != entry["sha256"]
        ]
    if problems:
        return problems
    for modality in manifest["indexes"]:
        index = SearchIndex.open(root, modality=modality)
        counts = {index.num_rows, manifest["num_rows"], len(np.unique(index.ids))}
        if len(counts) > 1:
            problems.append(f"{version}: the numbers of rows and ids differ: {sorted(counts)}")
        if len(index.ids) and int(index.ids.max()) >= manifest["next_id"]:
            problems.append(f"{version}: id {index.ids.max()} is not below next_id {manifest['next_id']}")
        for start in range(0, index.num_rows, ROWS_PER_BLOCK):
            some = index.ids[start : start + ROWS_PER_BLOCK]
            index.metadata(some)
            if not np.isfinite(index.vectors(some)).all():
                problems.append(f"{version}: {modality}.index has vectors that are not finite")
    return problems
