"""Class labels, prompts and resource levels by language, as Babel-ImageNet (arXiv:2306.08658) has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.suggestions import did_you_mean

from .paired_files import read_json_value, texts_field

BANDS = (("high", 300), ("mid", 100), ("low", 1))
"""Levels of languages by their number of translated classes, at least the number beside the name."""

_ENGLISH = ("en", "eng", "eng_latn", "english")


@dataclass(frozen=True, kw_only=True)
class LanguageLabels:
    """The classes that have a name in one language."""

    language: str
    classes: tuple[int, ...]
    """(C,) numbers of the classes among all."""
    labels: tuple[str, ...]
    """(C,) their names."""

    @property
    def repeated(self) -> dict[str, int]:
        """Labels that several classes share, with how many; these cannot be told apart."""
        return {label: count for label, count in Counter(self.labels).items() if count > 1}


def is_english(language: str) -> bool:
    """Whether a code stands for English."""
    return language.casefold() in _ENGLISH


def read_labels(path: Path) -> dict[str, LanguageLabels]:
    """Labels from a file `{LANGUAGE: [[class number, ...], [label, ...]]}`, in its order.

    Raises:
        ValueError: it does not parse, or a language has a class twice, a blank label, or unequal lists.
        OSError: it cannot be read.
    """
    content = _by_language(path, "{LANGUAGE: [[class number, ...], [label, ...]]}")
    return {language: _labels(f"{path}: {language}", language, value) for language, value in content.items()}


def _labels(where: str, language: str, value: Any) -> LanguageLabels:
    is_two_lists = (
        isinstance(value, list) and len(value) == 2 and all(isinstance(part, list) for part in value)
    )
    if not is_two_lists or not value[0] or len(value[0]) != len(value[1]):
        raise ValueError(f"{where} must be two lists of one length, [numbers, labels], got {value!r:.60}")
    classes, labels = value
    if not all(type(number) is int and number >= 0 for number in classes):
        raise ValueError(f"{where} must number classes from 0, got {classes!r:.60}")
    twice = [number for number, count in Counter(classes).items() if count > 1]
    if twice:
        raise ValueError(f"{where} has class {twice[0]} twice")
    if not all(isinstance(label, str) and label.strip() for label in labels):
        raise ValueError(f"{where} has a label that is blank or no text")
    return LanguageLabels(language=language, classes=tuple(classes), labels=tuple(labels))


def chosen_languages(known: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The languages that were asked for, whatever their case, in the order of the file; all without a wish.

    Raises:
        ValueError: one is not known.
    """
    by_fold = {language.casefold(): language for language in known}
    for language in wanted:
        if language.casefold() not in by_fold:
            raise ValueError(
                f"no labels in the language {language!r}{did_you_mean(language, known)}; there are "
                f"{len(known)}, such as {', '.join(known[:5])}"
            )
    folded = {language.casefold() for language in wanted}
    return [language for language in known if not folded or language.casefold() in folded]


def read_prompts(path: Path) -> dict[str, tuple[str, ...]]:
    """Templates from a file `{LANGUAGE: [template, ...]}` with `{}` for the label, which becomes `{c}`.

    Raises:
        ValueError: it does not parse, or a template has no place for the label.
        OSError: it cannot be read.
    """
    content = _by_language(path, "{LANGUAGE: [template, ...]}")
    prompts = {}
    for language in content:
        templates = [text.replace("{}", "{c}") for text in texts_field(str(path), content, language)]
        lacking = [template for template in templates if "{c}" not in template]
        if lacking:
            raise ValueError(
                f"{path}: a template of {language} has no {{}} for the label: {lacking[0]!r:.60}"
            )
        prompts[language] = tuple(templates)
    return prompts


def read_levels(path: Path) -> dict[str, str]:
    """Resource levels from a file `{LANGUAGE: level}`.

    Raises:
        ValueError: it does not parse or holds something else.
        OSError: it cannot be read.
    """
    content = _by_language(path, "{LANGUAGE: level}")
    if not all(isinstance(level, str | int) for level in content.values()):
        raise ValueError(f"{path} must hold {{LANGUAGE: level}} with a text or number for every language")
    return {language: str(level) for language, level in content.items()}


def level_of_size(num_classes: int) -> str:
    """The level of a language by its number of translated classes, see `BANDS`."""
    return next(name for name, at_least in BANDS if num_classes >= at_least)


def _by_language(path: Path, form: str) -> Mapping[str, Any]:
    content = read_json_value(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} must hold {form}, got {content!r:.60}")
    return content
