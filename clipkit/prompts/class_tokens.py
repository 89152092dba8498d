"""Where the prompts of a text stand among its tokens, whatever the tokenizer puts around the words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from clipkit.model import DualEncoder

_MOST_START_TOKENS = 2
"""More columns that no word decides are padding on the left."""


def tokens_with_slots(
    model: DualEncoder,
    names: Sequence[str],
    template: str,
    num_slots: int,
    *,
    insert: bool,
    class_position: str,
) -> tuple[Tensor, Tensor]:
    """Tokens (C, L) of the texts of classes and columns (C, M) of their slots; see `class_texts`."""
    if "{c}" not in template:
        raise ValueError(f"a template needs {{c}} where the class name goes, got {template!r}")
    plain = model.tokenizer([template.replace("{c}", name) for name in names])
    if num_slots == 0:
        return plain, plain[:, :0]
    start = start_column(model)
    if insert:
        ending = _ending(model)
        _check_room(plain, ending, num_slots, names)
        behind = _ends_of_names(model, names, template, plain) if class_position != "end" else None
        positions = _slot_positions(len(names), num_slots, start, class_position, behind)
        filler = int(model.tokenizer(["a"])[0, start])
        tokens = _with_slots(plain, positions, filler=filler, num_fixed=ending.num_fixed)
    else:
        _check_template(model, template, num_slots, start)
        positions = torch.arange(start, start + num_slots).expand(len(names), -1)
        tokens = plain
    return tokens, positions


def start_column(model: DualEncoder) -> int:
    """The first column that a text decides: 1 behind a start token, 0 in tokenizers without one.

    Raises:
        ValueError: the tokenizer pads on the left.
    """
    tokens = model.tokenizer(["a", "zebra", "7"])
    start = int((tokens == tokens[:1]).all(dim=0).long().argmin())
    if start > _MOST_START_TOKENS:
        raise ValueError(
            "prompts need a tokenizer that pads on the right, this one pads on the left: use tip-adapter, "
            "clip-adapter or vpt"
        )
    return start


def word_ids(model: DualEncoder, words: str) -> Tensor:
    """(n,) ids of words alone, without start token, end token and padding."""
    first, second = model.tokenizer([f"{words} a", f"{words} zebra"])
    ids: Tensor = first[start_column(model) : _num_common(first, second)]
    return ids


@dataclass(frozen=True)
class _Ending:
    """What follows the words of a tokenised text."""

    padding: int
    is_end: bool
    """Whether the padding is also the end token, of which one has to stay."""
    num_fixed: int
    """Columns behind the padding (a class token), 0 or 1."""


def _ending(model: DualEncoder) -> _Ending:
    empty = model.tokenizer([""])[0]
    num_fixed = int(empty[-1] != empty[-2])
    padding = int(empty[-1 - num_fixed])
    first, second = model.tokenizer(["a", "a zebra"])
    return _Ending(padding, int(first[_num_common(first, second)]) == padding, num_fixed)


def _num_common(first: Tensor, second: Tensor) -> int:
    """How many leading tokens two texts share."""
    return int((first == second).long().cumprod(dim=0).sum())


def _slot_positions(
    num_texts: int, num_slots: int, start: int, class_position: str, behind: Tensor | None
) -> Tensor:
    """(C, M): columns of inserted slots. `behind` (C,) is the first column behind each name."""
    if behind is None:
        return torch.arange(start, start + num_slots).expand(num_texts, -1)
    num_before = num_slots // 2 if class_position == "middle" else 0
    before = torch.arange(start, start + num_before).expand(num_texts, -1)
    after = behind[:, None] + torch.arange(num_before, num_slots)
    return torch.cat([before, after], dim=1)


def _with_slots(plain: Tensor, positions: Tensor, *, filler: int, num_fixed: int) -> Tensor:
    """Tokens with further columns at `positions`, and as much padding less."""
    num_words = plain.shape[1] - positions.shape[1] - num_fixed
    own = torch.cat([plain[:, :num_words], plain[:, plain.shape[1] - num_fixed :]], dim=1)
    is_own = torch.ones_like(plain, dtype=torch.bool).scatter_(1, positions, False)
    tokens = torch.full_like(plain, filler)
    tokens[is_own] = own.flatten()
    return tokens


def _ends_of_names(model: DualEncoder, names: Sequence[str], template: str, plain: Tensor) -> Tensor:
    """(C,) the first column behind each class name; before it where name and what follows share a token."""
    head = template.split("{c}", maxsplit=1)[0]
    alone = model.tokenizer([f"{head}{name}" for name in names])
    longer = model.tokenizer([f"{head}{name} zebra" for name in names])
    is_name: Tensor = (alone == plain) & (alone == longer)
    return is_name.long().cumprod(dim=1).sum(dim=1)


def _check_template(model: DualEncoder, template: str, num_slots: int, start: int) -> None:
    """The first M tokens must be the template's, not the name's."""
    head = template.split("{c}", maxsplit=1)[0]
    shared = _num_common(*model.tokenizer([f"{head}a", f"{head}zebra"]))
    if shared < start + num_slots:
        raise ValueError(
            f"{template!r} has {max(0, shared - start)} tokens before the class name, fewer than {num_slots} "
            "prompts: use a longer template or fewer prompts"
        )


def _check_room(plain: Tensor, ending: _Ending, num_slots: int, names: Sequence[str]) -> None:
    """Refuse texts with less padding than slots."""
    columns = plain[:, : plain.shape[1] - ending.num_fixed]
    room = (columns.flip(1) == ending.padding).long().cumprod(dim=1).sum(dim=1) - int(ending.is_end)
    short = (room < num_slots).nonzero()
    if len(short):
        name = names[int(short[0])]
        raise ValueError(
            f"the text of class {name!r} with {num_slots} prompts is longer than the {plain.shape[1]} tokens "
            "that the model reads: use fewer prompts or a shorter name"
        )
