"""Descriptions of classes, and the prompts made of them (DCLIP, arXiv:2210.07183)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.suggestions import did_you_mean

_MAX_NAMED = 5


def normalized_name(name: str) -> str:
    """The form in which class names are compared: no case; underscores, hyphens and blanks are one space."""
    return " ".join(re.sub(r"[_-]", " ", name).casefold().split())


@dataclass(frozen=True, kw_only=True)
class DescriptionBank:
    """Descriptors of each class, found by the class's name and never by its place. Made by `read` or `of`."""

    names: tuple[str, ...]
    """(K,) class names, underscores written as spaces, in the order of the file."""
    descriptors: tuple[tuple[str, ...], ...]
    """(K,) descriptors of each class; none means that the class is described by its name alone."""

    @classmethod
    def read(cls, path: Path | str) -> DescriptionBank:
        """A bank from a JSON file `{class: [descriptor, ...]}`, the format of DCLIP and CuPL.

        Args:
            path: of the file; `FILE.json:NAME` for one of several banks `{name: {class: [...]}}`, which is
                how CLIP_benchmark keeps them.

        Raises:
            ValueError: the file does not parse or holds something else, see `of`.
            OSError: it cannot be read.
        """
        file, _, name = str(path).partition(".json:")
        place = Path(f"{file}.json" if name else file)
        try:
            text = place.read_text(encoding="utf-8-sig")
            return cls.of(_one_bank(json.loads(text, object_pairs_hook=_each_once), name))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{place} does not parse as JSON: {error}") from None
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None

    @classmethod
    def of(cls, mapping: Mapping[str, Sequence[str]]) -> DescriptionBank:
        """A bank from a mapping of class names to descriptors.

        Descriptors lose the blanks around them; one that a class has twice is kept once.

        Raises:
            ValueError: there is no class, two names differ only in case or separators, the descriptors of a
                class are no list of texts, or one of them is blank.
        """
        if not isinstance(mapping, Mapping) or not mapping:
            found = "no class" if isinstance(mapping, Mapping) else f"a {type(mapping).__name__}"
            raise ValueError(f'expected descriptions as {{"class": ["descriptor", ...]}}, got {found}')
        _refuse_twice(list(mapping))
        return cls(
            names=tuple(name.replace("_", " ").strip() for name in mapping),
            descriptors=tuple(_cleaned(name, row) for name, row in mapping.items()),
        )

    @property
    def empty(self) -> tuple[str, ...]:
        """Classes without descriptors."""
        return tuple(name for name, row in zip(self.names, self.descriptors, strict=True) if not row)

    def match(self, class_names: Sequence[str], *, allow_extra: bool = False) -> tuple[tuple[str, ...], ...]:
        """Descriptors in the order of a list of class names.

        Args:
            class_names: C names.
            allow_extra: whether the bank may describe more than these classes.

        Returns:
            (C,) descriptors of each class, none where the bank has an empty list.

        Raises:
            ValueError: a class is listed twice or is not in the bank, or the bank has others.
        """
        _refuse_twice(class_names)
        own = {normalized_name(name): row for name, row in zip(self.names, self.descriptors, strict=True)}
        wanted = {normalized_name(name): name for name in class_names}
        missing = [name for key, name in wanted.items() if key not in own]
        extra = [name for name in self.names if normalized_name(name) not in wanted]
        problems = []
        if extra and not allow_extra:
            problems.append(f"no class is called {_named(extra)}")
        if missing:
            # A name that is described and no class is what a misspelt one was meant to be.
            hint = did_you_mean(missing[0], extra) if len(missing) == 1 else ""
            problems.append(f"no descriptions of {_named(missing)} (give an empty list for none){hint}")
        if problems:
            raise ValueError(f"descriptions must be of the {len(wanted)} classes: {'; '.join(problems)}")
        return tuple(own[key] for key in wanted)


@dataclass(frozen=True)
class PhraseRule:
    """How a descriptor is joined to a class name, by its first word."""

    cases: tuple[tuple[tuple[str, ...], str], ...]
    """In their order: first words, and what is put before a descriptor that begins with one of them."""
    default: str
    """What is put before every other descriptor; an empty text for nothing."""

    def phrase(self, descriptor: str) -> str:
        """The descriptor with what joins it: "two legs" becomes "which has two legs"."""
        for words, joiner in self.cases:
            # "a" is no first word of "a-frame roof", nor "an" of "antennae".
            if re.match(rf"(?:{'|'.join(map(re.escape, words))})(?![\w-])", descriptor, re.IGNORECASE):
                return f"{joiner} {descriptor}".lstrip()
        return f"{self.default} {descriptor}".lstrip()


DCLIP_RULE = PhraseRule(
    cases=(
        (("a", "an"), "which is"),
        (("has", "often", "typically", "may", "can"), "which"),
        (("used",), "which is"),
    ),
    default="which has",
)
"""DCLIP's rule with whole words. The published code tests whether a descriptor begins with the letter a, so
that it says "which is antennae"."""

NO_PHRASE = PhraseRule(cases=(), default="")
"""Descriptors as they are."""

_PLACE = re.compile(r"\{([^{}]*)\}")
_DESCRIPTOR_PLACE = re.compile(r"\s*[,;:(]?\s*\{d\}\)?")


@dataclass(frozen=True)
class PromptFormat:
    """How prompts are made of class names and descriptors."""

    template: str = "{c}, {d}."
    """`{c}` stands for the class name and `{d}` for the descriptor. Without `{d}` a class has one prompt;
    without `{c}`, for descriptions that are whole sentences, they stay as they are."""
    rule: PhraseRule = DCLIP_RULE
    """Joins descriptors to the name; not used by a template without `{c}`."""
    name_template: str = ""
    """For classes without descriptors; by default `template` without `{d}` and the punctuation before it."""

    def __post_init__(self) -> None:
        for template in (self.template, self.name_template):
            unknown = [place for place in _PLACE.findall(template) if place not in ("c", "d")]
            if unknown:
                raise ValueError(
                    f"a template may hold {{c}} (class) and {{d}} (descriptor), got {{{unknown[0]}}} "
                    f"in {template!r}"
                )
        if not _PLACE.search(self.template):
            raise ValueError(f"a template needs {{c}} where the class name goes, got {self.template!r}")
        if self.name_template and ("{c}" not in self.name_template or "{d}" in self.name_template):
            raise ValueError(f"a name template needs {{c}} and no {{d}}, got {self.name_template!r}")

    def prompt(self, name: str, descriptor: str = "") -> str:
        """The prompt of a class and one of its descriptors, or of the class alone."""
        template = self.template if descriptor else self._for_names()
        joined = self.rule.phrase(descriptor) if "{c}" in template else descriptor
        # In one pass, so that braces in a descriptor stay what they are.
        return _PLACE.sub(lambda place: name if place[1] == "c" else joined, template)

    def _for_names(self) -> str:
        template = self.name_template or _DESCRIPTOR_PLACE.sub("", self.template).strip()
        return template if "{c}" in template else "{c}"

    def prompts(
        self, class_names: Sequence[str], bank: DescriptionBank, *, allow_extra: bool = False
    ) -> tuple[list[str], Tensor]:
        """All prompts of all classes.

        Args:
            class_names: C names; they appear in the prompts as they are given.
            bank: their descriptors.
            allow_extra: whether the bank may describe more classes.

        Returns:
            P prompts, grouped by class, and (P,) int64, the class of each. Every class has at least one.

        Raises:
            ValueError: classes and bank do not fit, see `DescriptionBank.match`.
        """
        pairs = list(self._pairs(bank.match(class_names, allow_extra=allow_extra)))
        prompts = [self.prompt(class_names[index], descriptor) for index, descriptor in pairs]
        return prompts, torch.tensor([index for index, _ in pairs], dtype=torch.int64)

    def descriptors(
        self, class_names: Sequence[str], bank: DescriptionBank, *, allow_extra: bool = False
    ) -> list[str]:
        """The P descriptors as they are in the bank, in the order of `prompts`; "" where there is none."""
        pairs = self._pairs(bank.match(class_names, allow_extra=allow_extra))
        return [descriptor for _, descriptor in pairs]

    def _pairs(self, descriptors: Sequence[Sequence[str]]) -> Iterator[tuple[int, str]]:
        for index, row in enumerate(descriptors):
            for descriptor in row if row and "{d}" in self.template else ("",):
                yield index, descriptor


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object in a JSON file; `json` alone would keep the last of two equal keys and say nothing."""
    _refuse_twice([name for name, _ in pairs])
    return dict(pairs)


def _one_bank(content: Any, name: str) -> Any:
    """The bank of a name, where a file holds several."""
    is_several = isinstance(content, Mapping) and any(isinstance(bank, Mapping) for bank in content.values())
    if not is_several and not name:
        return content
    if not is_several or name not in content:
        choices = f"; name one as FILE.json:NAME, of {_named(list(content))}" if is_several else ""
        raise ValueError(f"there is no bank called {name!r}{choices}")
    return content[name]


def _refuse_twice(names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        key = normalized_name(name)
        if key in seen:
            spelt = f", as {seen[key]!r} and {name!r}" if seen[key] != name else ""
            raise ValueError(f"class {seen[key]!r} is listed twice{spelt}; name every class once")
        seen[key] = name


def _cleaned(name: str, descriptors: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(descriptors, (list, tuple)) or not all(isinstance(text, str) for text in descriptors):
        raise ValueError(f"the descriptors of {name!r} must be a list of texts, got {descriptors!r:.60}")
    stripped = [text.strip() for text in descriptors]
    if not all(stripped):
        raise ValueError(
            f"class {name!r} has a blank descriptor; take it out, an empty list means the name alone"
        )
    return tuple(dict.fromkeys(stripped))


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_MAX_NAMED])
    return shown if len(names) <= _MAX_NAMED else f"{shown} and {len(names) - _MAX_NAMED} more"
