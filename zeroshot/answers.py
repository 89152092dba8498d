"""What a classifier says of pictures, as data and as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from .classifier import Classifier
from .scoring import ClassExplanation, explain


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A class for a picture."""

    class_name: str
    score: float
    """Cosine, or mean of cosines; of a head of the model directory, its logit."""
    probability: float
    """Of the softmax over all classes at the model's logit scale."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The best classes for a picture."""

    path: str
    predictions: tuple[Prediction, ...]
    """The best first."""
    explanations: tuple[ClassExplanation, ...]
    """Of the best and the runner-up, if asked for."""
    box: tuple[float, ...] | None = None
    """x0, y0, x1, y1 as they were given, where the answer is about a part of the picture."""

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values; `box` only where there is one."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("box", None)}

    def to_text(self) -> str:
        """A line, and below it what speaks for the best two classes."""
        best = (f"{one.class_name} {100 * one.probability:.1f} %" for one in self.predictions)
        place = "" if self.box is None else f"  [{', '.join(f'{edge:g}' for edge in self.box)}]"
        lines = [f"{self.path}{place}  {'  '.join(best)}"]
        for reason in self.explanations:
            lines.append(f"  {reason.score:.3f}  {reason.class_name}")
            lines += [f"    {cosine:.3f}  {text}" for text, cosine in reason.descriptors]
        return "\n".join(lines)


def answers(
    classifier: Classifier,
    image_features: Tensor,
    paths: list[str],
    *,
    logit_scale: float,
    top: int,
    with_explanations: bool,
) -> Iterator[Answer]:
    """Answers in the order of the images, or of parts of them.

    Args:
        classifier: with C classes.
        image_features: (N, D), rows L2-normalised.
        paths: of the N images.
        logit_scale: exponentiated.
        top: classes of each answer.
        with_explanations: whether to say why.
    """
    names = classifier.prompt_set.class_names
    scores = classifier.scores(image_features)
    found = ranked(names, scores, logit_scale * scores, paths, top=top)
    for row, answer in enumerate(found):
        if not with_explanations:
            yield answer
            continue
        prompts = classifier.prompt_set
        reasons = explain(
            image_features[row],
            classifier.prompt_features,
            prompts.class_of_prompt,
            prompts.shown,
            names,
            scores=scores[row],
        )
        yield replace(answer, explanations=tuple(reasons))


def ranked(
    class_names: Sequence[str], scores: Tensor, logits: Tensor, paths: Sequence[str], *, top: int
) -> Iterator[Answer]:
    """Answers without explanations, in the order of the images.

    Args:
        class_names: C.
        scores: (N, C), what classes are ranked by and what is shown.
        logits: (N, C), the scores as a softmax takes them.
        paths: of the N images.
        top: classes of each answer.
    """
    probabilities = logits.softmax(dim=1)
    for row, path in enumerate(paths):
        best = scores[row].sort(descending=True, stable=True).indices[:top].tolist()
        predictions = tuple(
            Prediction(
                class_name=class_names[index],
                score=float(scores[row, index]),
                probability=float(probabilities[row, index]),
            )
            for index in best
        )
        yield Answer(path=path, predictions=predictions, explanations=())
