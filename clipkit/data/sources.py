"""Open whatever a location names as a source of samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clipkit.data import locations
from clipkit.data.samples import SampleKeys, Source


def open_source(
    name: str,
    location: str | Path,
    keys: SampleKeys | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Source:
    """Index the samples at a location, without reading them.

    Args:
        name: what reports and weights call the source.
        location: a tar, a folder of tars, a brace range `dir/{00000..00031}.tar`, several of these joined by
            `::`; a `.csv`, `.tsv` or `.parquet` table of paths and captions; a folder of images.
        keys: names of the parts of a sample.
        on_progress: called with (tars indexed, all tars) where tars are indexed.

    Returns:
        The source, possibly without any sample: `check_usable` refuses that.

    Raises:
        ValueError: a location of no known kind, or a table without the named columns.
        FileNotFoundError: something the location names does not exist.
    """
    keys = keys or SampleKeys()
    found = locations.resolve(location)
    if found.kind == "shards":
        from clipkit.data.shards import ShardSource

        return ShardSource(name, found.paths, keys, on_progress)
    if found.kind == "table":
        from clipkit.data.tables import TableSource

        return TableSource(name, found.paths[0], keys)
    from clipkit.data.folders import FolderSource

    return FolderSource(name, found.paths[0], keys)
