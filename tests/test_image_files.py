from __future__ import annotations

from pathlib import Path

import pytest

from clipkit.data.image_files import ImageFiles, find_images
from clipkit.data.problems import SampleError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "notes.txt", "deep/c.webp", "deep/d.jpeg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def _names(root: Path, *places: str) -> list[str]:
    return [str(path.relative_to(root)) for path in find_images(places)]


def test_folders_patterns_and_files(photos: Path) -> None:
    assert _names(photos, str(photos)) == ["a.PNG", "b.jpg", "deep/c.webp", "deep/d.jpeg"]
    assert _names(photos, f"{photos}/*.jpg", f"{photos}/deep") == ["b.jpg", "deep/c.webp", "deep/d.jpeg"]
    # A file that is named is taken whatever its name, and only once.
    assert _names(photos, f"{photos}/notes.txt", f"{photos}/b.jpg", str(photos)) == [
        "notes.txt",
        "b.jpg",
        "a.PNG",
        "deep/c.webp",
        "deep/d.jpeg",
    ]


def test_what_is_not_there_is_named(photos: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*missing"):
        find_images([f"{photos}/missing"])
    with pytest.raises(FileNotFoundError, match=r"nothing matches .*\*\.tif"):
        find_images([f"{photos}/*.tif"])
    (photos / "empty").mkdir()
    with pytest.raises(ValueError, match=r"found none in .*empty"):
        find_images([f"{photos}/empty"])


def test_a_source_of_files(photos: Path) -> None:
    source = ImageFiles(find_images([str(photos)]))
    assert len(source) == 4
    assert source.read(1).image == b"b.jpg"
    assert source.where(1) == source.read(1).key == str(photos / "b.jpg")
    (photos / "b.jpg").unlink()
    with pytest.raises(SampleError, match=r"missing file"):
        source.read(1)
