"""Detectors by hand, which `--detector region_finder:NAME` names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (20, 160, 60)}

calls: list[list[str]] = []
"""The phrases of every call."""
fail_at: int | None = None
"""Which call stops the process, so to speak."""

Found = tuple[list[list[float]], list[float], list[int]]


def by_colour(image: Image.Image, phrases: Sequence[str]) -> Found:
    """For each phrase that names a colour, the box of its pixels, sure by how many there are."""
    calls.append(list(phrases))
    if fail_at is not None and len(calls) > fail_at:
        raise KeyboardInterrupt
    pixels = np.asarray(image).astype(int)
    boxes, scores, index = [], [], []
    for number, phrase in enumerate(phrases):
        for colour, value in COLOURS.items():
            rows, columns = np.nonzero(abs(pixels - value).sum(axis=2) < 90)
            if colour in phrase.split() and len(rows):
                edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                sides = [image.width, image.height] * 2
                boxes.append([edge / side for edge, side in zip(edges, sides, strict=True)])
                scores.append(len(rows) / pixels[..., 0].size + len(phrase) / 1000)
                index.append(number)
    return boxes, scores, index


def label_here(shards: str, out: str) -> tuple[int, int, int]:
    """On a rank: images counted, shards labelled by all, and pictures looked at here."""
    import torch

    from clipkit.regions.labelling.label import label
    from clipkit.regions.labelling.settings import LabelSettings

    calls.clear()
    settings = LabelSettings(detector="region_finder:by_colour")
    found, num_labelled = label(shards, Path(out), settings, device=torch.device("cpu"), show=False)
    return found.num_images, num_labelled, len(calls)


def in_pixels(image: Image.Image, phrases: Sequence[str]) -> Found:
    return [[0, 0, image.width, image.height]], [0.9], [0]


def one_score_short(image: Image.Image, phrases: Sequence[str]) -> Any:
    return [[0, 0, 1, 1], [0, 0, 0.5, 1]], [0.9], [0, 0]


def infinite(image: Image.Image, phrases: Sequence[str]) -> Found:
    return [[0, 0, 1, 1]], [float("inf")], [0]


def between_phrases(image: Image.Image, phrases: Sequence[str]) -> Any:
    return [[0, 0, 1, 1]], [0.9], [0.7]


def not_a_number(image: Image.Image, phrases: Sequence[str]) -> Found:
    return [[0, 0, 1, 1]], [float("nan")], [0]


def no_such_phrase(image: Image.Image, phrases: Sequence[str]) -> Found:
    return [[0, 0, 1, 1]], [0.9], [len(phrases)]


def nothing_at_all(image: Image.Image, phrases: Sequence[str]) -> None:
    return None


def no_box(image: Image.Image, phrases: Sequence[str]) -> Found:
    return [], [], []


def fails(image: Image.Image, phrases: Sequence[str]) -> Found:
    raise KeyError("boom\nline two")


not_a_function = 7
