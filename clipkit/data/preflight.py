"""What is in a data set and what training on it would meet, measured on a sample of it."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipkit.data.problems import MISSING_CAPTION, Problems, SampleError
from clipkit.data.regions import given_boxes, read_regions
from clipkit.data.samples import Source
from clipkit.images import ImageError, decode_pixels
from clipkit.regions.conventions import wrong_convention

LONGEST_COUNTED = 4096
"""Longer captions are reported as this long, in tokens."""
_NUM_BINS = 8
_TEXTS_AT_ONCE = 256

Tokenizer = Callable[..., Tensor]


@dataclass
class Preflight:
    """The findings; counts of reading are of the samples read."""

    num_shards: int
    num_samples: int
    """Usable by the index: image and required members are there."""
    num_read: int
    num_unusable: int = 0
    """Of the samples read."""
    problems: Problems = field(default_factory=Problems)
    """Found by the index (in all samples) and by reading (in those read)."""
    decode_images_per_second: float | None = None
    """Of one process, decoding alone."""
    image_width: dict[str, float] = field(default_factory=dict)
    image_height: dict[str, float] = field(default_factory=dict)
    captions_per_image: dict[int, int] = field(default_factory=dict)
    """Number of captions -> number of images."""
    regions_per_image: dict[str, float] = field(default_factory=dict)
    """Of the images with usable regions, where the json members were read."""
    num_images_with_regions: int = 0
    wrong_convention: str | None = None
    """What the boxes as a whole look like, where they are no corners in fractions of the image."""
    tokens: dict[str, float] = field(default_factory=dict)
    """Minimum, median, 95th percentile and maximum length of a caption with its special tokens."""
    histogram: list[tuple[int, int, int]] = field(default_factory=list)
    """(from, to, captions) in tokens, both ends included; the last bin is what the context length cuts."""
    context_length: int = 0
    num_captions: int = 0
    num_captions_cut: int = 0
    num_duplicate_images: int = 0
    """Images whose file equals an earlier one of those read, byte by byte."""
    num_duplicate_captions: int = 0

    def as_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        values = {**self.__dict__}
        values["problems"] = self.problems.counts
        values["examples"] = self.problems.examples
        return values


def examine(
    source: Source,
    *,
    tokenizer: Tokenizer,
    context_length: int,
    num_samples: int,
    captions_may_lack: bool = False,
    on_read: Callable[[], None] = lambda: None,
) -> Preflight:
    """Read samples evenly spread over a source and sum up what they are like.

    Args:
        source: any source, an empty one too.
        tokenizer: called as `tokenizer(texts, context_length=n)`, pads at the end.
        context_length: of the model to be trained.
        num_samples: how many are read; 0 reads all.
        captions_may_lack: samples without captions, of a source that does not require them, are usable but
            counted as a problem.
        on_read: called after each.
    """
    num_read = min(len(source), num_samples or len(source))
    found = Preflight(len(source.sizes_per_shard), len(source), num_read, context_length=context_length)
    found.problems.update(source.problems)
    sizes: list[tuple[int, int]] = []
    captions: list[str] = []
    num_regions: list[int] = []
    boxes = [torch.zeros(0, 4, dtype=torch.float64)]
    per_image: Counter[int] = Counter()
    images_seen: Counter[bytes] = Counter()
    seconds = 0.0
    for index in np.linspace(0, len(source) - 1, num_read).astype(int).tolist():
        try:
            sample = source.read(index)
            began = time.perf_counter()
            pixels = decode_pixels(sample.image)
            seconds += time.perf_counter() - began
        except (SampleError, ImageError) as error:
            found.num_unusable += 1
            found.problems.add(error.reason, [source.where(index)])
            continue
        finally:
            on_read()
        sizes.append((pixels.shape[2], pixels.shape[1]))
        captions += sample.captions
        if captions_may_lack and not sample.captions:
            found.problems.add(MISSING_CAPTION, [source.where(index)])
        boxes.append(given_boxes(sample.fields))
        regions = read_regions(sample.fields)
        num_regions += [len(regions.phrases)] if regions.phrases else []
        where = source.where(index) + (f": {regions.hint}" if regions.hint else "")
        for reason, count in regions.lost.items():
            found.problems.add(reason, [where], count)
        per_image[len(sample.captions)] += 1
        images_seen[hashlib.blake2b(sample.image, digest_size=16).digest()] += 1
    found.num_duplicate_images = images_seen.total() - len(images_seen)
    found.captions_per_image = dict(sorted(per_image.items()))
    if sizes:
        found.decode_images_per_second = len(sizes) / seconds
        found.image_width = _spread([width for width, _ in sizes])
        found.image_height = _spread([height for _, height in sizes])
    found.wrong_convention = wrong_convention(torch.cat(boxes), "xyxy")
    found.num_images_with_regions = len(num_regions)
    if num_regions:
        found.regions_per_image = _spread(num_regions)
    _measure_captions(found, captions, tokenizer)
    return found


def _measure_captions(found: Preflight, captions: Sequence[str], tokenizer: Tokenizer) -> None:
    found.num_captions = len(captions)
    found.num_duplicate_captions = len(captions) - len(set(captions))
    if not captions:
        return
    lengths = token_lengths(captions, tokenizer)
    found.tokens = _spread(lengths)
    limit = found.context_length
    found.num_captions_cut = sum(length > limit for length in lengths)
    edges = [*np.linspace(0, limit, _NUM_BINS + 1).astype(int).tolist(), max(limit + 1, max(lengths))]
    found.histogram = [
        (low + 1, high, sum(low < length <= high for length in lengths))
        for low, high in itertools.pairwise(edges)
    ]


def token_lengths(captions: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    """Tokens of each caption with its start and end, uncut up to `LONGEST_COUNTED`."""
    lengths: list[int] = []
    for start in range(0, len(captions), _TEXTS_AT_ONCE):
        rows = tokenizer(list(captions[start : start + _TEXTS_AT_ONCE]), context_length=LONGEST_COUNTED)
        is_token = rows != rows[:, -1:]  # the last column is padding
        lengths += (LONGEST_COUNTED - is_token.flip(1).int().argmax(dim=1)).tolist()
    return lengths


def _spread(values: Sequence[int]) -> dict[str, float]:
    low, median, high, top = np.percentile(values, [0, 50, 95, 100]).tolist()
    return {"min": low, "median": median, "p95": high, "max": top}
