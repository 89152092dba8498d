"""Gradient caching: the gradient of one large contrastive batch, with the memory of a small one.

Contrastive losses do not split over micro-batches, since every sample is a negative of every other. The step
here runs the encoders twice (GradCache, arXiv:2101.06983): first without a graph to get all features, then,
once the loss has given the gradient with respect to the features, chunk by chunk with a graph. The random
state of the first pass is restored in the second, so dropout and patch dropout agree and the result is the
one-batch gradient; the loss, with its collectives, is evaluated once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

Features = Mapping[str, Tensor]
Chunk = TypeVar("Chunk")


class RngState:
    """The random state of this process (CPU, and its current CUDA device) at one moment."""

    def __init__(self) -> None:
        self._tensors = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            self._tensors["cuda"] = torch.cuda.get_rng_state()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> RngState:
        """Inverse of `tensors`."""
        state = cls.__new__(cls)
        state._tensors = dict(tensors)
        return state

    def tensors(self) -> dict[str, Tensor]:
        """The states as uint8 tensors on the CPU, by device type."""
        return self._tensors

    def restore(self) -> None:
        """Put the generators back to this moment."""
        torch.set_rng_state(self._tensors["cpu"])
        if "cuda" in self._tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(self._tensors["cuda"])


def backward(
    encode: Callable[[Chunk], Features],
    chunks: Sequence[Chunk],
    loss: Callable[[Features], Tensor],
    *,
    scale_loss: Callable[[Tensor], Tensor] = lambda loss: loss,
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Accumulate in the parameters' `.grad` the gradient of `loss` over all chunks as one batch.

    Tensors of `encode` with at least one dimension are features, concatenated along the first, of which each
    may have another number of rows in every chunk (pairs, regions); scalars (a
    logit scale, a bias) must not depend on the chunk, and their gradient is taken once. Every parameter that
    the loss is to train, the logit scale included, has to pass through `encode`: under
    DistributedDataParallel or FSDP that is the wrapped module's forward.

    Args:
        encode: chunk -> named features; called once a chunk if there is one chunk, else twice.
        chunks: the micro-batches of one optimiser step on this rank.
        loss: named features of the whole local batch -> scalar; may communicate between ranks.
        scale_loss: applied to the loss before its backward (a GradScaler's `scale`).
        no_sync: context that holds back gradient synchronisation, entered for all chunks but the last.

    Returns:
        The loss, detached and unscaled, and the detached features of the whole local batch.
    """
    if len(chunks) == 1:
        features = encode(chunks[0])
        value = loss(features)
        scale_loss(value).backward()  # type: ignore[no-untyped-call]
        return value.detach(), {name: feature.detach() for name, feature in features.items()}

    states: list[RngState] = []
    outputs: list[Features] = []
    with torch.no_grad():
        for chunk in chunks:
            states.append(RngState())
            outputs.append(encode(chunk))
    after = RngState()

    leaves = _concatenate(outputs)
    for leaf in leaves.values():
        leaf.requires_grad_()
    value = loss(leaves)
    scale_loss(value).backward()  # type: ignore[no-untyped-call]

    grads = {name: _split_grad(leaf, [output[name] for output in outputs]) for name, leaf in leaves.items()}
    for index, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
        is_last = index == len(chunks) - 1
        with nullcontext() if is_last else no_sync():
            state.restore()
            own = {name: parts[index] for name, parts in grads.items()}
            surrogate = _surrogate(encode(chunk), own, with_scalars=is_last)
            surrogate.backward()  # type: ignore[no-untyped-call]
    after.restore()
    return value.detach(), {name: leaf.detach() for name, leaf in leaves.items()}


def _concatenate(outputs: Sequence[Features]) -> dict[str, Tensor]:
    """Features of all chunks as one batch; of a scalar, the first chunk's."""
    return {
        name: torch.cat([output[name] for output in outputs]) if feature.ndim else feature.detach().clone()
        for name, feature in outputs[0].items()
    }


def _split_grad(leaf: Tensor, parts: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The gradient of a feature of the whole batch by chunk; of a scalar, the whole for each."""
    if leaf.grad is None or not leaf.ndim:
        return [leaf.grad] * len(parts)
    return torch.split(leaf.grad, [len(part) for part in parts])


def _surrogate(features: Features, grads: Mapping[str, Tensor | None], *, with_scalars: bool) -> Tensor:
    """<features, their cached gradient>: its backward is the backward of the loss through this chunk."""
    terms = []
    for name, feature in features.items():
        grad = grads[name]
        if grad is None or not feature.requires_grad:
            continue
        if feature.ndim:
            terms.append((feature * grad.to(feature.dtype)).sum())
        else:
            # The zero keeps every parameter in every graph, as synchronising wrappers expect.
            terms.append(feature * grad * float(with_scalars))
    return torch.stack([term.float() for term in terms]).sum()
