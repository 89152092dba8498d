from __future__ import annotations

import os
from pathlib import Path

import pytest
from clipkit.retrieval.service.pictures import allowed_path, read_image_file, thumbnail
from serve_jobs import png

from clipkit.images import decode_image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a.png").write_bytes(png())
    (root / "sub" / "b.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "root-too").mkdir()
    (tmp_path / "root-too" / "c.png").write_bytes(png())
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "out").symlink_to(tmp_path)
    (root / "in.png").symlink_to(root / "a.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    return root


@pytest.mark.parametrize("name", ["a.png", "sub/b.png", "sub/../a.png", "in.png", "./a.png"])
def test_files_below_a_root(root: Path, name: str) -> None:
    for path in (name, str(root / name)):
        found = allowed_path({"image_path": path}, [root / "none", root])
        assert found is not None
        assert found.read_bytes() == png()


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "sub/../../secret.png",
        "out.png",
        "out/secret.png",
        "loop.png",
        "../root-too/c.png",
        "/etc/passwd",
        "none.png",
        "a.png\0",
        "",
        "..",
        None,
        7,
    ],
)
def test_files_elsewhere(root: Path, name: object) -> None:
    assert allowed_path({"image_path": name}, [root]) is None
    assert allowed_path({}, [root]) is None


def test_only_pictures_that_browsers_show(root: Path) -> None:
    assert read_image_file(root / "a.png", 10_000) == (png(), "image/png")
    (root / "b").write_bytes(png(kind="JPEG"))
    assert read_image_file(root / "b", 10_000)[1] == "image/jpeg"
    (root / "c.webp").write_bytes(png(kind="WEBP"))
    assert read_image_file(root / "c.webp", 10_000)[1] == "image/webp"
    for name, data in {"x.png": b"<svg onload=alert(1)>", "y.jpg": b"<html>", "z.png": b""}.items():
        (root / name).write_bytes(data)
        with pytest.raises(ValueError, match="no picture"):
            read_image_file(root / name, 10_000)


def test_only_plain_files_of_some_size(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    for path, limit in (
        (root / "pipe.png", 100),
        (root, 100),
        (root / "a.png", 10),
        (root / "in.png", 10_000),
    ):
        with pytest.raises(OSError, match=r"no plain file|symbolic|directory"):
            read_image_file(path, limit)


def test_thumbnails() -> None:
    small = decode_image(thumbnail(png(size=(1200, 600)), 10**6))
    assert small.size == (384, 192)
    assert decode_image(thumbnail(png(size=(40, 30)), 10**6)).size == (40, 30)
