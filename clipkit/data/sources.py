"""Open whatever a location names as a source of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from clipkit.console import Meter, progress
from clipkit.data import locations
from clipkit.data.samples import SampleKeys, Source
from clipkit.distributed import barrier, local_rank, rank

_NUM_TARS_WITH_BAR = 50


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


def open_sources(
    locations_by_name: Mapping[str, str | Path], keys: SampleKeys | None = None, *, show: bool = False
) -> list[Source]:
    """Open sources on every rank; on each machine one rank indexes first, and the others find its cache.

    Args:
        locations_by_name: see `open_source`.
        keys: names of the parts of a sample.
        show: whether rank 0 shows the progress of indexing many tars.
    """
    if local_rank() != 0:
        barrier()
    sources = []
    for name, location in locations_by_name.items():
        with _index_meter(name, show=show and rank() == 0) as on_progress:
            sources.append(open_source(name, location, keys, on_progress=on_progress))
    if local_rank() == 0:
        barrier()
    return sources


@contextmanager
def _index_meter(name: str, *, show: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that appears with the first of many tars, when their number is known."""
    with ExitStack() as stack:
        meters: list[Meter] = []

        def on_progress(_num_done: int, num_tars: int) -> None:
            if not meters:
                is_long = num_tars >= _NUM_TARS_WITH_BAR
                meters.append(stack.enter_context(progress(f"index {name}", num_tars, show=show and is_long)))
            meters[0].advance()

        yield on_progress
