"""Shards with captions -> the same shards with regions (`clipkit regions label`).

```
OUT/label.json          the settings; a run with others is refused
OUT/00000.tar ...       every sample of the shard of this name, its json with regions of box, phrase, score
OUT/00000_stats.json    counts of a shard; it and the tar are there when the shard is done
OUT/sizes.json, report.json, report.html     when all shards are done
```

The labels are those of VESL (arXiv:2410.02746, section 4): phrases of the captions, found by an
open-vocabulary detector; a box above the confidence keeps the phrase that fits it best. Boxes may overlap.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from clipkit.console import Meter, progress
from clipkit.data import locations
from clipkit.data.files import read_range
from clipkit.data.problems import describe_counts
from clipkit.data.shard_writer import Sample, write_sizes, write_tar
from clipkit.data.tarindex import TarIndex, load_indexes
from clipkit.distributed import all_gather_objects, barrier, rank, world_size
from clipkit.json_files import read_json, write_json
from clipkit.regions.labelling.page import write_page
from clipkit.regions.labelling.samples import Labeller
from clipkit.regions.labelling.settings import LabelReport, LabelSettings, total

FORMAT_VERSION = 1
"""Raised whenever the same settings would give other labels."""

SETTINGS_NAME = "label.json"
REPORT_NAME = "report.json"
PAGE_NAME = "report.html"

_SECONDS_BETWEEN_LOOKS = 0.5


def label(
    shards: str | Path, out: Path, settings: LabelSettings, *, device: torch.device, show: bool = True
) -> tuple[LabelReport, int]:
    """Write shards with regions; a run that was killed goes on with the shards that are not done.

    On several ranks each labels every so-manieth of them. Collective at the beginning alone, so that it does
    not matter how long one rank takes.

    Args:
        shards: tar shards: a folder, a brace range, several joined by `::`.
        out: a folder that does not exist yet, is empty, or holds an unfinished run with these settings.
        settings: the detector, and what is kept.
        device: where the detector runs.
        show: whether the first rank shows its progress.

    Returns:
        The counts of all shards (on other ranks than the first, of their own), and how many shards were
        labelled now.

    Raises:
        OSError: a package, a model or a file is missing.
        ValueError: no shards, two of one name, other settings than those of `out`, or a detector that breaks
            its interface.
    """
    paths = _shard_paths(shards, out)
    if rank() == 0:
        _check_settings(out, settings)
    left = all_gather_objects([path for path in paths if _done(out, path) is None])[0]
    # Before the settings are written, so that a detector that is not there leaves no folder of its name.
    labeller = Labeller(settings, device) if left else None
    if rank() == 0:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / SETTINGS_NAME, _described(settings))
    barrier()
    own = LabelReport()
    if labeller is not None:
        own = _label_shards(left[rank() :: world_size()], out, labeller, show=show and rank() == 0)
    if rank() != 0:
        return own, len(left)
    pending = left
    while pending := [path for path in pending if _done(out, path) is None]:
        time.sleep(_SECONDS_BETWEEN_LOOKS)  # for other ranks; one that fails ends this one too
    found = total(_finished(out, path) for path in paths)
    write_sizes(out, {path.name: _finished(out, path).num_images for path in paths})
    write_page(out / PAGE_NAME, [out / path.name for path in paths], settings, found)
    write_json(out / REPORT_NAME, found.to_json())
    return found, len(left)


def _label_shards(paths: Sequence[Path], out: Path, labeller: Labeller, *, show: bool) -> LabelReport:
    indexes = list(load_indexes(paths))
    reports = []
    with progress("label", sum(len(index.keys) for index in indexes), show=show) as meter:
        for path, index in zip(paths, indexes, strict=True):
            if index.problems.counts:
                meter.say(f"{path.name}: {describe_counts(index.problems.counts)}")
            reports.append(_label_shard(path, index, out, labeller, meter))
    return total(reports)


def _shard_paths(shards: str | Path, out: Path) -> tuple[Path, ...]:
    found = locations.resolve(shards)
    if found.kind != "shards":
        raise ValueError(f"expected tar shards, got a {found.kind}: {shards}")
    names = [path.name for path in found.paths]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two shards have the name {name}: label their folders one by one")
    if any(path.resolve().parent == out.resolve() for path in found.paths):
        raise ValueError(f"{out} holds the shards that are read: name another folder for --out")
    return found.paths


def _described(settings: LabelSettings) -> dict[str, Any]:
    """The settings as they come back from a JSON file."""
    described: dict[str, Any] = json.loads(json.dumps({"format_version": FORMAT_VERSION, **asdict(settings)}))
    return described


def _check_settings(out: Path, settings: LabelSettings) -> None:
    """Refuse a folder that was begun with other settings, or that holds something else."""
    path = out / SETTINGS_NAME
    if path.is_file():
        known = read_json(path)
        for name, value in _described(settings).items():
            if known.get(name) != value:
                raise ValueError(
                    f"{out} was begun with {name} {known.get(name)}, not {value}: "
                    "name another folder or remove it"
                )
    elif out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} already holds something else; name a new folder or remove it")


def _stats_path(out: Path, path: Path) -> Path:
    return out / f"{path.stem}_stats.json"


def _done(out: Path, path: Path) -> LabelReport | None:
    """The report of a shard that an earlier run has finished, unless its source is another file since."""
    stats = _stats_path(out, path)
    if not stats.is_file() or not (out / path.name).is_file():
        return None
    stat = path.stat()
    if read_json(stats).get("source") != {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}:
        return None
    return _finished(out, path)


def _finished(out: Path, path: Path) -> LabelReport:
    content = read_json(_stats_path(out, path))
    return LabelReport(**{name: value for name, value in content.items() if name != "source"})


def _label_shard(path: Path, index: TarIndex, out: Path, labeller: Labeller, meter: Meter) -> LabelReport:
    report = LabelReport()
    stats = _stats_path(out, path)
    stats.unlink(missing_ok=True)

    def labelled() -> Iterator[Sample]:
        for key, members in _samples(path, index):
            yield labeller.label(key, members, report)
            meter.advance(note=f"{report.num_regions:,} regions in {path.name}")

    write_tar(out / path.name, labelled())
    source = {"bytes": index.size_bytes, "mtime_ns": index.mtime_ns}
    write_json(stats, {"source": source, **vars(report)})
    return report


def _samples(path: Path, index: TarIndex) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members of every sample of a tar, each member by its extension."""
    start = 0
    for number, key in enumerate(index.keys):
        end = start
        sample = {}
        while end < len(index.group) and index.group[end] == number:
            extension = index.extensions[index.extension[end]]
            offset, size = int(index.offset[end]), int(index.size[end])
            sample[extension] = read_range(path, offset, size, stamp=index.mtime_ns)
            end += 1
        start = end
        yield key, sample
