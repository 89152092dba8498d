"""Files that appear as a whole, and what is left where writing them fails."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from clipkit.whole_file import whole_file


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_file_appears_as_a_whole(tmp_path: Path, is_shared: bool) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")
    with whole_file(path, is_shared=is_shared) as temporary:
        temporary.write_text("af")
        assert path.read_text() == "before"
        temporary.write_text("after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("has_begun", [False, True])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: BaseException, has_begun: bool) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")

    def write() -> None:
        with whole_file(path) as temporary:
            if has_begun:
                temporary.write_text("af")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left"), f"[Errno {errno.ENOSPC}] No space left: '{{path}}'"),
        (OSError(errno.ENOSPC, "No space left", "other"), f"[Errno {errno.ENOSPC}] No space left: 'other'"),
        (OSError(errno.EIO, "of what is read"), f"[Errno {errno.EIO}] of what is read"),
        (OSError("of ours"), "of ours"),
    ],
)
def test_a_full_disk_is_said_with_the_file(tmp_path: Path, error: OSError, message: str) -> None:
    with pytest.raises(OSError, match=r"No space|of") as found, whole_file(tmp_path / "a.json"):
        raise error
    assert str(found.value) == message.format(path=tmp_path / "a.json")


def test_a_file_that_several_write_is_of_the_last(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with whole_file(path, is_shared=True) as first:
        first.write_text("first")
        with whole_file(path, is_shared=True) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
