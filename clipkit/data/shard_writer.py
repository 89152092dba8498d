"""Write tar shards in the img2dataset layout, with the `sizes.json` that other tools count by."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from clipkit.json_files import write_json
from clipkit.whole_file import whole_file

Sample = dict[str, str | bytes]
"""`__key__` is the key; every other entry is the content of a member, by its extension."""


def write_split(folder: Path, pattern: str, shard_size: int, samples: Iterator[Sample]) -> dict[str, int]:
    """Write samples as tars of `shard_size`, named by `pattern` and their number, with `sizes.json`.

    Returns:
        Samples in each tar, by its name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, int] = {}
    while shard := list(itertools.islice(samples, shard_size)):
        name = pattern.format(len(sizes))
        write_tar(folder / name, shard)
        sizes[name] = len(shard)
    write_sizes(folder, sizes)
    return sizes


def write_tar(path: Path, samples: Iterable[Sample]) -> None:
    """Write a tar, by way of a temporary name; its bytes depend on the samples alone."""
    import webdataset  # imports torch

    with (
        whole_file(path) as temporary,
        temporary.open("wb") as file,
        webdataset.TarWriter(file, encoder=False, mtime=0) as tar,
    ):
        for sample in samples:
            tar.write(sample)


def write_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    """Write `sizes.json`: samples in each tar of a folder, by its name."""
    write_json(folder / "sizes.json", dict(sizes))
