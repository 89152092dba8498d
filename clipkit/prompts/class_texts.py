"""The texts of classes with places for prompts, laid out so that what they share is computed once.

In a causal tower all that stands before the class name is the same for every class, prompts included. The
texts then stand in rows with a common beginning (`clipkit.packed_texts`), and columns that reach no feature
are not computed. Other towers read their texts whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clipkit.packed_texts import Packed, batches, can_pack, encode_packed, pack, plan_rows
from clipkit.prompts.slots import text_slots
from clipkit.text_towers import encode_text, needed_lengths

if TYPE_CHECKING:
    from clipkit.model import DualEncoder

TOKENS_PER_BATCH = 4096
"""Tokens encoded at once; where classes need several batches, activations are recomputed batch by batch."""


@dataclass(frozen=True, kw_only=True)
class ClassTexts:
    """One text a class, tokenised, with M slots; made by `class_texts`."""

    names: tuple[str, ...]
    """(C,)."""
    tokens: Tensor
    """(C, L) int64, on the CPU."""
    positions: Tensor
    """(C, M) int64, the columns of the slots."""
    lengths: Tensor
    """(C,) int64, leading columns that decide the features."""
    packed: tuple[Packed, ...]
    """The same texts in rows; empty where the tower cannot read rows."""
    frozen: dict[str, Tensor] = field(default_factory=dict)
    """Features that a method computed once, by a name of its own."""

    def encode(self, model: DualEncoder, prompts: Sequence[Tensor]) -> Tensor:
        """Features of the classes.

        Args:
            model: the frozen dual encoder.
            prompts: for each prompted block (M, width), or (C, M, width) for prompts of each class.

        Returns:
            (C, D), L2-normalised, in fp32.
        """
        is_shared = all(vectors.ndim == 2 for vectors in prompts)
        if self.packed and is_shared:
            parts = [_run(self._encode_packed, model, rows, prompts, self._is_long) for rows in self.packed]
            order = torch.cat([rows.texts for rows in self.packed]).argsort()
            features = torch.cat(parts)[order.to(parts[0].device)]
        else:
            size = max(1, TOKENS_PER_BATCH // self.num_columns)
            places = torch.split(torch.arange(len(self.names)), size)
            is_long = len(places) > 1
            features = torch.cat([_run(self._encode_plain, model, rows, prompts, is_long) for rows in places])
        return F.normalize(features.float(), dim=-1)

    @property
    def num_columns(self) -> int:
        """Columns that are encoded, of texts that stand alone."""
        return int(self.lengths.max())

    @property
    def _is_long(self) -> bool:
        return len(self.packed) > 1

    def _encode_packed(self, model: DualEncoder, rows: Packed, prompts: Sequence[Tensor]) -> Tensor:
        with text_slots(model.model, prompts, self.positions[0]):
            return encode_packed(model.model, rows)

    def _encode_plain(self, model: DualEncoder, places: Tensor, prompts: Sequence[Tensor]) -> Tensor:
        own = [vectors if vectors.ndim == 2 else vectors[places.to(vectors.device)] for vectors in prompts]
        text = self.tokens[places, : self.num_columns].to(model.logit_scale.device)
        with text_slots(model.model, own, self.positions[places]):
            return encode_text(model.model, text)


def _run(encode: Any, model: DualEncoder, rows: Any, prompts: Sequence[Tensor], recompute: bool) -> Tensor:
    """Encode a batch, in the backward pass again where activations of all batches would be too many."""
    if recompute and torch.is_grad_enabled():
        result: Tensor = checkpoint(encode, model, rows, prompts, use_reentrant=False)
        return result
    direct: Tensor = encode(model, rows, prompts)
    return direct


def class_texts(
    model: DualEncoder,
    names: Sequence[str],
    template: str,
    num_slots: int,
    *,
    insert: bool = False,
    class_position: str = "end",
) -> ClassTexts:
    """Tokenise a text for each class and say where its slots are.

    Args:
        model: whose tokenizer and text tower are used.
        names: C class names.
        template: with `{c}` for the name.
        num_slots: M, slots behind the start token, or from the first token in tokenizers without one.
        insert: whether the slots are further tokens; else they take the place of the template's first M.
        class_position: of inserted slots: all before the name (`end`), half of them before the rest of the
            text and half behind the name (`middle`), or all behind it (`front`); CoOp, arXiv:2109.01134.

    Raises:
        ValueError: a text with its slots does not fit into the context; the template has no `{c}`, or fewer
            than M tokens before it.
    """
    if "{c}" not in template:
        raise ValueError(f"a template needs {{c}} where the class name goes, got {template!r}")
    plain = model.tokenizer([template.replace("{c}", name) for name in names])
    start = start_column(model)
    if insert:
        behind = _ends_of_names(model, names, template, plain) if class_position != "end" else None
        positions = _slot_positions(len(names), num_slots, start, class_position, behind)
        tokens = _with_slots(plain, positions, filler=int(plain[0, start]))
        _check_length(model, plain, num_slots, names)
    else:
        _check_template(model, template, num_slots, start)
        positions = torch.arange(start, start + num_slots).expand(len(names), -1)
        tokens = plain
    lengths = needed_lengths(model.model, tokens)
    can_share = class_position == "end" and can_pack(model.model)
    return ClassTexts(
        names=tuple(names),
        tokens=tokens,
        positions=positions,
        lengths=lengths,
        packed=_rows(tokens, lengths) if can_share else (),
    )


def start_column(model: DualEncoder) -> int:
    """The first column that a text decides: 1 behind a start token, 0 in tokenizers without one."""
    first = model.tokenizer(["a", "zebra", "7"])[:, 0]
    return int(len(first.unique()) == 1)


def _rows(tokens: Tensor, lengths: Tensor) -> tuple[Packed, ...]:
    ids, sizes = tokens.numpy(), lengths.numpy()
    return tuple(pack(rows, ids, sizes) for rows in batches(plan_rows(ids, sizes), TOKENS_PER_BATCH))


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


def _with_slots(plain: Tensor, positions: Tensor, *, filler: int) -> Tensor:
    """Tokens with further columns at `positions`, cut to the length they had."""
    num_texts, length = plain.shape
    tokens = torch.full_like(plain, filler)
    is_own = torch.ones(num_texts, length, dtype=torch.bool)
    is_own.scatter_(1, positions.clamp(max=length - 1), False)
    num_own = is_own.sum(dim=1)
    for row, count in enumerate(num_own.tolist()):
        tokens[row, is_own[row]] = plain[row, :count]
    return tokens


def _ends_of_names(model: DualEncoder, names: Sequence[str], template: str, plain: Tensor) -> Tensor:
    """(C,) the first column behind each class name, where what follows the name is tokenised as it was."""
    head = template.split("{c}", maxsplit=1)[0]
    cut = model.tokenizer([f"{head}{name}" for name in names])
    same = np.cumprod((cut == plain).numpy(), axis=1).sum(axis=1)
    return torch.from_numpy(same)


def _check_template(model: DualEncoder, template: str, num_slots: int, start: int) -> None:
    """The first M tokens must be the template's, not the name's."""
    head = template.split("{c}", maxsplit=1)[0]
    first, second = model.tokenizer([f"{head}a", f"{head}zebra"])
    shared = int(np.cumprod((first == second).numpy()).sum())
    if shared < start + num_slots:
        raise ValueError(
            f"{template!r} has {max(0, shared - start)} tokens before the class name, fewer than {num_slots} "
            "prompts: use a longer template or fewer prompts"
        )


def _check_length(model: DualEncoder, plain: Tensor, num_slots: int, names: Sequence[str]) -> None:
    """A text whose last token before the padding would leave the context is refused."""
    padding = model.tokenizer([""])[0, -1]
    used = (plain != padding).long().flip(1).argmax(dim=1)  # trailing padding
    room = torch.where((plain != padding).all(dim=1), 0, used)
    short = (room < num_slots).nonzero()
    if len(short):
        name = names[int(short[0])]
        raise ValueError(
            f"the text of class {name!r} with {num_slots} prompts is longer than the {plain.shape[1]} tokens "
            "that the model reads: use fewer prompts or a shorter name"
        )
