"""Referring expressions: which of the candidate regions a text means, by several features of regions."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from clipkit.data.prompted_images import PromptedImages, Region, RegionPrompt
from clipkit.data.samples import Source
from clipkit.visual_prompts import KINDS

from ..region_source import HEAD, TOKENS, Asked, RegionSource
from .base import Features, Measurement, Table, Task
from .referring_files import Question, Questions, read_questions

_ENSEMBLE = "all together"
_OWN = {"region": HEAD, "tokens": TOKENS}
"""Kinds that need no prompted image: features of the region in its whole image."""
_PROMPTED, _WHOLE = "regions", "images"
"""Names of the sources."""


@dataclass(frozen=True, kw_only=True)
class Referring(Task):
    """Accuracy of the region with the highest score (ReCLIP, arXiv:2204.05991; FGVP, arXiv:2306.04356).

    A region's score is the logit of its prompted image, or of its features in the whole image, and the
    expression, summed over the kinds, less its mean with random expressions of the data set, which takes away
    what regions have that match everything.
    """

    summary: ClassVar[str] = "referring expressions: the region that a text means, by visual prompts"

    data: str
    """A `.jsonl` file or shards with regions, see `referring_files`; `scenes` for the built-in data."""
    images: str = ""
    """Folder of the images of a `.jsonl` file; by default the folder of the file."""
    proposals: str = ""
    """Detections in ReCLIP's form, in place of the annotated boxes."""
    kinds: tuple[str, ...] = ("crop", "blur_reverse")
    """Visual prompts: crop, box, circle, blur_reverse, grey_reverse; and from the whole image region, the
    model's region head, and tokens, RoIAlign on the tower's own tokens."""
    sigma: float = 100.0
    """Standard deviation of the blur, in pixels of the stored image."""
    prompt: str = "a photo of {d}"
    """`{d}` stands for the expression."""
    subtract: int = 500
    """Random expressions whose mean score is subtracted; 0 subtracts nothing."""
    seed: int = 0
    """Of the draw of these."""

    def __post_init__(self) -> None:
        known = (*KINDS, *_OWN)
        unknown = [kind for kind in self.kinds if kind not in known]
        if unknown or not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(
                f"kinds must be some of {', '.join(known)}, each once, got {', '.join(self.kinds) or 'none'}"
            )
        if "{d}" not in self.prompt:
            raise ValueError(f"prompt needs {{d}} where the expression goes, got {self.prompt!r}")
        if self.subtract < 0:
            raise ValueError(f"subtract must be >= 0, got {self.subtract}")
        if not self.sigma > 0:
            raise ValueError(f"sigma must be > 0, got {self.sigma}")

    @cached_property
    def _data(self) -> Questions:
        return read_questions(self.data, images=self.images, proposals=self.proposals)

    @cached_property
    def _of_image(self) -> dict[int, dict[Region, None]]:
        """The regions that are asked for of each image."""
        found: dict[int, dict[Region, None]] = {}
        for question in self._data.questions:
            found.setdefault(question.image, {}).update(dict.fromkeys(question.candidates))
        return found

    @cached_property
    def _regions(self) -> dict[tuple[int, Region], int]:
        """A number for each region of each image, image by image; one that is asked for often has one."""
        pairs = [(image, region) for image, regions in self._of_image.items() for region in regions]
        return {pair: number for number, pair in enumerate(pairs)}

    @property
    def _prompted(self) -> tuple[str, ...]:
        """The kinds that show a prompted image to the tower."""
        return tuple(kind for kind in self.kinds if kind not in _OWN)

    def sources(self) -> dict[str, Source]:
        """See `Task`. The json members of shards are read."""
        prompts = []
        number, last = 0, -1
        for image, region in self._regions:
            number, last = (number + 1 if image == last else 0), image
            prompts += [RegionPrompt(image, number, region, kind) for kind in self._prompted]
        found: dict[str, Source] = {}
        if self._prompted:
            found[_PROMPTED] = PromptedImages(self._data.source, prompts, sigma=self.sigma)
        wanted = [_OWN[kind] for kind in self.kinds if kind in _OWN]
        if wanted:
            asked = [Asked(boxes=tuple(regions)) for regions in self._of_image.values()]
            found[_WHOLE] = RegionSource(self._data.source, list(self._of_image), asked, wanted=wanted)
        return found

    def measure(self, features: Features) -> Measurement:
        """See `Task`."""
        of_region = self._region_features(features)
        found = [(question, self._candidates(question, of_region)) for question in self._data.questions]
        usable = [(question, rows) for question, rows in found if rows is not None]
        num_left_out = len(self._data.questions) - len(usable)
        if not usable:
            raise ValueError("no question has all its candidates: none of the images can be used")
        texts = self._texts(features, [question for question, _ in usable])
        bank = self._bank(features)
        outcomes = {
            subtracted: self._outcomes(features.logit_scale, usable, texts, bank if subtracted else None)
            for subtracted in ((True, False) if self.subtract else (False,))
        }
        final = outcomes[bool(self.subtract)]
        named = {"accuracy": final[-1]}
        if self.subtract:
            named["accuracy_without_subtraction"] = outcomes[False][-1]
        if len(self.kinds) > 1:
            named |= {f"accuracy_{kind}": final[column] for column, kind in enumerate(self.kinds)}
        chances = _chances(question for question, _ in usable)
        return Measurement(
            metrics={name: float(values.mean()) for name, values in named.items()},
            outcomes=named,
            chance=dict.fromkeys(named, float(chances.mean())),
            tables=(self._table(outcomes),),
            notes=self._notes([question for question, _ in usable], num_left_out),
        )

    def _region_features(self, features: Features) -> dict[tuple[str, int], Tensor]:
        """(D,) by kind and number of the region; without those of images and regions that cannot be used."""
        found: dict[tuple[str, int], Tensor] = {}
        if self._prompted:
            images = features.images[_PROMPTED]
            for sample, feature in zip(images.samples, images.features, strict=True):
                number, column = divmod(sample.fields["prompt"], len(self._prompted))
                found[self._prompted[column], number] = feature
        if _WHOLE not in features.regions:
            return found
        answers = features.regions[_WHOLE]
        if answers.lacking:
            raise ValueError("; ".join(dict.fromkeys(answers.lacking.values())))
        starts = [0, *itertools.accumulate(map(len, self._of_image.values()))]
        for place, answer in zip(answers.index.tolist(), answers.images, strict=True):
            for kind in (kind for kind in self.kinds if kind in _OWN):
                for row, feature in zip(answer.kept.tolist(), answer.features[_OWN[kind]], strict=True):
                    found[kind, starts[place] + row] = feature
        return found

    def _candidates(self, question: Question, of_region: Mapping[tuple[str, int], Tensor]) -> Tensor | None:
        """(kinds, candidates, D) features, None where one is missing."""
        numbers = [self._regions[question.image, region] for region in question.candidates]
        keys = [(kind, number) for kind in self.kinds for number in numbers]
        if not all(key in of_region for key in keys):
            return None
        return torch.stack([of_region[key] for key in keys]).reshape(len(self.kinds), len(numbers), -1)

    def _texts(self, features: Features, questions: Sequence[Question]) -> Tensor:
        texts = [text for question in questions for text in question.expressions]
        return features.texts([self.prompt.replace("{d}", text) for text in texts])

    def _bank(self, features: Features) -> Tensor | None:
        """(D,) mean feature of the random expressions: its logit is the mean of their logits."""
        if not self.subtract:
            return None
        expressions = self._data.expressions
        drawn = random.Random(f"bank/{self.seed}").sample(expressions, min(self.subtract, len(expressions)))
        return features.texts([self.prompt.replace("{d}", text) for text in drawn]).mean(dim=0)

    def _outcomes(
        self,
        logit_scale: float,
        usable: Sequence[tuple[Question, Tensor]],
        texts: Tensor,
        bank: Tensor | None,
    ) -> Tensor:
        """(kinds and the ensemble, expressions) fp64: 1 where the best candidate is right."""
        directions = (texts if bank is None else texts - bank) * logit_scale
        lengths = [len(question.expressions) for question, _ in usable]
        parts = []
        for (question, candidates), own in zip(usable, torch.split(directions, lengths), strict=True):
            logits = candidates @ own.T
            scores = torch.cat([logits, logits.sum(dim=0, keepdim=True)])
            is_right = torch.zeros(len(question.candidates), dtype=torch.bool)
            is_right[list(question.right)] = True
            parts.append(share_right(scores.transpose(1, 2), is_right))
        return torch.cat(parts, dim=1)

    def _table(self, outcomes: dict[bool, Tensor]) -> Table:
        names = [*self.kinds, *([_ENSEMBLE] if len(self.kinds) > 1 else [])]
        header = {False: "accuracy", True: f"less {self.subtract} random expressions"}
        columns = [subtracted for subtracted in header if subtracted in outcomes]
        return Table(
            title="By visual prompt",
            header=("prompt", *(header[subtracted] for subtracted in columns)),
            rows=tuple(
                (name, *(f"{100 * float(outcomes[subtracted][line].mean()):.1f}" for subtracted in columns))
                for line, name in enumerate(names)
            ),
        )

    def _notes(self, questions: Sequence[Question], num_left_out: int) -> tuple[str, ...]:
        notes = []
        if num_left_out:
            notes.append(
                f"{num_left_out} of {num_left_out + len(questions)} questions are left out, because an image "
                "or region of theirs cannot be used."
            )
        num_expressions = sum(len(question.expressions) for question in questions)
        without = sum(len(question.expressions) for question in questions if not question.right)
        if without:
            notes.append(
                f"No candidate is right for {without} of {num_expressions} expressions, which count as wrong."
            )
        alone = sum(len(question.expressions) for question in questions if len(question.candidates) == 1)
        if alone:
            notes.append(f"{alone} of {num_expressions} expressions have one candidate only.")
        num_known = len(self._data.expressions)
        if self.subtract > num_known:
            notes.append(f"Of {self.subtract} random expressions asked for there are {num_known}.")
        return tuple(notes)


def share_right(scores: Tensor, is_right: Tensor) -> Tensor:
    """Whether the candidate with the highest score is right; several that are equally high share the answer.

    Args:
        scores: (..., K). With NaN among them nothing is right.
        is_right: (K,) bool.

    Returns:
        (...) fp64 in [0, 1].
    """
    best = (scores >= scores.max(dim=-1, keepdim=True).values).double()
    return (best * is_right).sum(dim=-1) / best.sum(dim=-1).clamp(min=1)


def _chances(questions: Iterator[Question]) -> Tensor:
    shares = [
        len(question.right) / len(question.candidates) for question in questions for _ in question.expressions
    ]
    return torch.tensor(shares, dtype=torch.float64)
