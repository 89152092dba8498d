"""Samples of tar shards (webdataset, img2dataset), read at the offsets that `tarindex` found."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipkit.data import problems
from clipkit.data.files import read_range
from clipkit.data.problems import Problems
from clipkit.data.samples import RawSample, SampleKeys, Source, parse_label_member, parse_members
from clipkit.data.tarindex import Int64s, TarIndex, load_index, load_indexes

_NUM_TABLES_KEPT = 256


@dataclass(frozen=True)
class _Table:
    """The usable samples of one shard: for each, the spans of the members that are read."""

    keys: tuple[str, ...]
    names: tuple[str, ...]
    """Image, then the text members, then the label."""
    spans: Int64s
    """(samples, names, 2): offset and size in bytes; offset -1 where a sample has no such member."""
    stamp: int


class ShardSource(Source):
    """Samples of any number of tars; memory does not grow with their number beyond a count for each."""

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        keys: SampleKeys,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(name)
        self.paths = tuple(paths)
        self._keys = keys
        self._tables: dict[int, _Table] = {}
        sizes: list[int] = []

        def report(num_done: int) -> None:
            if on_progress is not None:
                on_progress(num_done, len(paths))

        groups: dict[Path, int] = {}
        for number, index in enumerate(load_indexes(self.paths, report)):
            table = _select(index, keys, self.paths[number].name, self.problems)
            self.problems.update(index.problems)
            groups[self.paths[number]] = len(index.keys)
            sizes.append(len(table.keys))
            if number < _NUM_TABLES_KEPT:
                self._tables[number] = table
        _check_sizes(groups, self.problems)
        self.sizes_per_shard = tuple(sizes)
        self._ends = list(itertools.accumulate(sizes))

    def read(self, index: int) -> RawSample:
        """Read sample `index`."""
        shard, row = self._find(index)
        table = self._table(shard)
        members = {
            name: read_range(self.paths[shard], int(offset), int(size), stamp=table.stamp)
            for name, (offset, size) in zip(table.names, table.spans[row], strict=True)
            if offset >= 0
        }
        image, label = members.pop("image"), members.pop("label", None)
        captions, fields = parse_members(members, self._keys)
        number = None
        if label is not None:
            number, several = parse_label_member(label, self._keys.label)
            fields = {**fields, **several}
        return RawSample(table.keys[row], image, captions, number, fields)

    def where(self, index: int) -> str:
        """`SHARD.tar: KEY` of sample `index`."""
        shard, row = self._find(index)
        return f"{self.paths[shard].name}: {self._table(shard).keys[row]}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}

    def _find(self, index: int) -> tuple[int, int]:
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _table(self, shard: int) -> _Table:
        table = self._tables.pop(shard, None)
        if table is None:
            path = self.paths[shard]
            table = _select(load_index(path), self._keys, path.name, Problems())
            if len(table.keys) != self.sizes_per_shard[shard]:
                raise OSError(f"{path} changed while it was in use: restore it or start again")
            while len(self._tables) >= _NUM_TABLES_KEPT:
                self._tables.pop(next(iter(self._tables)), None)
        self._tables[shard] = table  # the most recently used is last
        return table


def _select(index: TarIndex, keys: SampleKeys, shard_name: str, found: Problems) -> _Table:
    """The samples of a tar that have what `keys` require; the others are counted in `found`."""
    image = _first_member(index, keys.image)
    texts = [_first_member(index, (name,)) for name in keys.text_members]
    label = _first_member(index, (keys.label,))
    captions = texts[: len(keys.caption_members)]
    has_caption = np.logical_or.reduce([np.zeros(len(image), bool), *(text >= 0 for text in captions)])

    usable = np.ones(len(image), bool)
    checks = [(problems.MISSING_IMAGE, image >= 0)]
    if "caption" in keys.require:
        checks.append((problems.MISSING_CAPTION, has_caption))
    if "label" in keys.require:
        checks.append((problems.MISSING_LABEL, label >= 0))
    for reason, has_member in checks:
        lacking = np.flatnonzero(usable & ~has_member)
        examples = [f"{shard_name}: {index.keys[group]}" for group in lacking[: problems.NUM_EXAMPLES]]
        found.add(reason, examples, len(lacking))
        usable &= has_member

    members = np.stack([image, *texts, label], axis=1)[usable]
    spans = np.stack([index.offset, index.size], axis=1)
    spans = np.concatenate([spans, np.full((1, 2), -1, np.int64)])[members]  # member -1 is the added last row
    names = ("image", *keys.text_members, "label")
    kept = tuple(itertools.compress(index.keys, usable))
    return _Table(kept, names, spans, index.mtime_ns)


def _first_member(index: TarIndex, extensions: Sequence[str]) -> npt.NDArray[np.intp]:
    """(groups,) number of the member with the first of `extensions` that the group has, or -1."""
    chosen = np.full(len(index.keys), -1, dtype=np.intp)
    for extension in reversed(extensions):
        if extension in index.extensions:
            members = np.flatnonzero(index.extension == index.extensions.index(extension))
            chosen[index.group[members]] = members
    return chosen


def _check_sizes(groups: dict[Path, int], found: Problems) -> None:
    """Compare a `sizes.json` beside the shards, which other tools count by, with what is there."""
    for folder in sorted({path.parent for path in groups}):
        file = folder / "sizes.json"
        if not file.is_file():
            continue
        try:
            stated = json.loads(file.read_text())
            claims = {path: stated.get(path.name) for path in groups if path.parent == folder}
        except (ValueError, AttributeError):
            found.add(problems.WRONG_SIZES, [f"{file} is not a json object"])
            continue
        for path, claim in claims.items():
            if claim is not None and claim != groups[path]:
                found.add(problems.WRONG_SIZES, [f"{path.name}: {claim} stated, {groups[path]} found"])
