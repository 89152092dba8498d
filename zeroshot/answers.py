"""What a classifier says of pictures, as data and as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .classifier import Classifier
from .scoring import ClassExplanation, explain

if TYPE_CHECKING:
    from clipkit.heads.adapted import AdaptedEncoder


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A class for a picture."""

    class_name: str
    score: float
    """Cosine, or mean of cosines; of a head its logit over the logit scale."""
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

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    def to_text(self) -> str:
        """A line, and below it what speaks for the best two classes."""
        best = (f"{one.class_name} {100 * one.probability:.1f} %" for one in self.predictions)
        lines = [f"{self.path}  {'  '.join(best)}"]
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
    """Answers in the order of the images.

    Args:
        classifier: with C classes.
        image_features: (N, D), rows L2-normalised.
        paths: of the N images.
        logit_scale: exponentiated.
        top: classes of each answer.
        with_explanations: whether to say why.
    """
    prompts = classifier.prompt_set
    scores = classifier.scores(image_features)
    rows = _ranked(prompts.class_names, scores, (logit_scale * scores).softmax(dim=1), top)
    for row, (path, predictions) in enumerate(zip(paths, rows, strict=True)):
        reasons: list[ClassExplanation] = []
        if with_explanations:
            reasons = explain(
                image_features[row],
                classifier.prompt_features,
                prompts.class_of_prompt,
                prompts.shown,
                prompts.class_names,
                scores=scores[row],
            )
        yield Answer(path=path, predictions=predictions, explanations=tuple(reasons))


def answers_of_head(
    head: AdaptedEncoder,
    class_names: Sequence[str],
    image_features: Tensor,
    paths: Sequence[str],
    *,
    top: int,
) -> Iterator[Answer]:
    """Answers of an adapted model, without explanations; a score is a logit over the logit scale.

    Args:
        head: with its model.
        class_names: C classes.
        image_features: (N, D), of the head.
        paths: of the N images.
        top: classes of each answer.
    """
    logits = head.logits_of_features(image_features, class_names)
    scores = logits / head.model.logit_scale.detach().exp().cpu()
    rows = _ranked(class_names, scores, logits.softmax(dim=1), top)
    for path, predictions in zip(paths, rows, strict=True):
        yield Answer(path=path, predictions=predictions, explanations=())


def _ranked(
    names: Sequence[str], scores: Tensor, probabilities: Tensor, top: int
) -> Iterator[tuple[Prediction, ...]]:
    """The best classes of each row of (N, C) scores."""
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :top]
    for best, own, probability in zip(order.tolist(), scores, probabilities, strict=True):
        yield tuple(
            Prediction(
                class_name=names[index], score=float(own[index]), probability=float(probability[index])
            )
            for index in best
        )
