"""Shards with captions -> the same shards with regions (`clipkit regions label`).

```
OUT/label.json          the settings and the id of the detector; a run with others is refused
OUT/00000.tar ...       every sample of the shard of this name, its json with regions of box, phrase, score
OUT/00000_stats.json    counts of a shard; it and the tar are there when the shard is done
OUT/sizes.json, report.json, report.html     when all shards are done
```

The labels are those of VESL (arXiv:2410.02746, section 4): phrases of the captions, found by an
open-vocabulary detector; a box above the confidence keeps the phrase that fits it best. Boxes may overlap.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
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
from clipkit.regions.labelling.identity import detector_id
from clipkit.regions.labelling.page import write_page
from clipkit.regions.labelling.samples import Labeller
from clipkit.regions.labelling.settings import LabelReport, LabelSettings, total
from clipkit.scratch import scratch_folder

FORMAT_VERSION = 2
"""Raised whenever the same settings would give other labels."""

SETTINGS_NAME = "label.json"
REPORT_NAME = "report.json"
PAGE_NAME = "report.html"

_DETECTOR_ID = "detector_id"
_STATS_END = "_stats.json"
_SECONDS_BETWEEN_LOOKS = 0.5


def label(
    shards: str | Path, out: Path, settings: LabelSettings, *, device: torch.device, show: bool = True
) -> tuple[LabelReport, int]:
    """Write shards with regions; a run that was killed goes on with the shards that are not done.

    On several ranks each labels every so-manieth of them. Collective at the beginning alone, so that it does
    not matter how long one rank takes.

    Args:
        shards: tar shards: a folder, a brace range, several joined by `::`.
        out: a folder that does not exist yet, is empty, or holds a run with these settings and shards, which
            is gone on with, or one of which no shard is done, which is begun anew.
        settings: the detector, and what is kept.
        device: where the detector runs.
        show: whether the first rank shows its progress.

    Returns:
        The counts of all shards (on other ranks than the first, of their own), and how many shards were
        labelled now.

    Raises:
        OSError: a package, a model or a file is missing.
        RuntimeError: the detector failed; it says in which sample.
        ValueError: no shards, two of one name, other settings than those of `out` or shards that are not
            among the given, a detector that breaks its interface, or no region in any image.
    """
    paths = _shard_paths(shards, out)
    described = _described(settings)
    if rank() == 0:
        _check_folder(out, described, paths)
        _forget_removed(out)
    left = all_gather_objects([path for path in paths if _done(out, path) is None])[0]
    # Before the settings are written, so that a detector that is not there leaves no folder of its name.
    labeller = Labeller(settings, device) if left else None
    if rank() == 0 and left:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / SETTINGS_NAME, described)
    barrier()
    own = LabelReport()
    if labeller is not None:
        own = _label_shards(left[rank() :: world_size()], out, labeller, show=show and rank() == 0)
    if rank() != 0:
        return own, len(left)
    pending = left
    while pending := [path for path in pending if _done(out, path) is None]:
        time.sleep(_SECONDS_BETWEEN_LOOKS)  # for other ranks; one that fails ends this one too
    return _finish(out, paths, settings), len(left)


def _finish(out: Path, paths: Sequence[Path], settings: LabelSettings) -> LabelReport:
    """Write what is said of all shards, and their sum."""
    found = total(_finished(out, path) for path in paths)
    write_sizes(out, {path.name: _finished(out, path).num_images for path in paths})
    write_page(out / PAGE_NAME, [out / path.name for path in paths], settings, found)
    write_json(out / REPORT_NAME, found.to_json())
    if not found.num_regions:
        raise ValueError(f"{out}: {found.why_no_region()}")
    return found


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
    """What the labels follow from, as it comes back from a JSON file."""
    described: dict[str, Any] = json.loads(json.dumps({"format_version": FORMAT_VERSION, **asdict(settings)}))
    return {**described, _DETECTOR_ID: detector_id(settings.detector)}


def _check_folder(out: Path, described: Mapping[str, Any], paths: Sequence[Path]) -> None:
    """Refuse a folder with a shard of other settings or of other input, or that holds something else."""
    if not (out / SETTINGS_NAME).is_file():
        if out.exists() and any(out.iterdir()):
            raise FileExistsError(f"{out} already holds something else; name a new folder or remove it")
        return
    names = {path.name for path in paths}
    strangers = sorted(path.name for path in out.glob("*.tar") if path.name not in names)
    if strangers:
        more = f" and {len(strangers) - 1} more" if strangers[1:] else ""
        raise ValueError(
            f"{out} holds {strangers[0]}{more}, not among the shards to label: "
            "remove it there, label it too or name another folder"
        )
    if any(_shard_of(stats).is_file() for stats in out.glob(f"*{_STATS_END}")):
        _check_settings(out, described)


def _forget_removed(out: Path) -> None:
    """Remove the counts of shards that somebody has removed."""
    for stats in out.glob(f"*{_STATS_END}"):
        if not _shard_of(stats).is_file():
            stats.unlink()


def _check_settings(out: Path, described: Mapping[str, Any]) -> None:
    known = read_json(out / SETTINGS_NAME)
    cure = "name another folder or remove it"
    for name, value in described.items():
        if name != _DETECTOR_ID and known.get(name) != value:
            raise ValueError(f"{out} was begun with {name} {known.get(name)}, not {value}: {cure}")
    # Without an id now it is of the hub, or is not there and fails when it is opened.
    if described[_DETECTOR_ID] not in (None, known.get(_DETECTOR_ID)):
        detector = described["detector"]
        raise ValueError(f"{detector} has changed since {out} was begun with it: {cure}, lest labels mix")


def _stats_path(out: Path, path: Path) -> Path:
    return out / f"{path.stem}{_STATS_END}"


def _shard_of(stats: Path) -> Path:
    return stats.with_name(f"{stats.name.removesuffix(_STATS_END)}.tar")


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
    report = LabelReport(shard_problems=dict(index.problems.counts))
    stats = _stats_path(out, path)
    stats.unlink(missing_ok=True)

    def labelled() -> Iterator[Sample]:
        for key, members in _samples(path, index):
            yield labeller.label(key, members, report, where=f"{path.name}, sample {key}")
            meter.advance(note=f"{report.num_regions:,} regions in {path.name}")

    with scratch_folder(out / path.name) as scratch:  # a detector that fails leaves nothing
        write_tar(scratch / path.name, labelled())
        os.replace(scratch / path.name, out / path.name)
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
