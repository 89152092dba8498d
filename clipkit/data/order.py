"""The order of training samples: a function of seed, epoch, weights and window, of nothing else.

An epoch is a list of segments, one for each shard and copy of a source: a source of weight 2.5 contributes
two whole copies of every shard and a random half of it. Segments are shuffled, laid end to end and cut into
windows, and each window is permuted. So with all the data in one window the shuffle is global, and with more
the memory needed is that of one window and a number for every shard. Ranks and workers take their places from
this one order; how many there are does not change it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_NUM_WINDOWS_KEPT = 2
_SEGMENTS, _WINDOW, _PART = range(3)  # purposes that a generator is seeded for


class Place(NamedTuple):
    """A sample: its source by number, and its index there."""

    source: int
    sample: int


@dataclass(frozen=True)
class _Segment:
    source: int
    first: int
    """Index of the shard's first sample in the source."""
    size: int
    """Samples in the shard."""
    count: int
    """Samples of it that are used; fewer than `size` in a partial copy."""


class SampleOrder:
    """Position in an epoch -> sample."""

    def __init__(
        self, sizes: Sequence[Sequence[int]], weights: Sequence[float], *, seed: int, window_samples: int
    ) -> None:
        """Lay out the segments of an epoch.

        Args:
            sizes: for each source, the number of samples in each of its shards.
            weights: for each source, how often an epoch has each of its samples; > 0.
            seed: of the whole run.
            window_samples: how many samples are shuffled together.

        Raises:
            ValueError: a weight or the window is not positive.
        """
        if window_samples < 1:
            raise ValueError(f"the shuffle window must hold at least one sample, got {window_samples}")
        self._seed = seed
        self._window_samples = window_samples
        self._segments: list[_Segment] = []
        for source, (shards, weight) in enumerate(zip(sizes, weights, strict=True)):
            if not weight > 0:
                raise ValueError(f"the weight of a source must be > 0, got {weight}")
            self._segments += _segments_of(source, shards, weight)
        self._counts = np.array([segment.count for segment in self._segments], dtype=np.int64)
        self.num_samples_per_epoch = int(self._counts.sum())
        """Samples of all sources, times their weights."""
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._ends: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._windows: dict[tuple[int, int], npt.NDArray[np.int64]] = {}
        self._parts: dict[tuple[int, int], npt.NDArray[np.int64]] = {}

    def place(self, epoch: int, position: int) -> Place:
        """The sample at a position, 0 <= position < num_samples_per_epoch."""
        self._enter(epoch)
        window, offset = divmod(position, self._window_samples)
        shuffled = window * self._window_samples + int(self._window(epoch, window)[offset])
        slot = int(np.searchsorted(self._ends, shuffled, side="right"))
        number = int(self._order[slot])
        segment = self._segments[number]
        within = shuffled - (int(self._ends[slot]) - segment.count)
        if segment.count < segment.size:
            within = int(self._part(epoch, number)[within])
        return Place(segment.source, segment.first + within)

    def _enter(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = self._generator(_SEGMENTS, epoch).permutation(len(self._segments))
            self._ends = np.cumsum(self._counts[self._order])
            self._windows.clear()
            self._parts.clear()

    def _window(self, epoch: int, window: int) -> npt.NDArray[np.int64]:
        """The permutation of one window; the last of an epoch is shorter."""
        if (epoch, window) not in self._windows:
            while len(self._windows) >= _NUM_WINDOWS_KEPT:
                self._windows.pop(next(iter(self._windows)))
            size = min(self._window_samples, self.num_samples_per_epoch - window * self._window_samples)
            self._windows[epoch, window] = self._generator(_WINDOW, epoch, window).permutation(size)
            self._parts.clear()
        return self._windows[epoch, window]

    def _part(self, epoch: int, number: int) -> npt.NDArray[np.int64]:
        """Which samples of its shard a partial copy has in this epoch."""
        if (epoch, number) not in self._parts:
            segment = self._segments[number]
            chosen = self._generator(_PART, epoch, number).permutation(segment.size)[: segment.count]
            self._parts[epoch, number] = chosen
        return self._parts[epoch, number]

    def _generator(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence((self._seed, *purpose)))


def _segments_of(source: int, shards: Sequence[int], weight: float) -> list[_Segment]:
    """Whole copies and the partial copy of all shards of a source.

    The partial copy has the same number of samples in every epoch, so that any position of any epoch can be
    found without going through the epochs before: round(fraction * n) of the first n samples.
    """
    copies, fraction = int(weight), weight - int(weight)
    segments = []
    first = taken = 0
    for size in shards:
        share = round(fraction * (first + size)) - taken
        taken += share
        segments += [_Segment(source, first, size, size)] * copies
        segments.append(_Segment(source, first, size, share))
        first += size
    return [segment for segment in segments if segment.count]


def stateless_hash(*values: int) -> int:
    """A 63-bit number that depends on `values` alone, for draws that need no state."""
    packed = struct.pack(f"<{len(values)}q", *values)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1
