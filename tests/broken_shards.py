"""Tar shards with every kind of broken sample, and good samples of every kind of image."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def photo(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """A small smooth picture, another for every seed; size is (width, height)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, file_format: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def png(width: int, height: int, rows: bytes, bits: int = 8) -> bytes:
    """An RGB PNG made by hand; each of `rows` starts with its filter byte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_header_only(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and which holds next to nothing."""
    return png(width, height, b"\0")


def jpeg_with_size(width: int, height: int) -> bytes:
    """A JPEG whose frame header claims another size."""
    data = bytearray(encode(photo(0)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def good_images() -> dict[str, tuple[str, bytes]]:
    """Name -> (extension, file) of pictures of many kinds."""
    rgb = photo(1)
    rgba = rgb.copy()
    rgba.putalpha(Image.linear_gradient("L").resize(rgb.size))
    palette = rgb.quantize(16)
    grey16 = Image.fromarray(np.linspace(0, 65535, 480).astype(np.uint16).reshape(20, 24))
    return {
        "rgb": ("jpg", encode(rgb)),
        "progressive": ("jpg", encode(rgb, progressive=True)),
        "grey": ("jpg", encode(rgb.convert("L"))),
        "cmyk": ("jpg", encode(rgb.convert("CMYK"))),
        "rgba": ("png", encode(rgba, "PNG")),
        "palette": ("png", encode(palette, "PNG")),
        "palette-clear": ("png", encode(palette, "PNG", transparency=0)),
        "grey-alpha": ("png", encode(rgba.convert("LA"), "PNG")),
        "grey16": ("png", encode(grey16, "PNG")),
        "webp": ("webp", encode(rgb, "WEBP", lossless=True)),
    }


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, seed: int = 0, captions: str | None = None) -> dict[str, bytes]:
    """Members of a good sample."""
    return {f"{key}.jpg": encode(photo(seed)), f"{key}.txt": (captions or f"caption of {key}").encode()}


def write_good(folder: Path, num_shards: int = 3, num_samples: int = 20) -> Path:
    """Shards `0.tar`, `1.tar` ... of good samples with keys `SHARD-NUMBER` and three captions each."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        members: dict[str, bytes] = {}
        for number in range(num_samples):
            key = f"{shard}-{number:03d}"
            captions = "\n".join(f"{key} {letter}" for letter in "abc")
            members |= sample(key, seed=shard * num_samples + number, captions=captions)
        write_tar(folder / f"{shard}.tar", members)
    return folder


BROKEN_AT_INDEX = {"missing caption": 2, "missing image": 1, "truncated tar": 1}
BROKEN_AT_READ = {
    "corrupt image": 3,
    "decompression bomb": 2,
    "empty caption": 2,
    "empty file": 1,
    "not an image": 1,
    "undecodable text": 1,
}
NUM_GOOD = 20 + len(good_images()) + 2
NUM_INDEXED = NUM_GOOD + sum(BROKEN_AT_READ.values())


def write_broken(folder: Path) -> Path:
    """Three shards: `NUM_GOOD` good samples, and what the two tables above count."""
    folder.mkdir(parents=True, exist_ok=True)
    jpeg = encode(photo(2))
    text = b"a caption"
    members: dict[str, bytes] = {}
    for number in range(20):
        members |= sample(f"good{number:02d}", seed=number)
    for name, (extension, data) in good_images().items():
        members |= {f"kind-{name}.{extension}": data, f"kind-{name}.txt": text}
    write_tar(folder / "00000.tar", members)

    broken = {
        "cut-jpeg": jpeg[: len(jpeg) // 2],
        "cut-png": encode(photo(3), "PNG")[:-40],
        "damaged-jpeg": b"\xff\xd8\xff" + bytes(200),
        "bomb-png": png_header_only(30_000, 30_000),
        "bomb-jpeg": jpeg_with_size(20_000, 20_000),
        "zero-bytes": b"",
        "html": b"<html>404 not found</html>",
    }
    members = {}
    for name, data in broken.items():
        members |= {f"{name}.jpg": data, f"{name}.txt": text}
    members |= {"blank.jpg": jpeg, "blank.txt": b" \n\t\n"}
    members |= {"blank0.jpg": jpeg, "blank0.txt": b""}
    members |= {"latin1.jpg": jpeg, "latin1.txt": "caf\xe9".encode("latin-1")}
    members |= {"no-text.jpg": jpeg, "no-text.json": json.dumps({"caption": "x"}).encode()}
    members |= {"no-text-either.jpg": jpeg}
    members |= {"no-image.txt": text}
    write_tar(folder / "00001.tar", members)

    whole: dict[str, bytes] = {}
    for number in range(3):
        whole |= sample(f"cut{number}", seed=number)
    path = write_tar(folder / "00002.tar", whole)
    with tarfile.open(path) as tar:
        end = tar.getmember("cut2.jpg").offset_data + 100
    path.write_bytes(path.read_bytes()[:end])
    return folder
