"""Description classification beside its controls: names alone, noise, and descriptors of other classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.metrics import label_ranks

from ..controls import WaffleNoise, alphabet_of, matched_count, scrambled, shuffled, swapped
from ..descriptions import DescriptionBank, PromptFormat
from ..scoring import max_scores, mean_scores, weighted_scores
from .base import Measurement, TextFeatures
from .compared import Comparison, Labelled, Method, verdict

CONTROLS = {"shuffled": shuffled, "swapped": swapped, "scrambled": scrambled}
"""Descriptors of the bank itself, put where they do not belong."""

_KINDS = {"mean": "", "max": ", the best prompt counts", "weighted": ", names added"}
"""Ways to make a score of the cosines with the prompts of a class, and what the table says of them."""
_HEADER = ("prompts", "a class", "top-1 [95 %]", "over seeds", "descriptions minus this [95 %]")
_NOTE = (
    "Noise is random descriptors, as many for every class as it has descriptions in the mean or one more; "
    "shuffled, every descriptor goes to a random class; swapped, each class has those of another; scrambled, "
    "the words of a class are mixed, which leaves what they say but for their order. Controls are means over "
    "their seeds. Differences are between equal ways of scoring, in points, over the same images."
)


@dataclass(frozen=True, kw_only=True)
class ControlOptions:
    """How the controls are drawn and the scores made."""

    seeds: int = 5
    """How often each control is drawn."""
    words: tuple[str, ...] = ()
    """What half of the noise is made of; none for random characters alone."""
    name_weight: float = 1.0
    """Of the names alone where they are added to descriptions, and likewise to noise."""


def compare_controls(
    test: Labelled,
    bank: DescriptionBank,
    prompt_format: PromptFormat,
    texts: TextFeatures,
    options: ControlOptions,
) -> Measurement:
    """Top-1 by descriptions and by all that descriptions have to beat.

    Args:
        test: images to classify.
        bank: of the classes, in the order of the labels.
        prompt_format: of descriptions and controls alike.
        texts: of the model.
        options: of the controls.

    Returns:
        `acc1` and `names_acc1`; `noise_acc1`, `shuffled_acc1`, `swapped_acc1`, `scrambled_acc1` in the mean
        over seeds; `max_acc1` and `weighted_acc1` with noise of their own; the differences.
    """
    captions = texts([prompt_format.prompt(name) for name in bank.names])
    scorer = _Scorer(test, bank.names, texts, test.features @ captions.T, options.name_weight)
    # Whole sentences have no place for the class name, without which noise would say the same of all classes.
    noise_format = prompt_format if "{c}" in prompt_format.template else PromptFormat()
    noise_banks = [
        WaffleNoise(matched_count(bank), seed, options.words, alphabet_of(bank)).bank(bank.names)
        for seed in range(options.seeds)
    ]
    own = scorer.methods("descriptions", [bank], prompt_format)
    noise = scorer.methods("noise", noise_banks, noise_format)
    found = {
        "acc1": own["mean"],
        "names_acc1": scorer.names_alone(),
        "noise_acc1": noise["mean"],
    }
    for name, control in CONTROLS.items():
        banks = [control(bank, seed) for seed in range(options.seeds)]
        found[f"{name}_acc1"] = scorer.methods(name, banks, prompt_format, kinds=("mean",))["mean"]
    pairs = {f"difference_to_{name.removesuffix('_acc1')}": ("acc1", name) for name in list(found)[1:]}
    for kind in ("max", "weighted"):
        found |= {f"{kind}_acc1": own[kind], f"noise_{kind}_acc1": noise[kind]}
        pairs[f"{kind}_difference_to_noise"] = (f"{kind}_acc1", f"noise_{kind}_acc1")
    comparison = Comparison(methods=found, pairs=pairs)
    return comparison.measurement(
        chance=1 / len(bank.names),
        tables=[comparison.table("Descriptions and their controls", _HEADER, _NOTE)],
        notes=list(_notes(comparison, bank, prompt_format, options)),
    )


@dataclass(frozen=True)
class _Scorer:
    """Classifies the test images by prompts."""

    test: Labelled
    class_names: tuple[str, ...]
    texts: TextFeatures
    name_scores: Tensor
    """(N, C), cosines with one prompt a class, without a descriptor."""
    name_weight: float

    def names_alone(self) -> Method:
        """What needs no descriptions."""
        return Method(shown="names alone", detail="1", right=self._right(self.name_scores)[None])

    def methods(
        self,
        shown: str,
        banks: Sequence[DescriptionBank],
        prompt_format: PromptFormat,
        *,
        kinds: Sequence[str] = tuple(_KINDS),
    ) -> dict[str, Method]:
        """By kind of score, the prompts of a bank for each seed."""
        right: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
        num_prompts = 0
        for bank in banks:
            prompts, class_of_prompt = prompt_format.prompts(self.class_names, bank)
            num_prompts += len(prompts)
            features = self.texts(prompts)
            scores = {"mean": mean_scores(self.test.features, features, class_of_prompt, len(bank.names))}
            if "max" in kinds:
                scores["max"] = max_scores(self.test.features, features, class_of_prompt, len(bank.names))
            if "weighted" in kinds:
                scores["weighted"] = weighted_scores(self.name_scores, scores["mean"], self.name_weight)
            for kind in kinds:
                right[kind].append(self._right(scores[kind]))
        detail = f"{num_prompts / len(banks) / len(self.class_names):.3g}"
        return {
            kind: Method(shown=shown + _KINDS[kind], detail=detail, right=torch.stack(right[kind]))
            for kind in kinds
        }

    def _right(self, scores: Tensor) -> Tensor:
        return (label_ranks(scores, self.test.labels) == 0).double()


def _notes(
    comparison: Comparison, bank: DescriptionBank, prompt_format: PromptFormat, options: ControlOptions
) -> Iterator[str]:
    yield verdict(
        "Descriptions help",
        "Descriptions do not help",
        {
            "noise of the same number": comparison.difference("difference_to_noise"),
            "the names alone": comparison.difference("difference_to_names"),
        },
    )
    if not options.words:
        yield "Noise is random characters alone; with a list of words (setting words) half of it is words."
    if "{c}" not in prompt_format.template:
        yield f"Noise is put into {PromptFormat().template!r}, as sentences have no place for the class name."
    if bank.empty:
        yield f"{len(bank.empty)} of {len(bank.names)} classes have no descriptor and go by their names."
