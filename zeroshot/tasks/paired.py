"""Two images and two texts that must be told apart: Winoground and MMVP-VLM."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from clipkit.data.samples import Source
from clipkit.paired_metrics import WINOGROUND_CHANCE, mean_of_groups, winoground_outcomes

from .base import Features, Measurement, Table, Task
from .counts import accuracy_table, percent, rows_by_group, usable_items
from .paired_files import Pair, image_source, read_mmvp, read_winoground

MMVP_CHANCE = WINOGROUND_CHANCE["image_acc"]


@dataclass(frozen=True, kw_only=True)
class Winoground(Task):
    """Winoground (arXiv:2204.03162): captions of the same words in another order.

    Metrics are the group score `acc`, the text score `text_acc` (each image chooses its caption) and the
    image score `image_acc` (each caption chooses its image); ties are wrong.
    """

    summary: ClassVar[str] = "two images, two captions of the same words: which belongs to which"

    data: Path
    """Folder with `examples.jsonl` ({"id", "image_0", "image_1", "caption_0", "caption_1", "tag",
    "collapsed_tag"}, one a line)."""
    images: Path | None = None
    """Folder of the images; default: `images` beside that file."""

    @functools.cached_property
    def _pairs(self) -> list[Pair]:
        return read_winoground(self.data, self.images)

    def sources(self) -> dict[str, Source]:
        """See `Task`."""
        paths = [path for pair in self._pairs for path in pair.images]
        return {"images": image_source(paths, folder=paths[0].parent)}

    def measure(self, features: Features) -> Measurement:
        """See `Task`."""
        pairs, notes, outcomes = _outcomes(self._pairs, features)
        tables = [
            _score_table(f"By {name}", name, outcomes, [pair.groups[place] for pair in pairs])
            for place, name in enumerate(("tag", "collapsed tag"))
            if any(pair.groups[place] for pair in pairs)
        ]
        return Measurement(
            metrics={name: float(values.mean()) for name, values in outcomes.items()},
            outcomes=outcomes,
            chance=dict(WINOGROUND_CHANCE),
            tables=tuple(tables),
            notes=notes,
        )


@dataclass(frozen=True, kw_only=True)
class MmvpVlm(Task):
    """MMVP-VLM (arXiv:2401.06209): image pairs that CLIP models confuse, in nine visual patterns.

    A pair is right if each statement chooses its own image of the two. `acc` is the mean over pairs,
    `mean_per_pattern` the published average over patterns; they differ only where images are missing.
    """

    summary: ClassVar[str] = "pairs of images that look alike to CLIP, told apart by a statement each"

    data: Path
    """Folder with `Questions.csv` (number, pattern, statement; consecutive rows are a pair)."""
    images: Path | None = None
    """Folder with a folder for each pattern; default: the one in `data` that has them, such as
    `MLLM_VLM Images`."""
    prompt: str = "a photo of {statement}"
    """Text of an image; `{statement}` stands for its statement."""

    def __post_init__(self) -> None:
        if "{statement}" not in self.prompt:
            raise ValueError(f"prompt needs {{statement}} where the statement goes, got {self.prompt!r}")

    @functools.cached_property
    def _file(self) -> tuple[list[Pair], Path]:
        return read_mmvp(self.data, self.images)

    def sources(self) -> dict[str, Source]:
        """See `Task`."""
        pairs, folder = self._file
        return {"images": image_source([path for pair in pairs for path in pair.images], folder=folder)}

    def measure(self, features: Features) -> Measurement:
        """See `Task`."""
        pairs, notes, scores = _outcomes(self._file[0], features, self.prompt)
        outcomes = scores["image_acc"]
        members = rows_by_group([pair.groups[0] for pair in pairs])
        per_pattern = mean_of_groups([(rows, outcomes[rows]) for rows in members.values()], len(pairs))
        found = {"acc": outcomes, "mean_per_pattern": per_pattern}
        return Measurement(
            metrics={name: float(values.mean()) for name, values in found.items()},
            outcomes=found,
            chance=dict.fromkeys(found, MMVP_CHANCE),
            tables=(accuracy_table("By pattern", "pattern", outcomes, members),),
            notes=notes,
        )


def _outcomes(
    pairs: list[Pair], features: Features, prompt: str = "{statement}"
) -> tuple[list[Pair], tuple[str, ...], dict[str, Tensor]]:
    """The usable pairs, a note on the others, and the outcomes of `winoground_outcomes`."""
    rows = features.only.rows
    kept, notes = usable_items(pairs, lambda pair: map(str, pair.images), rows)
    images = torch.tensor([[rows[str(path)] for path in pair.images] for pair in kept])
    texts = [prompt.replace("{statement}", text) for pair in kept for text in pair.texts]
    text_features = features.texts(texts)
    outcomes = winoground_outcomes(features.only.features[images], text_features.reshape(len(kept), 2, -1))
    return kept, notes, outcomes


def _score_table(title: str, name: str, outcomes: dict[str, Tensor], groups: list[str]) -> Table:
    """All three scores of each group; items without a group are counted under a dash."""
    rows = [
        (
            group,
            f"{len(own):,}",
            *(percent(float(outcomes[score][own].mean())) for score in ("text_acc", "image_acc", "acc")),
        )
        for group, own in rows_by_group([group or "-" for group in groups]).items()
    ]
    return Table(title=title, header=(name, "items", "text", "image", "group"), rows=tuple(rows))
