"""Image files that may be sent: those below the roots that the operator named, and nothing else."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from clipkit.images import decode_image

PATH_COLUMN = "image_path"
_SIDE = 384
# What a browser shows and what cannot hold a script; the file's beginning decides, not its name.
_TYPES = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}


def allowed_path(row: dict[str, Any], roots: Sequence[Path]) -> Path | None:
    """The file that a row's `image_path` means, if it lies below a root once all links are followed.

    Args:
        row: metadata; a relative path is looked up below each root.
        roots: folders.
    """
    named = row.get(PATH_COLUMN)
    if not isinstance(named, str) or not named or "\0" in named:
        return None
    for root in roots:
        inside = root.resolve()
        try:
            path = (inside / named).resolve(strict=True)
        except (OSError, RuntimeError):
            continue
        if path.is_relative_to(inside):
            return path
    return None


def read_image_file(path: Path, max_bytes: int) -> tuple[bytes, str]:
    """Content and media type of an image file.

    Raises:
        OSError: it is no plain file, is too large, or cannot be read.
        ValueError: it is no picture that browsers show.
    """
    # O_NOFOLLOW: the path has no links left, unless somebody exchanged it since; O_NONBLOCK: no pipe blocks.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            raise OSError("no plain file, or too large")
        data = file.read(max_bytes)
    return data, _media_type(data)


def thumbnail(data: bytes, max_pixels: int) -> bytes:
    """A JPEG of at most 384 pixels a side.

    Raises:
        ImageError: the picture cannot be used.
    """
    image = decode_image(data, max_pixels=max_pixels)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _media_type(data: bytes) -> str:
    for magic, media_type in _TYPES.items():
        if data.startswith(magic):
            return media_type
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    raise ValueError("no picture that browsers show")
