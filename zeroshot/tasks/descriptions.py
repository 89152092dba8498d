"""Classes by their descriptions, beside what descriptions have to beat: names alone, and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from clipkit.data.samples import Source

from ..controls import WAFFLE_FORMAT, read_words
from ..descriptions import DCLIP_RULE, NO_PHRASE, DescriptionBank, PhraseRule, PromptFormat
from ..region_source import QUERIES, Asked, RegionSource
from .base import Features, ImageSet, Measurement, Task
from .class_data import checked_labels, known_names, labels_by_name
from .compared import Labelled, joined
from .description_controls import ControlOptions, compare_controls
from .description_selection import compare_selection
from .region_descriptions import compare_regions
from .selection_bench import SelectionOptions

JOINERS: dict[str, PhraseRule] = {"dclip": DCLIP_RULE, "waffle": WAFFLE_FORMAT.rule, "none": NO_PHRASE}
"""Setting `joiner` -> what is put between a class name and its descriptor."""

IMAGES, TRAIN = "images", "train"


@dataclass(frozen=True, kw_only=True)
class Descriptions(Task):
    """Classify by descriptions (DCLIP, arXiv:2210.07183), never without matched noise (arXiv:2306.07282)."""

    summary: ClassVar[str] = "classes by descriptions, beside as much noise and beside names alone"

    data: str
    """Images with labels, see `datasets.open_images`."""
    descriptions: Path
    """A JSON file `{class: [descriptor, ...]}` of exactly the classes of the data."""
    train: str | None = None
    """Labelled training images of the same classes, for the selection of descriptions (arXiv:2412.11917)."""
    template: str = "{c}, {d}."
    """A prompt of a class `{c}` and a descriptor `{d}`; `{d}` alone for whole sentences."""
    name_template: str = ""
    """A prompt of a class alone; by default `template` without `{d}` and the punctuation before it."""
    joiner: str = "dclip"
    """Before a descriptor: `dclip` puts "which is" or "which has" by its first word, `waffle` always "which
    has", `none` nothing."""
    class_names: Path | None = None
    """A file with a class name a line, in the order of the labels, instead of the names of the data."""
    seeds: int = 5
    """How often each control is drawn."""
    words: Path | None = None
    """A JSON list of words, of which half of the noise is made; without it, all is random characters."""
    name_weight: float = 1.0
    """Weight of the names alone where their score is added to that of the descriptions."""
    num_train: int = 1000
    """Most training images of a class that are used."""
    num_neighbours: int = 3
    """Likely classes of an image, by their names, among which the selection tells apart."""
    num_kept: int = 5
    """Descriptions that are selected for each of them."""
    image_weight: float | None = None
    """With a model with a query decoder (GRAIN), measure also the mix of its image query, with this weight
    from 0 to 1, and of the regions that its queries found, each with the description that fits it best."""

    def __post_init__(self) -> None:
        if self.joiner not in JOINERS:
            raise ValueError(f"joiner must be one of {', '.join(JOINERS)}, got {self.joiner!r}")
        for name in ("seeds", "num_train", "num_neighbours", "num_kept"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.name_weight < 0:
            raise ValueError(f"name_weight must be >= 0, got {self.name_weight}")
        if self.image_weight is not None and not 0 <= self.image_weight <= 1:
            raise ValueError(f"image_weight must be from 0 to 1, got {self.image_weight}")
        if self.train == self.data:
            raise ValueError(f"train must be other images than data, got {self.data} twice")
        if "{d}" not in self.template:
            raise ValueError(f"template needs {{d}} where the descriptor goes, got {self.template!r}")
        self._prompt_format()  # refuses templates that cannot be filled

    def _prompt_format(self) -> PromptFormat:
        return PromptFormat(self.template, rule=JOINERS[self.joiner], name_template=self.name_template)

    def sources(self) -> dict[str, Source]:
        """The images, where descriptions of exactly their classes are at hand."""
        from ..datasets import open_images

        places = {IMAGES: self.data} | ({TRAIN: self.train} if self.train is not None else {})
        found = {name: open_images(place, require=("label",)) for name, place in places.items()}
        self._bank(known_names(found[IMAGES].name, found[IMAGES].classnames, self.class_names))
        self._words()  # refuses a file that is none
        if self.image_weight is not None:
            images = found[IMAGES]
            nothing = [Asked()] * len(images)
            found[IMAGES] = RegionSource(images, range(len(images)), nothing, wanted=(QUERIES,))
        return found

    def measure(self, features: Features) -> Measurement:
        """The descriptions with each control, and the selection where there are training images."""
        images = features.images[IMAGES]
        names = known_names(images.name, images.classnames, self.class_names)
        bank = self._bank(names)
        test = Labelled(features=images.features, labels=checked_labels(images, len(names)))
        options = ControlOptions(seeds=self.seeds, words=self._words(), name_weight=self.name_weight)
        found = compare_controls(test, bank, self._prompt_format(), features.texts, options)
        if self.image_weight is not None:
            mixed = compare_regions(
                features.regions[IMAGES],
                test.labels,
                bank,
                self._prompt_format(),
                features.texts,
                self.image_weight,
                options,
            )
            found = joined(found, mixed)
        if self.train is None:
            return found
        train = _training_images(features.images[TRAIN], names)
        return joined(
            found,
            compare_selection(
                train,
                test,
                bank,
                self._prompt_format(),
                features.texts,
                SelectionOptions(
                    num_train=self.num_train,
                    num_neighbours=self.num_neighbours,
                    num_kept=self.num_kept,
                    seeds=self.seeds,
                ),
            ),
        )

    def _bank(self, names: Sequence[str]) -> DescriptionBank:
        """The descriptions in the order of the labels.

        Raises:
            ValueError: they are of other classes, or there is none.
        """
        bank = DescriptionBank.read(self.descriptions)
        try:
            rows = bank.match(names)
        except ValueError as error:
            raise ValueError(f"{self.descriptions}: {error}") from None
        if sum(bool(row) for row in rows) < 2:
            raise ValueError(f"{self.descriptions}: at least two classes need a descriptor")
        return DescriptionBank(names=tuple(names), descriptors=rows)

    def _words(self) -> tuple[str, ...]:
        return () if self.words is None else read_words(self.words)


def _training_images(images: ImageSet, names: Sequence[str]) -> Labelled:
    """The training images, of which every class has one.

    Raises:
        ValueError: they are of other classes, or a class has none.
    """
    labels = labels_by_name(images, names)
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    if 0 in counts:
        raise ValueError(
            f"{images.name}: the selection needs an image of each class, {names[counts.index(0)]!r} has none"
        )
    return Labelled(features=images.features, labels=labels)
