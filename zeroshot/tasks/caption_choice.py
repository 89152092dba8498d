"""A true caption against false ones: SugarCrepe, ARO, VL-Checklist, the built-in scenes, your own files."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from clipkit.data.samples import RawSample, Source
from clipkit.paired_metrics import choice_chance, choice_outcomes, mean_of_groups

from .base import Features, ImageSet, Measurement, Task, TextFeatures
from .choice_files import FORMATS, Choice, ChoiceFile, read_choices
from .counts import accuracy_table, rows_by_group, usable_items
from .cropped_files import CroppedFiles
from .paired_files import check_any_exists, text_field

SCENES = "scenes"
_CHOICES = ("auto", *FORMATS, SCENES)


@dataclass(frozen=True, kw_only=True)
class CaptionChoice(Task):
    """Whether an image scores higher with its caption than with each of the false ones; ties are wrong.

    `acc` is the mean over items, `mean_per_kind` the mean over kinds of their accuracies.
    """

    summary: ClassVar[str] = "the true caption of an image against false ones of nearly the same words"

    data: str
    """A file, or a folder of files, which are then several kinds:
    SugarCrepe {"0": {"filename", "caption", "negative_caption"}};
    ARO [{"image_path", "bbox_x", "bbox_y", "bbox_w", "bbox_h", "true_caption", "false_caption"}], where the
    box is cut out and `relation_name` or `attributes` are the kinds;
    ARO's order tests [{"image", "caption_options": [true, false, ...]}];
    VL-Checklist [[path, {"POS": [...], "NEG": [...]}]], the first of either list, with images also in the
    folders `vg`, `hake` and `swig`;
    your own `.jsonl`: {"image", "caption", "negatives": [...], "kind"} a line, `kind` if there are several.
    Or `scenes`, or tar shards whose json files have {"foils": [{"kind", "caption", "foil"}]}."""
    images: Path | None = None
    """Folder that the images of a file are named from; default: `images` beside the file, else its folder."""
    format: str = "auto"
    """`sugarcrepe`, `aro`, `aro_order`, `vl_checklist`, `jsonl` or `scenes`; `auto` looks at the content."""
    min_items_per_kind: int = 1
    """Kinds with fewer items do not count in `mean_per_kind`; ARO takes attributes from 25 on."""

    def __post_init__(self) -> None:
        if self.format not in _CHOICES:
            raise ValueError(f"format must be one of {', '.join(_CHOICES)}, got {self.format!r}")
        if self.min_items_per_kind < 1:
            raise ValueError(f"min_items_per_kind must be >= 1, got {self.min_items_per_kind}")

    @property
    def _is_shards(self) -> bool:
        if self.format != "auto":
            return self.format == SCENES
        path = Path(self.data).expanduser()
        has_tars = any(any(path.glob(pattern)) for pattern in ("*.tar", "test/*.tar"))
        names_tars = any(part.endswith(".tar") for part in self.data.split("::"))
        return has_tars or names_tars or self.data.partition(":")[0] == SCENES

    @functools.cached_property
    def _file(self) -> ChoiceFile:
        return read_choices(Path(self.data).expanduser(), self.images, self.format)

    def sources(self) -> dict[str, Source]:
        """See `Task`."""
        if self._is_shards:
            from ..datasets import open_images

            return {"images": open_images(self.data, require=("fields",))}
        parts = self._file.parts
        check_any_exists([part.path for part in parts], self._file.folder)
        return {"images": CroppedFiles(parts)}

    def measure(self, features: Features) -> Measurement:
        """See `Task`."""
        rows, items, notes = self._items(features.only)
        outcomes, chance = _outcomes(items, features.only.features[rows], features.texts)
        members = rows_by_group([item.kind for item in items])
        counted = [rows for rows in members.values() if len(rows) >= self.min_items_per_kind]
        found = {"acc": outcomes}
        if counted:
            found["mean_per_kind"] = mean_of_groups([(rows, outcomes[rows]) for rows in counted], len(items))
        return Measurement(
            metrics={name: float(values.mean()) for name, values in found.items()},
            outcomes=found,
            chance={name: _chance(name, chance, counted) for name in found},
            tables=(accuracy_table("By kind", "kind", outcomes, members),),
            notes=(*notes, *self._notes(items, len(members) - len(counted))),
        )

    def _items(self, images: ImageSet) -> tuple[list[int], list[Choice], tuple[str, ...]]:
        """Row of the image of each usable item, the items, and a note on the others."""
        if not self._is_shards:
            items, notes = usable_items(self._file.choices, lambda item: (item.key,), images.rows)
            rows = images.rows
            return [rows[item.key] for item in items], items, notes
        foils = list(_foils(images.samples))
        if not foils:
            raise ValueError(f"no sample of {images.name} has foils; name shards that do, such as scenes")
        return [row for row, _ in foils], [item for _, item in foils], ()

    def _notes(self, items: Sequence[Choice], num_small: int) -> Iterator[str]:
        num_equal = sum(item.caption in item.negatives for item in items)
        if num_equal:
            yield (
                f"{num_equal:,} items have a negative that equals their caption; they are wrong, and acc "
                f"cannot exceed {1 - num_equal / len(items):.4f}."
            )
        if num_small:
            yield (
                f"{num_small:,} kinds with fewer than {self.min_items_per_kind} items are left out of "
                "mean_per_kind."
            )
        num_images = len({item.key for item in items})
        if num_images < len(items):
            yield (
                f"{len(items):,} items are about {num_images:,} images; intervals take items for independent."
            )


def _foils(samples: Sequence[RawSample]) -> Iterator[tuple[int, Choice]]:
    """The items in the json files of samples, each with its sample's row; samples without foils have none."""
    for row, sample in enumerate(samples):
        for number, foil in enumerate(sample.fields.get("foils", ())):
            where = f"{sample.key}, foil {number}"
            if not isinstance(foil, dict):
                raise ValueError(f"{where} must be an object, got {foil!r:.60}")
            choice = Choice(
                key=sample.key,
                caption=text_field(where, foil, "caption"),
                negatives=(text_field(where, foil, "foil"),),
                kind=text_field(where, foil, "kind"),
            )
            yield row, choice


def _outcomes(items: Sequence[Choice], image_features: Tensor, texts: TextFeatures) -> tuple[Tensor, Tensor]:
    """(N,) outcomes of the items by the features of their images, and (N,) what guessing gives each."""
    every = (text for item in items for text in (item.caption, *item.negatives))
    places = {text: place for place, text in enumerate(dict.fromkeys(every))}
    item_of_wrong = torch.tensor([number for number, item in enumerate(items) for _ in item.negatives])
    outcomes = choice_outcomes(
        image_features,
        texts(list(places)),
        torch.tensor([places[item.caption] for item in items]),
        torch.tensor([places[text] for item in items for text in item.negatives]),
        item_of_wrong,
    )
    return outcomes, choice_chance(item_of_wrong, len(items))


def _chance(metric: str, chance: Tensor, counted: Sequence[Tensor]) -> float:
    if metric == "acc":
        return float(chance.mean())
    return float(torch.stack([chance[rows].mean() for rows in counted]).mean())
