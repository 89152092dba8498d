"""Descriptions that say nothing about their class: what any result of descriptions is compared with.

Each is a `DescriptionBank`, used in the same `PromptFormat` as the descriptions that it controls for.
"""

from __future__ import annotations

import json
import math
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .descriptions import DescriptionBank, PhraseRule, PromptFormat

WAFFLE_FORMAT = PromptFormat("A photo of a {c}, {d}.", rule=PhraseRule(cases=(), default="which has"))
"""The prompt of WaffleCLIP, for a comparison with its published numbers."""

_SWAPS_PER_DESCRIPTOR = 10
_DRAWS_PER_DESCRIPTOR = 1000


@dataclass(frozen=True)
class WaffleNoise:
    """Random descriptors, the same for every class (WaffleCLIP, arXiv:2306.07282).

    Half of them are random words and half strings of random characters; all are random characters without a
    list of words. Their lengths follow the class names.
    """

    count: int
    """Number of pairs of word and character descriptors, so `2 * count` descriptors."""
    seed: int
    words: tuple[str, ...] = ()
    """To draw from, see `read_words`."""
    alphabet: str = string.ascii_lowercase
    """Characters to draw from; WaffleCLIP takes those of the descriptions, see `alphabet_of`."""

    def __post_init__(self) -> None:
        if self.count < 1 or not self.alphabet:
            raise ValueError(
                f"noise needs a count of at least 1 and an alphabet, got {self.count} and {self.alphabet!r}"
            )

    def descriptors(self, class_names: Sequence[str]) -> tuple[str, ...]:
        """The `2 * count` descriptors, all different; those of words come first.

        Raises:
            ValueError: there are too few words or characters for that many different ones.
        """
        rng = random.Random(f"waffle/{self.seed}")
        lengths = NoiseLengths.of(class_names)
        words = [word.strip()[: lengths.word_length].strip() for word in self.words if word.strip()]
        drawn: dict[str, None] = {}
        num_word_descriptors = self.count if words else 0
        for goal, from_words in ((num_word_descriptors, True), (2 * self.count, False)):
            draws_left = _DRAWS_PER_DESCRIPTOR * self.count
            while len(drawn) < goal and draws_left:
                drawn[self._draw(rng, lengths, words if from_words else [])] = None
                draws_left -= 1
            if len(drawn) < goal:
                source = f"{len(words)} words" if from_words else f"{len(self.alphabet)} characters"
                raise ValueError(f"{source} are too few for a noise count of {self.count}; lower the count")
        return tuple(drawn)

    def _draw(self, rng: random.Random, lengths: NoiseLengths, words: Sequence[str]) -> str:
        if words:
            return " ".join(rng.choices(words, k=lengths.num_words))
        chunks = (
            "".join(rng.choices(self.alphabet, k=lengths.chunk_length)) for _ in range(lengths.num_chunks)
        )
        return ", ".join(chunks)

    def bank(self, class_names: Sequence[str]) -> DescriptionBank:
        """The descriptors as those of every class.

        Raises:
            ValueError: a class is listed twice, and as of `descriptors`.
        """
        bank = DescriptionBank.of(dict.fromkeys(class_names, self.descriptors(class_names)))
        bank.match(class_names)  # refuses a class that is listed twice
        return bank


@dataclass(frozen=True, kw_only=True)
class NoiseLengths:
    """Lengths of the noise for a list of class names, as the published code computes them."""

    num_words: int
    """Mean number of words of a class name, rounded."""
    word_length: int
    """Mean over classes of the mean length of a word, rounded; longer words are cut."""
    num_chunks: int
    """Strings of characters in a descriptor: the mean number of spaces, rounded, and one."""
    chunk_length: int
    """The longest word of a class name, in the mean and rounded up, shared out among the chunks, and one."""

    @classmethod
    def of(cls, class_names: Sequence[str]) -> NoiseLengths:
        """The lengths for some class names, of which there must be one at least."""
        if not class_names:
            raise ValueError("noise takes its lengths from the class names, got none")
        names = [name.replace("_", " ").split() or [""] for name in class_names]
        num_chunks = round(_mean([len(words) - 1 for words in names])) + 1
        longest = math.ceil(_mean([max(map(len, words)) for words in names]))
        return cls(
            num_words=max(1, round(_mean([len(words) for words in names]))),
            word_length=max(1, round(_mean([_mean([len(word) for word in words]) for words in names]))),
            num_chunks=num_chunks,
            chunk_length=longest // num_chunks + 1,
        )


def read_words(path: Path | str) -> tuple[str, ...]:
    """Words from a JSON list of texts, the form of WaffleCLIP's own; blank ones are left out.

    Raises:
        ValueError: the file holds something else, or no word.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} does not parse as JSON: {error}") from None
    if not isinstance(content, list) or not all(isinstance(word, str) for word in content):
        raise ValueError(f"{path} must hold a list of words, got {content!r:.60}")
    words = tuple(dict.fromkeys(word.strip() for word in content if word.strip()))
    if not words:
        raise ValueError(f"{path} must hold a list of words, got an empty one")
    return words


def alphabet_of(bank: DescriptionBank) -> str:
    """The characters of all descriptors, sorted, without blanks, commas and full stops."""
    characters = set("".join(text for row in bank.descriptors for text in row))
    return "".join(sorted(character for character in characters - set(",.") if not character.isspace()))


def matched_count(bank: DescriptionBank) -> int:
    """The count with which noise has as many descriptors a class as the bank in the mean, or one more."""
    return max(1, math.ceil(_mean([len(row) for row in bank.descriptors]) / 2))


def shuffled(bank: DescriptionBank, seed: int) -> DescriptionBank:
    """All descriptors dealt out anew: every class gets as many as it had, and none twice.

    A walk of random swaps from the true assignment. Each descriptor occurs as often as before.
    """
    rng = random.Random(f"shuffled/{seed}")
    owner = [index for index, row in enumerate(bank.descriptors) for _ in row]
    dealt = [descriptor for row in bank.descriptors for descriptor in row]
    held = [set(row) for row in bank.descriptors]
    for _ in range(_SWAPS_PER_DESCRIPTOR * len(dealt)):
        i, j = rng.randrange(len(dealt)), rng.randrange(len(dealt))
        mine, theirs = held[owner[i]], held[owner[j]]
        if dealt[i] in theirs or dealt[j] in mine:
            continue
        mine.discard(dealt[i])
        theirs.discard(dealt[j])
        dealt[i], dealt[j] = dealt[j], dealt[i]
        mine.add(dealt[i])
        theirs.add(dealt[j])
    return replace(bank, descriptors=_dealt_to(bank, dealt))


def swapped(bank: DescriptionBank, seed: int) -> DescriptionBank:
    """Every class gets the whole list of another, in one random cycle.

    Classes without descriptors stay without.

    Raises:
        ValueError: fewer than two classes have descriptors.
    """
    full = [index for index, row in enumerate(bank.descriptors) if row]
    if len(full) < 2:
        raise ValueError(f"swapping needs two classes with descriptors, got {len(full)}")
    cycle = random.Random(f"swapped/{seed}").sample(full, len(full))
    rows = list(bank.descriptors)
    for index, donor in zip(cycle, cycle[1:] + cycle[:1], strict=True):
        rows[index] = bank.descriptors[donor]
    return replace(bank, descriptors=tuple(rows))


def scrambled(bank: DescriptionBank, seed: int) -> DescriptionBank:
    """The words of each class in a random order, cut into descriptors of as many words as before.

    The counts stay, so a class may come to have the same descriptor twice.
    """
    rng = random.Random(f"scrambled/{seed}")
    rows = []
    for row in bank.descriptors:
        words = [word for descriptor in row for word in descriptor.split()]
        rng.shuffle(words)
        remaining = iter(words)
        rows.append(tuple(" ".join(next(remaining) for _ in descriptor.split()) for descriptor in row))
    return replace(bank, descriptors=tuple(rows))


def _dealt_to(bank: DescriptionBank, flat: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    remaining = iter(flat)
    return tuple(tuple(next(remaining) for _ in row) for row in bank.descriptors)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
