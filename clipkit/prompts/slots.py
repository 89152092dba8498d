"""Prompt slots: places in the token sequence of a frozen tower that hold given vectors before a block.

Of a text, some of its tokens are slots: the vectors take the place of their embeddings, get the positions
that these would have had, and are set again before each further prompted block. Of an image, the slots are
M tokens behind the patches: appended where the first block begins, without a position, set again before each
further prompted block, and removed behind the last block, so that pooling never sees them (MaPLe,
arXiv:2210.03117; VPT, arXiv:2203.12119).

Slots are hooks on the modules of a tower, whose code and parameters stay as they are. They exist inside a
`with` statement and for the forwards inside it. A tower's own activation checkpointing is off meanwhile: it
would compute blocks again in the backward pass, when the hooks are gone. To save memory, checkpoint a
function that has the `with` statement inside, as `ClassTexts` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.prompts.parts import image_parts, text_parts

Edit = Callable[[Tensor], Tensor]


@contextmanager
def text_slots(model: Any, prompts: Sequence[Tensor], positions: Tensor) -> Iterator[None]:
    """Texts have prompts in their slots, while the context lasts.

    Args:
        model: an open_clip model.
        prompts: element i is set before block i, (M, width) for all texts or (B, M, width) for each; at most
            as many as there are blocks. Cast to the type of the tokens. Nothing is done where there are none.
        positions: int64, the columns of the slots: (M,) for all texts or (B, M) for each.

    Raises:
        ValueError: there are more prompts than blocks, or of another width than the tower's.
    """
    if not prompts:
        yield
        return
    parts = text_parts(model)
    _check(prompts, len(parts.blocks), parts.width, "text")
    with ExitStack() as stack:
        stack.enter_context(keeping_activations(parts.owner))
        for number, vectors in enumerate(prompts):
            edit = _setter(vectors, positions)
            if number == 0:
                stack.enter_context(_editing_output(parts.entry, edit))
            else:
                stack.enter_context(_editing_input(parts.blocks[number], edit))
        yield


@contextmanager
def image_slots(model: Any, prompts: Sequence[Tensor]) -> Iterator[None]:
    """Images have prompts behind their patches, while the context lasts.

    Args:
        model: an open_clip model.
        prompts: as `text_slots` takes them; all of the same M.

    Raises:
        ValueError: see `text_slots` and `parts.image_parts`.
    """
    if not prompts:
        yield
        return
    parts = image_parts(model)
    _check(prompts, len(parts.blocks), parts.width, "image")
    count = prompts[0].shape[-2]
    with ExitStack() as stack:
        stack.enter_context(keeping_activations(parts.owner))
        stack.enter_context(_editing_input(parts.entry, lambda tokens: _appended(tokens, prompts[0])))
        for block, vectors in zip(parts.blocks[1:], prompts[1:], strict=False):
            stack.enter_context(_editing_input(block, _last_setter(vectors)))
        stack.enter_context(_editing_output(parts.blocks[-1], lambda tokens: tokens[:, :-count]))
        yield


@contextmanager
def keeping_activations(owner: nn.Module) -> Iterator[None]:
    """Activation checkpointing of open_clip, timm and transformers is off, while the context lasts."""
    flags = ("grad_checkpointing", "gradient_checkpointing")
    active = [(part, flag) for part in owner.modules() for flag in flags if vars(part).get(flag) is True]
    for part, flag in active:
        setattr(part, flag, False)
    try:
        yield
    finally:
        for part, flag in active:
            setattr(part, flag, True)


def _check(prompts: Sequence[Tensor], num_blocks: int, width: int, tower: str) -> None:
    if len(prompts) > num_blocks:
        raise ValueError(f"the {tower} tower has {num_blocks} blocks, got prompts for {len(prompts)}")
    sizes = {(vectors.shape[-2], vectors.shape[-1]) for vectors in prompts}
    if len(sizes) > 1 or any(found != width for _, found in sizes):
        raise ValueError(f"{tower} prompts must all be M x {width}, got {sorted(sizes)}")


def _setter(vectors: Tensor, positions: Tensor) -> Edit:
    """Put vectors into columns of (B, N, width) tokens."""

    def edit(tokens: Tensor) -> Tensor:
        rows = positions.to(tokens.device).expand(len(tokens), -1)[..., None]
        return tokens.scatter(1, rows.expand(-1, -1, tokens.shape[2]), _for_each(vectors, tokens))

    return edit


def _appended(tokens: Tensor, vectors: Tensor) -> Tensor:
    return torch.cat([tokens, _for_each(vectors, tokens)], dim=1)


def _last_setter(vectors: Tensor) -> Edit:
    return lambda tokens: _appended(tokens[:, : -vectors.shape[-2]], vectors)


def _for_each(vectors: Tensor, tokens: Tensor) -> Tensor:
    """(B, M, width) in the type and on the device of the tokens."""
    return vectors.to(tokens).expand(len(tokens), -1, -1)


@contextmanager
def _editing_input(module: nn.Module, edit: Edit) -> Iterator[None]:
    """The first argument of a module is edited, while the context lasts."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: edit(kwargs[name])}

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _editing_output(module: nn.Module, edit: Edit) -> Iterator[None]:
    """The output of a module (its first, where there are several) is edited, while the context lasts."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
