"""Functions that tests of `clipkit embed` run on several ranks, and the data that they run on."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from broken_shards import encode, photo, write_tar
from clipkit.retrieval.embed import EmbedReport, embed
from clipkit.retrieval.embed_settings import EmbedSettings

import clipkit
from clipkit.images import decode_image
from clipkit.model import DualEncoder

NUM_PAIRS = 23
BAD = {4: "corrupt image", 9: "empty file", 17: "missing caption"}
"""Pairs of `write_pairs` that cannot be used, by their place in the source."""


def write_pairs(folder: Path, *, broken: bool = True) -> Path:
    """Two tars of pairs with one to three captions and a json file; pairs in `BAD` are broken."""
    folder.mkdir(parents=True)
    for tar, numbers in enumerate((range(11), range(11, NUM_PAIRS))):
        members: dict[str, bytes] = {}
        for number in numbers:
            key = f"{number:09d}"
            picture = encode(photo(number))
            captions = "\n".join(f"picture {number} said {way}" for way in "abc"[: number % 3 + 1])
            if broken and number in BAD:
                picture = {4: picture[:300], 9: b"", 17: picture}[number]
                captions = "" if number == 17 else captions
            fields = {"url": f"https://x/{number}", "size": {"width": 24, "height": 20}}
            members |= {f"{key}.jpg": picture, f"{key}.txt": captions.encode()}
            members[f"{key}.json"] = json.dumps(fields).encode()
        write_tar(folder / f"{tar:05d}.tar", members)
    return folder


def run_embed(location: str | Path, model: str, out: Path, **options: Any) -> EmbedReport | None:
    """`embed` with partitions of 5 samples and chunks of 2, unless `options` say otherwise."""
    num_workers = options.pop("num_workers", 0)
    settings = EmbedSettings(**{"write_batch_size": 5, "batch_size": 2, **options})
    return embed(str(location), _load(model), out, settings, num_workers=num_workers)


@functools.cache
def _load(model: str) -> DualEncoder:
    return clipkit.load(model)


def embed_here(location: str, model: str, out: str, cache_home: str) -> int | None:
    """As a rank: on rank 0 how many partitions all ranks have made."""
    os.environ["XDG_CACHE_HOME"] = cache_home
    report = run_embed(location, model, Path(out))
    return None if report is None else report.num_partitions - report.num_partitions_kept


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_folder(folder: Path, *, images: bool, captions: bool) -> Path:
    (folder / "deep").mkdir(parents=True)
    for number in range(3):
        stem = folder / "deep" / f"x{number}"
        if images:
            stem.with_suffix(".jpg").write_bytes(encode(photo(number)))
        if captions:
            stem.with_suffix(".txt").write_text(f"text {number}\nagain {number}\n")
    return folder


def image_rows(model: str, numbers: list[int]) -> np.ndarray:
    encoder = clipkit.load(model)
    images = [encoder.preprocess()(decode_image(encode(photo(number)))) for number in numbers]
    with torch.no_grad():
        return encoder.encode_image(torch.stack(images), normalize=True).numpy()


def text_rows(model: str, texts: list[str]) -> np.ndarray:
    encoder = clipkit.load(model)
    with torch.no_grad():
        return encoder.encode_text(encoder.tokenizer(texts), normalize=True).numpy()
