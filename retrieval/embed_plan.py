"""Which samples make up a partition (one file of each kind) and a chunk (one batch of the image tower).

Both follow from the number of samples and two sizes alone, so that files do not depend on the number of ranks
or workers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sample n is in partition n // partition_size; a chunk never reaches over the end of its partition."""

    num_samples: int
    partition_size: int
    chunk_size: int

    @property
    def num_partitions(self) -> int:
        """Partitions, the last of which may be smaller."""
        return -(-self.num_samples // self.partition_size)

    def label(self, partition: int) -> str:
        """The number in the names of a partition's files, padded so that names sort like numbers."""
        return str(partition).zfill(len(str(self.num_partitions)))

    def samples(self, partition: int) -> range:
        """Places in the source of a partition's samples."""
        first = partition * self.partition_size
        return range(first, min(first + self.partition_size, self.num_samples))

    def chunks(self, partition: int) -> range:
        """Numbers of a partition's chunks."""
        first = partition * self._chunks_per_partition
        return range(first, first + -(-len(self.samples(partition)) // self.chunk_size))

    def chunk_samples(self, chunk: int) -> range:
        """Places in the source of a chunk's samples."""
        partition, number = divmod(chunk, self._chunks_per_partition)
        return self.samples(partition)[number * self.chunk_size : (number + 1) * self.chunk_size]

    @property
    def _chunks_per_partition(self) -> int:
        return -(-self.partition_size // self.chunk_size)
