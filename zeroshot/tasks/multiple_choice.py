"""One right candidate of several, by references: MVL-SIB, and questions of your own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from clipkit.data.samples import Source
from clipkit.paired_metrics import choice_chance, choice_outcomes, mean_of_groups

from ..scoring import class_means
from .base import Features, ImageSet, Measurement, Table, Task
from .counts import accuracy_table, rows_by_group, usable_items
from .paired_files import image_source
from .question_files import Question, read_questions
from .topic_files import (
    DIRECTIONS,
    Sentences,
    TopicQuestions,
    draw_questions,
    language_folders,
    read_languages,
    topic_images,
)


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(Task):
    """Which candidate is nearest to the mean of the references' unit vectors, by cosine; ties are wrong.

    MVL-SIB (arXiv:2502.12852) asks for what shares the topic of the references, three times for each of the
    1,004 sentences of SIB-200 in each of 205 languages, the same questions in all of them. Its release draws
    the wrong candidates by a script of its own; here they follow from the ids of the sentences and `seed`, so
    that accuracies compare with others of this task. `acc` is the mean over questions, and so over languages;
    its items are the sentences.
    """

    summary: ClassVar[str] = "one of four candidates that shares the topic of the references, by language"

    data: Path
    """Folder of MVL-SIB or SIB-200 with a folder for every language (`eng_Latn/train.tsv`, `dev.tsv`,
    `test.tsv`: `index_id`, `category`, `text`), or your own `.jsonl`: {"images": [...] or "texts": [...],
    "candidate_images": [...] or "candidate_texts": [...], "answer": 0, "language"} a line."""
    images: Path | None = None
    """Folder of the images: `TOPIC_n.jpg` for MVL-SIB, whose release has them in `images/sib200` beside the
    folder `sib200` of the sentences; for your own file by default `images` beside it, else its folder."""
    direction: str = "img2sent"
    """MVL-SIB: `img2sent`, `sent2img`, `topic2sent` or `sent2topic`; the last two need no images."""
    num_references: int = 1
    """MVL-SIB: images or sentences to ask by."""
    languages: tuple[str, ...] = ()
    """Languages to measure, such as `eng_Latn`; default: all."""
    seed: int = 0
    """MVL-SIB: of the draws of references and wrong candidates."""

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {self.direction!r}")
        if self.num_references < 1:
            raise ValueError(f"num_references must be >= 1, got {self.num_references}")

    @property
    def _is_lines(self) -> bool:
        return self.data.suffix == ".jsonl"

    @functools.cached_property
    def _questions(self) -> list[Question]:
        questions = read_questions(self.data, self.images)
        known = sorted({question.language for question in questions})
        missing = set(self.languages) - set(known)
        if missing:
            raise ValueError(f"{self.data} has no language {min(missing)!r}, it has {', '.join(known)}")
        return [one for one in questions if not self.languages or one.language in self.languages]

    @functools.cached_property
    def _sentences(self) -> dict[str, Sentences]:
        return read_languages(language_folders(self.data, self.languages))

    @functools.cached_property
    def _topic_questions(self) -> tuple[TopicQuestions, tuple[Path, ...]]:
        """The questions of all languages, and the images in them; none where no image is needed."""
        first = next(iter(self._sentences.values()))
        paths: tuple[Path, ...] = ()
        topics: tuple[str, ...] = ()
        if "images" in DIRECTIONS[self.direction]:
            beside = self.data.parent / "images" / self.data.name
            folder = self.images or (beside if beside.is_dir() else self.data / "images")
            paths, topics = topic_images(folder, sorted(set(first.topics)))
        questions = draw_questions(
            first, topics, direction=self.direction, num_references=self.num_references, seed=self.seed
        )
        return questions, paths

    def sources(self) -> dict[str, Source]:
        """See `Task`; nothing where no image is needed."""
        if self._is_lines:
            paths = [Path(key) for question in self._questions for key in question.image_keys]
        else:
            paths = list(self._topic_questions[1])
        return {"images": image_source(paths, folder=paths[0].parent)} if paths else {}

    def measure(self, features: Features) -> Measurement:
        """See `Task`."""
        images = features.only if features.images else None
        return self._of_lines(features, images) if self._is_lines else self._of_topics(features, images)

    def _of_lines(self, features: Features, images: ImageSet | None) -> Measurement:
        rows = {} if images is None else images.rows
        questions, notes = usable_items(self._questions, lambda question: question.image_keys, rows)
        texts = [text for one in questions for text in one.all_texts]
        places = {text: len(rows) + place for place, text in enumerate(dict.fromkeys(texts))}
        pools = [] if images is None else [images.features]
        pool = torch.cat([*pools, features.texts(list(places))] if places else pools)
        choices = _Choices.of(
            [[(rows if one.by_images else places)[name] for name in one.references] for one in questions],
            [[(rows if one.of_images else places)[name] for name in one.right_first] for one in questions],
        )
        outcomes = choices.outcomes(pool, pool)
        members = rows_by_group([question.language or "-" for question in questions])
        table = accuracy_table("By language", "language", outcomes, members)
        return _measurement(outcomes, choices.chance, table, notes)

    def _of_topics(self, features: Features, images: ImageSet | None) -> Measurement:
        drawn, paths = self._topic_questions
        asked, chosen = DIRECTIONS[self.direction]
        rows = {} if images is None else images.rows

        def keys_of(number: int) -> list[str]:
            own = drawn.references[number] if asked == "images" else ()
            own += drawn.candidates[number] if chosen == "images" else ()
            return [str(paths[place]) for place in own]

        kept, notes = usable_items(range(len(drawn.sentences)), keys_of, rows)
        choices = _Choices.of([drawn.references[n] for n in kept], [drawn.candidates[n] for n in kept])
        first = next(iter(self._sentences.values()))
        pools = {"topics": features.texts(sorted(set(first.topics)))} if "topics" in (asked, chosen) else {}
        if images is not None:
            # No question that is kept asks for a missing image, so that any row can stand for it.
            pools["images"] = images.features[[rows.get(str(path), 0) for path in paths]]
        found = []
        for sentences in self._sentences.values():
            pools["sentences"] = features.texts(sentences.texts)
            found.append(choices.outcomes(pools[asked], pools[chosen]))
        owners = torch.tensor([drawn.sentences[n] for n in kept])
        kept_sentences, places = torch.unique(owners, return_inverse=True)
        outcomes = mean_of_groups([(places, values) for values in found], len(kept_sentences))
        rows_of_languages = torch.split(torch.arange(len(found) * len(kept)), len(kept))
        members = dict(zip(self._sentences, rows_of_languages, strict=True))
        table = accuracy_table("By language", "language", torch.cat(found), members)
        note = "Intervals by language take the three questions of a sentence for independent."
        return _measurement(outcomes, choices.chance, table, (*notes, note))


@dataclass(frozen=True, kw_only=True)
class _Choices:
    """Questions as rows of features, flat, so that each may have any number of references and candidates."""

    references: Tensor
    item_of_reference: Tensor
    right: Tensor
    wrong: Tensor
    item_of_wrong: Tensor

    @classmethod
    def of(cls, references: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]) -> _Choices:
        """Questions from the rows of each one's references, and of its candidates, the right one first."""
        return cls(
            references=torch.tensor([row for own in references for row in own]),
            item_of_reference=torch.tensor([item for item, own in enumerate(references) for _ in own]),
            right=torch.tensor([own[0] for own in candidates]),
            wrong=torch.tensor([row for own in candidates for row in own[1:]]),
            item_of_wrong=torch.tensor([item for item, own in enumerate(candidates) for _ in own[1:]]),
        )

    def outcomes(self, reference_features: Tensor, candidate_features: Tensor) -> Tensor:
        """(N,) fp64 of 0 and 1."""
        num_items = len(self.right)
        queries = class_means(reference_features[self.references], self.item_of_reference, num_items)
        return choice_outcomes(queries, candidate_features, self.right, self.wrong, self.item_of_wrong)

    @property
    def chance(self) -> float:
        return float(choice_chance(self.item_of_wrong, len(self.right)).mean())


def _measurement(outcomes: Tensor, chance: float, table: Table, notes: tuple[str, ...]) -> Measurement:
    return Measurement(
        metrics={"acc": float(outcomes.mean())},
        outcomes={"acc": outcomes},
        chance={"acc": chance},
        tables=(table,) if len(table.rows) > 1 else (),
        notes=notes,
    )
