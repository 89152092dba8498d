"""The folder that is being written: partitions that are whole or absent, and the manifest.

A partition counts once its record in `stats/` is there, which is written after its files. A run that goes on
makes every other partition anew, under the same names.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from clipkit.checksums import sha256_of
from clipkit.data.problems import Problems
from clipkit.json_files import canonical_json, read_json
from clipkit.version import __version__
from clipkit.whole_file import whole_file

from .embed_chunks import Failure, utf8
from .embed_plan import Plan
from .store import FORMAT_VERSION, MANIFEST_NAME, METADATA, MORE_TEXTS, check_format
from .write_lock import write_lock

STATS = "stats"
FAILED_NAME = "failed.parquet"
_PARTIAL = ".tmp"
_LOCK_NAME = ".lock"


@dataclass(frozen=True, kw_only=True)
class Partition:
    """What is written of the samples of one partition."""

    number: int
    num_samples: int
    embeddings: Mapping[str, npt.NDArray[np.float16]]
    """By folder."""
    metadata: pa.Table | None
    """None where no sample could be embedded."""
    failures: list[Failure]


class OutputFolder:
    """Writes partitions, and knows which are there."""

    def __init__(self, path: Path, plan: Plan, settings: Mapping[str, Any]) -> None:
        """Name the folder; `started` makes it.

        Args:
            path: the folder.
            plan: what is in each partition.
            settings: all that the files depend on, as JSON values; `model_id` and `embedded` among them.
        """
        self.path = path
        self._plan = plan
        self._settings = dict(settings)

    @contextmanager
    def started(self, about: Mapping[str, Any]) -> Iterator[None]:
        """Make the folder, or check that what is there was made with the same settings; keep others out.

        Args:
            about: JSON values for the manifest that may differ from run to run.

        Raises:
            ValueError: the folder was made with other settings, or holds something else.
            OSError: another process is writing to it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(
                f"{self.path} is a file, embeddings are written to a folder: choose another --out"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        with write_lock(self.path / _LOCK_NAME):
            self._start(about)
            yield

    def _start(self, about: Mapping[str, Any]) -> None:
        is_begun = (self.path / MANIFEST_NAME).is_file()
        if is_begun:
            self._check(read_json(self.path / MANIFEST_NAME))
        elif any(not _is_own(file.name) for file in self.path.iterdir()):
            raise ValueError(f"{self.path} is not empty and has no {MANIFEST_NAME}: choose another --out")
        for partial in self.path.rglob(f"*{_PARTIAL}"):  # of a run that was killed
            partial.unlink(missing_ok=True)
        if not is_begun:
            self._write_manifest({**about, "complete": False})

    def _check(self, manifest: Mapping[str, Any]) -> None:
        check_format(self.path, manifest)
        for key, value in self._settings.items():
            there = manifest.get(key)
            if canonical_json(there) != canonical_json(value):
                raise ValueError(
                    f"{self.path} was made with {key} {there}, this run has {value}: "
                    "choose another --out or the same settings"
                )

    def record(self, partition: int) -> dict[str, Any] | None:
        """What is known of a partition; None unless it is there, with every byte of its files."""
        path = self._record_path(partition)
        try:
            record = read_json(path)
            sums = {name: sha256_of(self.path / name) for name in record["files"]}
        except (FileNotFoundError, ValueError, KeyError):
            return None
        return record if sums == record["files"] else None

    def write(self, partition: Partition) -> None:
        """Write the files of a partition, and then its record.

        Files are named only when they are whole. A partition without any row has no files but a record:
        embedding-reader loses the alignment of embeddings and metadata where it meets an empty one.
        """
        label = self._plan.label(partition.number)
        files: dict[str, str] = {}

        def write(folder: str, extension: str, writer: Callable[[Path], object]) -> None:
            name = f"{folder}/{folder}_{label}.{extension}"
            (self.path / folder).mkdir(exist_ok=True)
            write_whole(self.path / name, writer)
            files[name] = sha256_of(self.path / name)

        for folder, rows in partition.embeddings.items():
            if len(rows):
                write(folder, "npy", lambda path, rows=rows: _save_npy(path, rows))  # type: ignore[misc]
        if partition.metadata is not None:
            write(METADATA, "parquet", lambda path: pq.write_table(partition.metadata, path))
        record = {
            "partition": partition.number,
            "num_samples": partition.num_samples,
            "num_rows": 0 if partition.metadata is None else partition.metadata.num_rows,
            "num_more_texts": len(partition.embeddings.get(MORE_TEXTS, ())),
            "failed": [list(failure) for failure in partition.failures],
            "files": files,
        }
        path = self._record_path(partition.number)
        path.parent.mkdir(exist_ok=True)
        _write_json(path, record)

    def finish(self, about: Mapping[str, Any], indexing: Problems) -> dict[str, Any]:
        """Write `failed.parquet` and the manifest; all partitions must be there.

        Args:
            about: JSON values for the manifest that may differ from run to run.
            indexing: what was found when the source was opened.

        Returns:
            The manifest.

        Raises:
            OSError: a partition is not there.
        """
        records = []
        for partition in range(self._plan.num_partitions):
            path = self._record_path(partition)
            if not path.is_file():
                raise OSError(f"{path} is missing: do all ranks write to the same disk?")
            records.append(read_json(path))
        failures = [Failure(*failure) for record in records for failure in record["failed"]]
        write_whole(self.path / FAILED_NAME, lambda path: _save_failures(path, failures, indexing))
        reasons = Counter(failure.reason for failure in failures)
        facts = {
            **about,
            "num_rows": sum(record["num_rows"] for record in records),
            "num_more_texts": sum(record["num_more_texts"] for record in records),
            "failed": dict(sorted(reasons.items())),
            "found_by_index": dict(sorted(indexing.counts.items())),
            "files": {name: digest for record in records for name, digest in record["files"].items()},
            "complete": True,
        }
        return self._write_manifest(facts)

    def _write_manifest(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        manifest = {"format_version": FORMAT_VERSION, "clipkit": __version__, **self._settings, **facts}
        _write_json(self.path / MANIFEST_NAME, manifest)
        return manifest

    def _record_path(self, partition: int) -> Path:
        return self.path / STATS / f"{self._plan.label(partition)}.json"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file of a name that nobody else has, then give it its own.

    A rank or a worker that was given up for lost may still write what another one makes again: whichever
    ends last, the file is whole.
    """
    with whole_file(path, is_shared=True) as partial:
        try:
            write(partial)
        except OSError as error:
            if error.errno is None:  # numpy's, where the disk takes a part only: it names no file
                raise OSError(f"cannot write {path}: {error}") from None
            raise


def _is_own(name: str) -> bool:
    """Whether a file may be in a folder whose manifest is not written yet."""
    return name == _LOCK_NAME or (name.startswith(f".{MANIFEST_NAME}") and name.endswith(_PARTIAL))


def _save_npy(path: Path, rows: npt.NDArray[np.float16]) -> None:
    with path.open("wb") as stream:  # given a path, numpy would add an extension
        np.save(stream, rows)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1) + "\n"
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _save_failures(path: Path, failures: Iterable[Failure], indexing: Problems) -> None:
    """One row a failure; then examples of what the index found, which have no place in the source."""
    rows: list[tuple[int | None, str, str]] = [*failures]
    rows += [(None, reason, utf8(place)) for reason, found in indexing.examples.items() for place in found]
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    types = {"sample": pa.int64(), "reason": pa.string(), "place": pa.string()}
    table = pa.table(
        {name: pa.array(column, kind) for (name, kind), column in zip(types.items(), columns, strict=True)}
    )
    pq.write_table(table, path)
