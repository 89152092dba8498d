"""What could not be used: every bad sample once, however often and on however many ranks it was met."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from clipkit.data.problems import Problems, describe_counts
from clipkit.data.samples import Source
from clipkit.distributed import all_gather_objects


class Skip(NamedTuple):
    """One sample that was met and could not be used."""

    source: str
    sample: int
    """Its index in the source."""
    reason: str
    where: str
    """Shard and key, or path."""


@dataclass(frozen=True)
class SkipReport:
    """Samples that were not used, and damage found while indexing, by source and reason."""

    counts: dict[str, dict[str, int]]
    examples: dict[str, dict[str, list[str]]]

    def summary(self) -> str:
        """One line for every source that something was wrong with; a single line if nothing was."""
        lines = [
            f"skipped in {name}: {describe_counts(counts)}" for name, counts in self.counts.items() if counts
        ]
        return "\n".join(lines) or "skipped: none"


class SkipLog:
    """Collects skips; a sample counts once."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._indexed = {source.name: source.problems for source in sources}
        self._skips: dict[tuple[str, int], Skip] = {}

    def add(self, skips: Iterable[Skip]) -> None:
        """Note skips, known ones included."""
        for skip in skips:
            self._skips.setdefault((skip.source, skip.sample), skip)

    def gather(self) -> None:
        """Learn what the other ranks have noted. All ranks must call it together."""
        for skips in all_gather_objects(list(self._skips.values())):
            self.add(skips)

    def skips(self) -> list[Skip]:
        """All that was noted, by source and sample."""
        return sorted(self._skips.values())

    def report(self) -> SkipReport:
        """Everything noted so far, and what indexing found."""
        merged = {name: Problems() for name in self._indexed}
        for name, indexed in self._indexed.items():
            merged[name].update(indexed)
        for skip in self.skips():
            merged[skip.source].add(skip.reason, [skip.where])
        return SkipReport(
            {name: dict(sorted(found.counts.items())) for name, found in merged.items()},
            {name: dict(sorted(found.examples.items())) for name, found in merged.items()},
        )

    def state(self) -> list[list[str | int]]:
        """The notes as JSON values."""
        return [list(skip) for skip in self._skips.values()]

    def load_state(self, state: Iterable[Sequence[str | int]]) -> None:
        """Add the notes of an earlier `state()`."""
        self.add(Skip(str(s), int(i), str(r), str(w)) for s, i, r, w in state)
