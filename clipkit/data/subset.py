"""Some samples of a source."""

from __future__ import annotations

from collections.abc import Sequence

from clipkit.data.samples import RawSample, Source


class Subset(Source):
    """Samples `numbers` of another source, in that order."""

    def __init__(self, source: Source, numbers: Sequence[int]) -> None:
        super().__init__(source.name)
        self.classnames = source.classnames
        self.templates = source.templates
        self.sizes_per_shard = (len(numbers),)
        self._source = source
        self._numbers = tuple(numbers)

    def read(self, index: int) -> RawSample:
        """See `Source`."""
        return self._source.read(self._numbers[index])

    def where(self, index: int) -> str:
        """See `Source`."""
        return self._source.where(self._numbers[index])
