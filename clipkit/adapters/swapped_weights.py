"""Other weights in the place of a model's own, for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from clipkit.prompts.slots import keeping_activations


@contextmanager
def swapped_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """A model computes with other tensors, while the context lasts; its own parameters are never written to.

    `torch.func.functional_call` does the same for the one call of a `forward`. The towers' own activation
    checkpointing is off meanwhile, as it is for prompt slots: it would compute blocks again in the backward
    pass, with the model's own weights.

    Args:
        model: any.
        weights: by names of its parameters, of their shapes.
    """
    places = [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in weights]
    own: list[Any] = [owner._parameters[leaf] for owner, leaf in places]
    with keeping_activations(model):
        try:
            _put(places, list(weights.values()))
            yield
        finally:
            _put(places, own)


def _put(places: list[tuple[nn.Module, str]], tensors: list[Any]) -> None:
    # Not by setattr, which takes nothing but parameters there, and would cut these off their graph.
    for (owner, leaf), tensor in zip(places, tensors, strict=True):
        owner._parameters[leaf] = tensor
