"""Questions of MVL-SIB (arXiv:2502.12852): sentences of SIB-200 in many languages, images of their topics."""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from clipkit.data.image_files import EXTENSIONS
from clipkit.suggestions import did_you_mean

SPLITS = ("train", "dev", "test")
NUM_CANDIDATES, NUM_DRAWS = 4, 3
DIRECTIONS = {
    "img2sent": ("images", "sentences"),
    "sent2img": ("sentences", "images"),
    "topic2sent": ("topics", "sentences"),
    "sent2topic": ("sentences", "topics"),
}
"""What is asked by, and what is chosen from, by the names of the release."""

_COLUMNS = ["index_id", "category", "text"]

Option = TypeVar("Option")


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """The sentences of one language, by rising `index_id`."""

    ids: tuple[int, ...]
    topics: tuple[str, ...]
    """`science/technology` is called `science`, as its images are."""
    texts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TopicQuestions:
    """Questions that are the same in all languages, as places in their sentences, in the images or topics."""

    sentences: tuple[int, ...]
    """(N,) the sentence that each was made for."""
    references: tuple[tuple[int, ...], ...]
    """(N, k)."""
    candidates: tuple[tuple[int, ...], ...]
    """(N, 4), the right one first."""


def language_folders(folder: Path, wanted: Sequence[str]) -> dict[str, Path]:
    """Folders with the files of a language, in the order of their names.

    Args:
        folder: holds `eng_Latn/train.tsv`, `dev.tsv` and `test.tsv`, and so for every language.
        wanted: names of languages; all without.

    Raises:
        ValueError: there is none, or not one that is wanted.
        OSError: there is no such folder.
    """
    found = {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{SPLITS[-1]}.tsv"))}
    if not found:
        raise ValueError(
            f"expected folders of languages such as {folder / 'eng_Latn' / 'test.tsv'}, found none"
        )
    for language in wanted:
        if language not in found:
            raise ValueError(f"{folder} has no language {language!r}{did_you_mean(language, found)}")
    return {language: path for language, path in found.items() if not wanted or language in wanted}


def read_languages(folders: Mapping[str, Path]) -> dict[str, Sentences]:
    """The sentences of each language.

    Raises:
        ValueError: two languages differ in the ids or topics of their sentences.
    """
    languages = {language: read_sentences(folder) for language, folder in folders.items()}
    first, expected = next(iter(languages.items()))
    for language, sentences in languages.items():
        if (sentences.ids, sentences.topics) != (expected.ids, expected.topics):
            raise ValueError(
                f"{folders[language]} must have the ids and categories of {first}, so that the questions are "
                f"the same; {len(sentences.ids)} sentences against {len(expected.ids)}"
            )
    return languages


def read_sentences(folder: Path) -> Sentences:
    """The sentences of a language, of all three splits (SIB-200's tab-separated files).

    Raises:
        ValueError: a row is incomplete or an id occurs twice.
        OSError: a file is missing.
    """
    rows: dict[int, tuple[str, str]] = {}
    for split in SPLITS:
        path = folder / f"{split}.tsv"
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter="\t")
            header = next(reader, [])
            if header != _COLUMNS:
                raise ValueError(f"{path} must have the columns {', '.join(_COLUMNS)}, got {header!r:.80}")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                is_row = len(row) == len(_COLUMNS) and row[0].isdecimal() and all(map(str.strip, row))
                if not is_row or "\n" in row[2]:  # a quotation mark that is not closed swallows lines
                    raise ValueError(f"{where} must hold a number, a category and a text, got {row!r:.80}")
                if int(row[0]) in rows:
                    raise ValueError(f"{where}: the sentence {row[0]} occurs twice")
                rows[int(row[0])] = (row[1].partition("/")[0].strip(), row[2].strip())
    ids = sorted(rows)
    return Sentences(
        ids=tuple(ids),
        topics=tuple(rows[number][0] for number in ids),
        texts=tuple(rows[number][1] for number in ids),
    )


def topic_images(folder: Path, topics: Sequence[str]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Images named `TOPIC_n.jpg`, and the topic of each.

    Raises:
        ValueError: a topic has none.
        OSError: there is no such folder.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)
    found = [(path, topic) for path in files if (topic := path.stem.rpartition("_")[0]) in topics]
    missing = sorted(set(topics) - {topic for _, topic in found})
    if missing:
        raise ValueError(
            f"{folder} has no images of the topic {missing[0]!r}, such as {missing[0]}_0.jpg; name their "
            "folder by the setting images"
        )
    return tuple(path for path, _ in found), tuple(topic for _, topic in found)


def draw_questions(
    sentences: Sentences, images: Sequence[str], *, direction: str, num_references: int, seed: int
) -> TopicQuestions:
    """Three questions for every sentence; they depend on ids, topics and the seed, not on the language.

    The sentence is the right candidate, or the first of the references. The wrong candidates are of three
    other topics, one each.

    Args:
        sentences: of any language.
        images: the topic of each image.
        direction: a key of `DIRECTIONS`.
        num_references: k; a topic's name stands alone.
        seed: of the draws.

    Raises:
        ValueError: there are fewer than four topics, or a topic has fewer than k references.
    """
    topics = sorted(set(sentences.topics))
    if len(topics) < NUM_CANDIDATES:
        raise ValueError(f"questions need {NUM_CANDIDATES} topics, got {', '.join(topics)}")
    pools = {
        "sentences": _by_topic(sentences.topics),
        "images": _by_topic(images),
        "topics": _by_topic(topics),
    }
    asked, chosen = DIRECTIONS[direction]
    num_references = 1 if asked == "topics" else num_references
    few = [topic for topic in topics if len(pools[asked].get(topic, ())) < num_references]
    if few:
        raise ValueError(f"the topic {few[0]!r} has fewer than {num_references} {asked} to ask by")
    references, candidates, own_sentences = [], [], []
    for draw in range(NUM_DRAWS):
        for place, (number, topic) in enumerate(zip(sentences.ids, sentences.topics, strict=True)):
            rng = random.Random(f"{seed}/{number}/{draw}")
            own = [place] if asked == "sentences" else []
            rest = [row for row in pools[asked][topic] if row not in own]
            references.append((*own, *_draw(rng, rest, num_references - len(own))))
            right = place if chosen == "sentences" else _draw(rng, pools[chosen][topic], 1)[0]
            others = _draw(rng, [other for other in topics if other != topic], NUM_CANDIDATES - 1)
            candidates.append((right, *(_draw(rng, pools[chosen][other], 1)[0] for other in others)))
            own_sentences.append(place)
    return TopicQuestions(
        sentences=tuple(own_sentences), references=tuple(references), candidates=tuple(candidates)
    )


def _by_topic(topics: Sequence[str]) -> Mapping[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, topic in enumerate(topics):
        places.setdefault(topic, []).append(place)
    return places


def _draw(rng: random.Random, options: Sequence[Option], number: int) -> list[Option]:
    """Some of the options, each at most once; by `random()` alone, whose values no Python version changes."""
    left = list(options)
    return [left.pop(int(rng.random() * len(left))) for _ in range(number)]
