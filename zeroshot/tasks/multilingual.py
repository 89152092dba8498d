"""Zero-shot classification in many languages: Babel-ImageNet."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from clipkit.data.samples import Source
from clipkit.paired_metrics import first_choices, mean_of_groups
from clipkit.templates import load_templates

from ..classifier import prompts_of_names
from .base import Features, ImageSet, Measurement, Table, Task
from .class_data import class_vectors
from .counts import percent
from .language_files import (
    BANDS,
    LanguageLabels,
    chosen_languages,
    is_english,
    level_of_size,
    read_labels,
    read_levels,
    read_prompts,
)

_BARE = ("{c}",)
_NO_LEVEL = "no level"


@dataclass(frozen=True, kw_only=True)
class _Result:
    """One language on the images of its classes."""

    labels: LanguageLabels
    level: str
    rows: Tensor
    """(n,) int64, the images."""
    outcomes: Tensor
    """(n,) fp64 of 0 and 1."""
    bound: float
    """The accuracy that labels shared by several classes allow."""
    num_empty: int
    """Classes without an image, which stay in the choice."""

    @property
    def accuracy(self) -> float:
        return float(self.outcomes.mean())

    @property
    def chance(self) -> float:
        return 1 / len(self.labels.classes)


@dataclass(frozen=True, kw_only=True)
class Multilingual(Task):
    """Babel-ImageNet (arXiv:2306.08658): every language classifies the images of its translated classes.

    `mean_acc1` is the unweighted mean of top-1 over the languages that are not English, `english_acc1` that
    of English, `mean_acc1_LEVEL` the mean over the languages of a level. Languages differ in their number of
    classes and so in what guessing gives, which stands beside every accuracy. Of classes with one label the
    first is predicted.
    """

    summary: ClassVar[str] = "zero-shot top-1 on the classes that have a name in each of many languages"

    data: str
    """Images labelled as the labels file numbers the classes: ImageNet's validation set, usual order."""
    labels: Path
    """JSON file `{LANGUAGE: [[class number, ...], [label, ...]]}`. Babel-ImageNet has been released with 298
    languages and in a selection of 93; means over the two are not comparable."""
    languages: tuple[str, ...] = ()
    """The languages to measure; default: all."""
    prompts: Path | None = None
    """JSON file `{LANGUAGE: [template with {}, ...]}`; languages without templates are left out, and English
    has the 80 templates of CLIP, as in the published results. Default: the label alone."""
    english_from_data: bool = False
    """English by the class names that lie beside the images instead of the labels file's: the published
    results use OpenAI's names."""
    levels: Path | None = None
    """JSON file `{LANGUAGE: level}`; default: by the number of translated classes, high from 300, mid from
    100, low below."""

    @functools.cached_property
    def _known(self) -> dict[str, LanguageLabels]:
        return read_labels(self.labels)

    @functools.cached_property
    def _prompts(self) -> dict[str, tuple[str, ...]]:
        return {} if self.prompts is None else read_prompts(self.prompts)

    @functools.cached_property
    def _levels(self) -> dict[str, str]:
        return {} if self.levels is None else read_levels(self.levels)

    def sources(self) -> dict[str, Source]:
        """See `Task`."""
        from ..datasets import open_images

        _ = self._prompts, self._levels  # all files are read before anything is encoded
        chosen = chosen_languages(list(self._known), self.languages)
        if not any(self._templates(language) for language in chosen):
            raise ValueError(f"{self.prompts} has no templates of {', '.join(chosen[:5])}")
        source = open_images(self.data, require=("label",))
        self._checked_names(source.name, tuple(source.classnames or ()))
        return {"images": source}

    def measure(self, features: Features) -> Measurement:
        """See `Task`."""
        images = features.only
        names = self._checked_names(images.name, images.classnames)
        sorted_labels, order = images.labels.sort(stable=True)
        results, notes = [], []
        for language in chosen_languages(list(self._known), self.languages):
            templates = self._templates(language)
            if not templates:
                notes.append(f"{language} is left out: {self.prompts} has no templates for it.")
                continue
            labels = self._labels_of(language, names)
            result = _measure(labels, self._level(labels), templates, features, (sorted_labels, order))
            if result is None:
                notes.append(f"{language} is left out: the data has no image of its classes.")
            else:
                results.append(result)
        if not results:
            raise ValueError(f"{images.name} has no image of a class with a label in the chosen languages")
        return _summed_up(results, images, self._title(len(results)), (*_notes(results), *notes))

    def _checked_names(self, source: str, names: tuple[str, ...]) -> tuple[str, ...]:
        """The class names of the data, which must be as many as the labels file numbers."""
        num_classes = 1 + max(max(labels.classes) for labels in self._known.values())
        if names and len(names) < num_classes:
            raise ValueError(
                f"{self.labels} numbers {num_classes} classes, {source} has {len(names)}: its labels must be "
                "numbered as in the whole set"
            )
        if self.english_from_data and not names:
            raise ValueError(f"english_from_data needs class names: write a classnames.txt beside {source}")
        return names

    def _labels_of(self, language: str, names: Sequence[str]) -> LanguageLabels:
        known = self._known[language]
        if not (self.english_from_data and is_english(language)):
            return known
        own = tuple(names[number] for number in known.classes)
        return LanguageLabels(language=language, classes=known.classes, labels=own)

    def _templates(self, language: str) -> tuple[str, ...]:
        if self.prompts is None:
            return _BARE
        return load_templates("openai") if is_english(language) else self._prompts.get(language, ())

    def _level(self, labels: LanguageLabels) -> str:
        if self.levels is None:
            return level_of_size(len(labels.classes))
        return self._levels.get(labels.language, _NO_LEVEL)

    def _title(self, num_measured: int) -> str:
        return f"{num_measured} of the {len(self._known)} languages of {self.labels.name}"


def _measure(
    labels: LanguageLabels,
    level: str,
    templates: Sequence[str],
    features: Features,
    by_label: tuple[Tensor, Tensor],
) -> _Result | None:
    """One language, or None without an image of its classes.

    Args:
        labels: of the language.
        level: of the language.
        templates: with `{c}`.
        features: of the images and texts.
        by_label: (N,) int64 each, the sorted labels of the images, and the rows of these.
    """
    sorted_labels, order = by_label
    classes = torch.tensor(labels.classes)
    low = torch.searchsorted(sorted_labels, classes)
    high = torch.searchsorted(sorted_labels, classes, right=True)
    rows = torch.cat([order[a:b] for a, b in zip(low.tolist(), high.tolist(), strict=True)])
    if not rows.numel():
        return None
    # Classes with one label share a vector, and the first of them gets its images.
    places = {label: place for place, label in enumerate(dict.fromkeys(labels.labels))}
    place_of_class = torch.tensor([places[label] for label in labels.labels])
    first_of = {label: number for number, label in reversed(list(enumerate(labels.labels)))}
    is_first = torch.tensor([first_of[label] == number for number, label in enumerate(labels.labels)])
    class_of_row = torch.arange(len(classes)).repeat_interleave(high - low)
    vectors = class_vectors(features.texts, prompts_of_names(list(places), templates))
    predictions = first_choices(features.only.features[rows], vectors)
    right = (predictions == place_of_class[class_of_row]) & is_first[class_of_row]
    return _Result(
        labels=labels,
        level=level,
        rows=rows,
        outcomes=right.double(),
        bound=float(is_first[class_of_row].double().mean()),
        num_empty=int((high == low).sum()),
    )


def _summed_up(
    results: Sequence[_Result], images: ImageSet, title: str, notes: tuple[str, ...]
) -> Measurement:
    """Means over languages; items are images, which are drawn again with their outcomes in all languages."""
    others = [one for one in results if not is_english(one.labels.language)]
    groups: dict[str, list[_Result]] = {"mean_acc1": others} if others else {}
    english = [one for one in results if is_english(one.labels.language)]
    groups |= {"english_acc1": english} if english else {}
    by_level = _by_level(others)
    groups |= {f"mean_acc1_{level}": own for level, own in by_level.items()}
    outcomes = {name: _mean(own, len(images.samples)) for name, own in groups.items()}
    return Measurement(
        metrics={name: float(values.mean()) for name, values in outcomes.items()},
        outcomes=outcomes,
        chance={name: sum(one.chance for one in own) / len(own) for name, own in groups.items()},
        tables=(_level_table(by_level), _language_table(results, title)),
        notes=notes,
    )


def _mean(results: Sequence[_Result], num_images: int) -> Tensor:
    """Values of the images that some language has, whose mean is the mean accuracy of the languages."""
    rows = torch.unique(torch.cat([one.rows for one in results]))
    place = torch.full((num_images,), -1)
    place[rows] = torch.arange(len(rows))
    return mean_of_groups([(place[one.rows], one.outcomes) for one in results], len(rows))


def _by_level(results: Sequence[_Result]) -> dict[str, list[_Result]]:
    """Languages by level, the bands first and in their order, other levels by name."""
    names = [name for name, _ in BANDS]
    found = sorted({one.level for one in results}, key=lambda level: (level not in names, level))
    ordered = [name for name in names if name in found] + [level for level in found if level not in names]
    return {level: [one for one in results if one.level == level] for level in ordered}


def _level_table(by_level: Mapping[str, Sequence[_Result]]) -> Table:
    rows = [
        (
            level,
            f"{len(own)}",
            percent(sum(one.accuracy for one in own) / len(own)),
            percent(sum(one.chance for one in own) / len(own)),
        )
        for level, own in by_level.items()
    ]
    return Table(
        title="Languages other than English by level",
        header=("level", "languages", "mean top-1", "guessing"),
        rows=tuple(rows),
    )


def _language_table(results: Sequence[_Result], title: str) -> Table:
    rows = [
        (
            one.labels.language,
            one.level,
            f"{len(one.labels.classes):,}",
            f"{len(one.rows):,}",
            percent(one.accuracy),
            f"{100 * one.chance:.2f} %",
            percent(one.bound),
        )
        for one in results
    ]
    header = ("language", "level", "classes", "images", "top-1", "guessing", "at most")
    return Table(title=title, header=header, rows=tuple(rows), note="At most: with labels that are shared.")


def _notes(results: Sequence[_Result]) -> Iterator[str]:
    shared = [one for one in results if one.labels.repeated]
    if shared:
        worst = min(shared, key=lambda one: one.bound)
        label, count = next(iter(worst.labels.repeated.items()))
        yield (
            f"In {len(shared)} languages several classes share a label, which bounds their accuracy; most in "
            f"{worst.labels.language}, to {percent(worst.bound)} ({count} classes are {label!r})."
        )
    incomplete = [one for one in results if one.num_empty]
    if incomplete:
        worst = max(incomplete, key=lambda one: one.num_empty)
        yield (
            f"In {len(incomplete)} languages classes without an image stay in the choice; most in "
            f"{worst.labels.language}, {worst.num_empty} of {len(worst.labels.classes)}."
        )
