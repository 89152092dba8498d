"""Multiple-choice questions of the user's own, one a line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .paired_files import images_beside, read_json_lines, text_field, texts_field


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked by and chosen from; both are texts, or keys of images."""

    references: tuple[str, ...]
    by_images: bool
    candidates: tuple[str, ...]
    of_images: bool
    answer: int
    """Place of the right candidate."""
    language: str

    @property
    def image_keys(self) -> tuple[str, ...]:
        """The images that it needs."""
        return (self.references if self.by_images else ()) + (self.candidates if self.of_images else ())

    @property
    def all_texts(self) -> tuple[str, ...]:
        """The texts in it."""
        return (() if self.by_images else self.references) + (() if self.of_images else self.candidates)

    @property
    def right_first(self) -> tuple[str, ...]:
        """The candidates, with the right one before the others."""
        others = self.candidates[: self.answer] + self.candidates[self.answer + 1 :]
        return (self.candidates[self.answer], *others)


def read_questions(path: Path, images: Path | None) -> list[Question]:
    """Lines such as `{"images": ["a.jpg"], "candidate_texts": ["a dog", "a cat"], "answer": 0}`.

    Each has one of `images` and `texts` to ask by, one of `candidate_images` and `candidate_texts` to choose
    from, `answer`, the place of the right candidate from 0, and perhaps `language`, by which it is counted.

    Args:
        path: the file.
        images: folder that images are named from; default: `images` beside the file, else its folder.

    Raises:
        ValueError: a line is incomplete, or its answer is no candidate.
        OSError: the file cannot be read.
    """
    folder = images_beside(images, path)
    return [_question(where, entry, folder) for where, entry in read_json_lines(path)]


def _question(where: str, entry: Mapping[str, Any], folder: Path) -> Question:
    references, by_images = _either(where, entry, "", folder)
    candidates, of_images = _either(where, entry, "candidate_", folder)
    answer = entry.get("answer")
    if type(answer) is not int or not 0 <= answer < len(candidates):
        raise ValueError(f"{where} needs an 'answer' of 0 to {len(candidates) - 1}, got {answer!r:.40}")
    if len(candidates) < 2:
        raise ValueError(f"{where} needs at least two candidates, got {candidates[0]!r:.60}")
    return Question(
        references=references,
        by_images=by_images,
        candidates=candidates,
        of_images=of_images,
        answer=answer,
        language=text_field(where, entry, "language") if "language" in entry else "",
    )


def _either(where: str, entry: Mapping[str, Any], prefix: str, folder: Path) -> tuple[tuple[str, ...], bool]:
    """The texts, or the keys of the images, whichever of the two fields there is."""
    names = [name for name in (f"{prefix}images", f"{prefix}texts") if name in entry]
    if len(names) != 1:
        raise ValueError(f"{where} needs one of '{prefix}images' and '{prefix}texts', has {', '.join(entry)}")
    values = texts_field(where, entry, names[0])
    is_images = names[0].endswith("images")
    return tuple(str(folder / value) for value in values) if is_images else values, is_images
