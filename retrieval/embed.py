"""From images and captions to a folder of embeddings.

Worker processes decode, the towers encode, a thread writes, all at the same time. Ranks share the partitions
that are not there yet. What a partition holds depends on the data, the model and the settings alone, and so
does every byte of the folder.
"""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clipkit.console import Meter, progress
from clipkit.data.workers import produce
from clipkit.distributed import rank, world_size

from .embed_chunks import Chunks
from .embed_clock import Clock, Together, bottleneck, rates
from .embed_folder import OutputFolder, Partition
from .embed_plan import Plan
from .embed_settings import EmbedSettings
from .embed_source import EmbedSource, open_embed_source
from .embed_towers import PartitionEncoder

if TYPE_CHECKING:
    from clipkit.model import DualEncoder

_MAX_UNWRITTEN = 2
"""Partitions that wait for the disk before the towers do."""


@dataclass(frozen=True, kw_only=True)
class EmbedReport:
    """What a run did; of all ranks."""

    out: Path
    manifest: dict[str, Any]
    num_samples: int
    num_partitions: int
    num_partitions_kept: int
    """Partitions that an earlier run had made."""
    rates: dict[str, float]
    """`samples_per_second` of this run, and shares of its time; see `embed_clock.rates`."""

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        keys = ("model_id", "embedded", "num_rows", "num_more_texts", "failed", "found_by_index")
        return {
            "out": str(self.out),
            **{key: self.manifest[key] for key in keys},
            "num_samples": self.num_samples,
            "num_partitions": self.num_partitions,
            "num_partitions_kept": self.num_partitions_kept,
            **self.rates,
        }

    def to_text(self) -> str:
        """The report as a few lines."""
        kept = f", {self.num_partitions_kept:,} of them from before" if self.num_partitions_kept else ""
        what = " and ".join(self.manifest["embedded"])
        lines = [
            f"{self.out}: {self.manifest['num_rows']:,} rows ({what}) of {self.num_samples:,} samples in "
            f"{self.num_partitions:,} partitions{kept}"
        ]
        if self.num_partitions_kept < self.num_partitions:
            lines.append(f"{self.rates['samples_per_second']:,.1f} samples/s; {bottleneck(self.rates)}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a process needs to make partitions."""

    source: EmbedSource
    plan: Plan
    folder: OutputFolder
    facts: dict[str, Any]
    """All that the files depend on."""
    model: DualEncoder
    settings: EmbedSettings

    @classmethod
    def open(
        cls, location: str, model: DualEncoder, out: Path, settings: EmbedSettings, *, show: bool = False
    ) -> Job:
        """Open the source; arguments and errors are those of `embed`."""
        source = open_embed_source(location, settings, show=show)
        plan = Plan(
            num_samples=len(source.source),
            partition_size=settings.write_batch_size,
            chunk_size=settings.batch_size,
        )
        facts = _facts(location, source, model, settings)
        return cls(
            source=source,
            plan=plan,
            folder=OutputFolder(out, plan, facts),
            facts=facts,
            model=model,
            settings=settings,
        )

    def about(self, model_name: str) -> dict[str, Any]:
        """What else the manifest says."""
        return {
            "model": model_name,
            "num_samples": self.plan.num_samples,
            "num_partitions": self.plan.num_partitions,
        }

    def make(
        self, partitions: Sequence[int], clock: Clock, *, num_workers: int, meter: Meter | None = None
    ) -> None:
        """Make and write partitions, one after the other."""
        numbers = [number for partition in partitions for number in self.plan.chunks(partition)]
        chunks = Chunks(self.source, self.plan, self.model.preprocess(dtype=torch.uint8))
        encoder = PartitionEncoder(self.model, self.source, self.settings)

        def show_captions(num_done: int, total: int) -> None:
            if meter is not None:
                meter.advance(0, f"captions {num_done}/{total}")

        produced = produce(chunks, numbers, num_workers)
        with _writer(self.folder, clock) as writer:
            for partition in partitions:
                for number in self.plan.chunks(partition):
                    with clock.stage("data"):
                        chunk = next(produced)
                    with clock.stage("tower"):
                        encoder.add(chunk)
                    num_samples = len(self.plan.chunk_samples(number))
                    clock.num_samples += num_samples
                    if meter is not None:
                        meter.advance(num_samples, clock.note())
                with clock.stage("tower"):
                    num_samples = len(self.plan.samples(partition))
                    made = encoder.finish(partition, num_samples, progress=show_captions)
                writer.put(made)

    def report(self, manifest: dict[str, Any], *, num_made: int, rates: dict[str, float]) -> EmbedReport:
        """What a run did that made `num_made` partitions."""
        return EmbedReport(
            out=self.folder.path,
            manifest=manifest,
            num_samples=self.plan.num_samples,
            num_partitions=self.plan.num_partitions,
            num_partitions_kept=self.plan.num_partitions - num_made,
            rates=rates,
        )


def embed(
    location: str,
    model: DualEncoder,
    out: Path,
    settings: EmbedSettings,
    *,
    model_name: str = "",
    num_workers: int = 0,
    show: bool = False,
) -> EmbedReport | None:
    """Embed what is at a location; on all ranks together, which write to the same disk.

    A sample that cannot be used has no row; it is listed in `failed.parquet`. If the folder is there, made
    with the same settings, the run goes on with its first unfinished partition.

    Args:
        location: see `open_embed_source`.
        model: on the device to compute on.
        out: the folder.
        settings: what is written.
        model_name: where the model comes from, for the manifest.
        num_workers: processes that decode, on each rank.
        show: whether rank 0 shows its progress.

    Returns:
        On rank 0 the report, on others None.

    Raises:
        ValueError: nothing can be embedded, or `out` was made by another model or with other settings.
        OSError: there is nothing at the location, or `out` cannot be written, or another process is writing
            to it.
    """
    together = Together()
    job = Job.open(location, model, out, settings, show=show)
    with job.folder.started(job.about(model_name)) if rank() == 0 else nullcontext():
        together.gather(torch.zeros(1, 1))  # nobody looks before rank 0 has checked the folder
        partitions = _unfinished(job.folder, job.plan, together)
        clock = Clock()
        own = partitions[rank() :: world_size()]
        total = sum(len(job.plan.samples(partition)) for partition in own)
        title = "embed" if world_size() == 1 else "embed, rank 0"
        with progress(title, total, show=show and rank() == 0) as meter:
            job.make(own, clock, num_workers=num_workers, meter=meter)
        found = rates(together.gather(clock.facts()))
        if rank() != 0:
            return None
        manifest = job.folder.finish(job.about(model_name), job.source.source.problems)
    return job.report(manifest, num_made=len(partitions), rates=found)


def _facts(location: str, source: EmbedSource, model: DualEncoder, settings: EmbedSettings) -> dict[str, Any]:
    """All that the files depend on."""
    places = [os.path.abspath(os.path.expanduser(part)) for part in location.split("::")]
    return {
        "model_id": model.model_id,
        "embed_dim": model.embed_dim,
        "embedded": source.embedded,
        "source": "::".join(places),
        "source_fingerprint": source.fingerprint(),
        **{key: value for key, value in dataclasses.asdict(settings).items() if key != "embed"},
    }


def _unfinished(folder: OutputFolder, plan: Plan, together: Together) -> list[int]:
    """Partitions that are not there; each rank looks after its share, all learn of all."""
    missing = [
        partition
        for partition in range(rank(), plan.num_partitions, world_size())
        if folder.record(partition) is None
    ]
    return sorted(together.gather(torch.tensor(missing, dtype=torch.int64)).tolist())


class _Writer:
    """Writes partitions in another thread, in order."""

    def __init__(self, folder: OutputFolder, clock: Clock, pool: ThreadPoolExecutor) -> None:
        self._folder, self._clock, self._pool = folder, clock, pool
        self._unwritten: deque[Future[None]] = deque()

    def put(self, partition: Partition) -> None:
        """Have a partition written; raises what went wrong with an earlier one."""
        self.wait(_MAX_UNWRITTEN - 1)
        self._unwritten.append(self._pool.submit(self._folder.write, partition))

    def wait(self, num_left: int) -> None:
        """Wait until no more than `num_left` partitions are to be written."""
        with self._clock.stage("writing"):
            while len(self._unwritten) > num_left:
                self._unwritten.popleft().result()


@contextmanager
def _writer(folder: OutputFolder, clock: Clock) -> Iterator[_Writer]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        writer = _Writer(folder, clock, pool)
        yield writer
        writer.wait(0)
