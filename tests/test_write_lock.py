"""The lock of a folder that is written: one holder, which ends with its process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from clipkit.retrieval import write_lock as module
from clipkit.retrieval.write_lock import write_lock

HOLDER = """
import os, sys
from pathlib import Path
from clipkit.retrieval.write_lock import write_lock
with write_lock(Path(sys.argv[1])):
    if "fork" in sys.argv and os.fork() == 0:
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""
CONTENDER = """
import random, sys, time
from pathlib import Path
from clipkit.retrieval.write_lock import write_lock
path, counter = Path(sys.argv[1]), Path(sys.argv[2])
sys.stdin.read()
for _ in range(20):
    while True:
        try:
            with write_lock(path):
                counter.write_text(str(int(counter.read_text()) + 1))
            break
        except OSError as error:
            assert "another process is writing" in str(error), error
            time.sleep(random.random() / 200)  # spinning, the others would keep the holder from its end
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


@contextlib.contextmanager
def holder(path: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lock until its standard input ends."""
    command = [sys.executable, "-c", HOLDER, str(path), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.communicate()


def refused(path: Path) -> str:
    with pytest.raises(OSError, match="another process is writing") as caught, write_lock(path):
        pass
    return str(caught.value)


def test_it_keeps_another_process_out_and_names_it(path: Path) -> None:
    with holder(path) as process:
        folder = path.parent
        assert f"writing to {folder} (process {process.pid} on " in refused(path)
        assert "wait for it, or end it" in refused(path)
        assert path.exists()
    assert not path.exists()
    with write_lock(path):
        assert path.exists()
    assert not path.exists()


def test_it_ends_with_a_killed_process_even_where_its_children_go_on(path: Path) -> None:
    for options in ((), ("fork",)):
        with holder(path, *options) as process:
            process.kill()
            process.wait()
            assert str(process.pid) in path.read_text()  # the file is left, and means nothing
            with write_lock(path):
                assert path.read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"pid": 1, "host": "another-machine"}',
        pytest.param(f"process {os.getpid()} on here", id="this process"),
        "\0\xff" * 999,
    ],
)
def test_a_file_without_a_lock_keeps_nobody_out(path: Path, content: str) -> None:
    path.write_text(content)
    with write_lock(path):
        assert "another-machine" not in path.read_text()


def test_it_keeps_threads_and_other_names_of_this_process_out(path: Path) -> None:
    link = path.parent / "link"
    link.symlink_to(path.parent)
    seen = []
    with write_lock(path):
        thread = threading.Thread(target=lambda: seen.append(refused(path)))
        thread.start()
        thread.join()
        assert f"process {os.getpid()}, this one" in seen[0]
        assert "this one" in refused(link / ".lock")
        with write_lock(path.parent / "another"):
            pass
        # A refusal has not given it up.
        script = f"from pathlib import Path; from {write_lock.__module__} import write_lock as w"
        script += f"\nwith w(Path({str(path)!r})): pass"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert f"process {os.getpid()} on" in done.stderr


def _try(path: Path, answers: multiprocessing.SimpleQueue[str]) -> None:
    try:
        with write_lock(path):
            answers.put("held")
    except OSError as error:
        answers.put(str(error))


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_does_not_have_it(path: Path) -> None:
    answers = multiprocessing.get_context("fork").SimpleQueue()
    with write_lock(path):
        child = multiprocessing.get_context("fork").Process(target=_try, args=(path, answers))
        child.start()
        child.join()
        assert f"process {os.getpid()} on" in answers.get()
        assert "this one" in refused(path)


def test_no_two_have_it_at_once(path: Path) -> None:
    """Each counts in a file what it reads there, from a lock file that a killed process left."""
    path.write_text("process 1 on this")
    counter = path.with_name("counter")
    counter.write_text("0")
    command = [sys.executable, "-c", CONTENDER, str(path), str(counter)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(120) for process in processes] == [0] * 3
    assert counter.read_text() == "60"
    assert not path.exists()


def test_it_ends_with_an_error_in_the_block(path: Path) -> None:
    with pytest.raises(KeyError), write_lock(path):
        raise KeyError
    assert not path.exists()
    assert module._held == {}
    with write_lock(path):
        pass


def test_a_file_that_was_removed_by_hand_is_not_removed_twice(path: Path) -> None:
    with write_lock(path):
        path.unlink()
        path.write_text("of somebody else")
    assert path.read_text() == "of somebody else"


def test_a_disk_without_locks_is_written_with_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lockf(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with caplog.at_level(logging.WARNING), write_lock(path):
        assert "this disk has no locks" in caplog.text
    assert not path.exists()
