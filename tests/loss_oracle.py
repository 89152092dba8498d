"""Contrastive losses written out pair by pair in double precision, and the batches they are tried on."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_PAIRS = 24
EMBED_DIM = 5
NUM_NEGATIVES = 3
UNEVEN = {1: (24,), 2: (15, 9), 4: (9, 0, 7, 8)}


@dataclass(frozen=True)
class Case:
    """A global batch and what is known of it; features are fp32 numbers."""

    image: Tensor
    text: Tensor
    scale: float = 14.0
    bias: float = -4.0
    label_smoothing: float = 0.0
    positive_keys: Tensor | None = None
    ignored_keys: Tensor | None = None
    ignored: Tensor | None = None
    max_text_similarity: float | None = None
    negatives: Tensor | None = None
    weights: Tensor | None = None
    is_uneven: bool = False

    def counts(self, world_size: int) -> tuple[int, ...]:
        """Pairs of every rank."""
        return UNEVEN[world_size] if self.is_uneven else (NUM_PAIRS // world_size,) * world_size


@functools.cache
def cases() -> dict[str, Case]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def some(fraction: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) < fraction

    common = randn(1, EMBED_DIM)
    image = F.normalize(randn(NUM_PAIRS, EMBED_DIM) + common, dim=-1)
    text = F.normalize(image + 0.7 * randn(NUM_PAIRS, EMBED_DIM), dim=-1)
    repeated = torch.randint(0, 4, (NUM_PAIRS,), generator=generator)
    extras = {
        "positive_keys": torch.randint(0, 9, (NUM_PAIRS,), generator=generator),
        "ignored_keys": torch.randint(0, 5, (NUM_PAIRS,), generator=generator),
        "ignored": some(0.3, NUM_PAIRS, NUM_PAIRS),
        "max_text_similarity": 0.6,
        "negatives": F.normalize(randn(NUM_PAIRS, NUM_NEGATIVES, EMBED_DIM) + common, dim=-1),
        "weights": torch.rand(NUM_PAIRS, generator=generator) * some(0.8, NUM_PAIRS),
    }
    smoothing = {"label_smoothing": 0.1}
    return {
        "plain": Case(image, text),
        **{name: Case(image, text, **{name: value}) for name, value in extras.items()},
        "smoothing": Case(image, text, **smoothing),
        "smoothing and ignored": Case(image, text, **smoothing, ignored=extras["ignored"]),
        "smoothing and max_text_similarity": Case(image, text, **smoothing, max_text_similarity=0.6),
        "uneven": Case(image, text, is_uneven=True),
        "clamp": Case(image, text, scale=100.0),
        "duplicates": Case(image[repeated], text[repeated]),
        "everything": Case(image, text, **smoothing, **extras, is_uneven=True),
    }


def objective(name: str, case: Case, groups: list[list[int]]) -> dict[str, Tensor]:
    """Mean over groups of pairs of their own loss, and its gradients, in fp64."""
    inputs = {
        "image": case.image.double().requires_grad_(),
        "text": case.text.double().requires_grad_(),
        "scale": torch.tensor(case.scale, dtype=torch.float64, requires_grad=True),
        "bias": torch.tensor(case.bias, dtype=torch.float64, requires_grad=True),
    }
    loss = _softmax if name == "softmax" else _sigmoid
    value = sum(loss(case, group, **inputs) for group in groups) / len(groups)
    used = {key: tensor for key, tensor in inputs.items() if key != "bias" or name == "sigmoid"}
    gradients = torch.autograd.grad(value, list(used.values()))
    return {"loss": value.detach(), **dict(zip(used, gradients, strict=True))}


def _is_positive(case: Case, i: int, j: int) -> bool:
    return i == j if case.positive_keys is None else bool(case.positive_keys[i] == case.positive_keys[j])


def _is_kept(case: Case, i: int, j: int) -> bool:
    if _is_positive(case, i, j):
        return True
    if case.ignored is not None and case.ignored[i, j]:
        return False
    if case.max_text_similarity is not None and case.text[i] @ case.text[j] > case.max_text_similarity:
        return False
    return case.ignored_keys is None or bool(case.ignored_keys[i] != case.ignored_keys[j])


def _weight(case: Case, i: int) -> float:
    return 1.0 if case.weights is None else float(case.weights[i])


def _cross_entropy(case: Case, logits: Tensor, positives: list[bool]) -> Tensor:
    log_probabilities = logits - logits.logsumexp(0)
    total = logits.new_zeros(())
    for log_probability, is_positive in zip(log_probabilities, positives, strict=True):
        target = case.label_smoothing / len(positives)
        if is_positive:
            target += (1 - case.label_smoothing) / sum(positives)
        total = total - target * log_probability
    return total


def _softmax(
    case: Case, group: list[int], image: Tensor, text: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    total = image.new_zeros(())
    for i in group:
        columns = [j for j in group if _is_kept(case, i, j)]
        logits = [scale * (image[i] @ text[j]) for j in columns]
        positives = [_is_positive(case, i, j) for j in columns]
        if case.negatives is not None:
            logits += [scale * (image[i] @ negative) for negative in case.negatives[i].double()]
            positives += [False] * NUM_NEGATIVES
        total = total + _weight(case, i) / 2 * _cross_entropy(case, torch.stack(logits), positives)
        rows = [j for j in group if _is_kept(case, j, i)]
        logits = [scale * (image[j] @ text[i]) for j in rows]
        positives = [_is_positive(case, j, i) for j in rows]
        total = total + _weight(case, i) / 2 * _cross_entropy(case, torch.stack(logits), positives)
    return total / sum(_weight(case, i) for i in group)


def _binary(case: Case, logit: Tensor, is_positive: bool) -> Tensor:
    target = case.label_smoothing / 2 + (1 - case.label_smoothing) * is_positive
    return -target * F.logsigmoid(logit) - (1 - target) * F.logsigmoid(-logit)


def _sigmoid(
    case: Case, group: list[int], image: Tensor, text: Tensor, scale: Tensor, bias: Tensor
) -> Tensor:
    total = image.new_zeros(())
    for i in group:
        for j in group:
            if _is_kept(case, i, j):
                loss = _binary(case, scale * (image[i] @ text[j]) + bias, _is_positive(case, i, j))
                total = total + (_weight(case, i) + _weight(case, j)) / 2 * loss
        if case.negatives is not None:
            for negative in case.negatives[i].double():
                loss = _binary(case, scale * (image[i] @ negative) + bias, False)
                total = total + _weight(case, i) * loss
    return total / sum(_weight(case, i) for i in group)
