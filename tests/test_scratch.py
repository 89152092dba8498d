"""Scratch folders: locked while they are filled, removed by the next process where one was killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipkit.scratch import scratch_folder, umask

FILLER = """
import sys
from pathlib import Path
from clipkit.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "part").write_text("part")
    print(folder.name, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def filler(path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process that fills a folder until its standard input ends, and the name of the folder."""
    command = [sys.executable, "-c", FILLER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.communicate()


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out"
    others = [".out.tmp", ".out.notes.tmp", ".outer.abcdefgh.tmp", "out.abcdefgh.tmp", ".out.abcdefgh"]
    for name in others:
        (tmp_path / name).mkdir()
    with filler(path) as (process, name):
        process.kill()
        process.wait()
        assert (tmp_path / name / "part").exists()
        with scratch_folder(path) as folder:
            assert not (tmp_path / name).exists()
            assert list(folder.iterdir()) == []
            assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~umask()
    assert sorted(os.listdir(tmp_path)) == sorted(others)


def test_the_folder_of_a_living_process_is_kept(tmp_path: Path) -> None:
    with filler(tmp_path / "out") as (_, name), scratch_folder(tmp_path / "out") as folder:
        assert sorted(os.listdir(tmp_path)) == sorted([name, folder.name])
        assert (tmp_path / name / "part").read_text() == "part"
        with scratch_folder(tmp_path / "out"):  # nor is one of this process
            assert folder.exists()
    assert os.listdir(tmp_path) == []


def test_one_that_was_removed_before_it_was_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if not seen:
            (first,) = tmp_path.iterdir()
            seen.append(first.name)
            first.rmdir()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with scratch_folder(tmp_path / "out") as folder:
        assert [folder.name] != seen
        assert os.listdir(tmp_path) == [folder.name]


def test_a_disk_without_locks_is_written_and_nothing_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / ".out.abcdefgh.tmp").mkdir()
    with scratch_folder(tmp_path / "out") as folder:
        folder.rename(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == [".out.abcdefgh.tmp", "out"]
