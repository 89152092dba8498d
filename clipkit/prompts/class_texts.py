"""The texts of classes with places for prompts, laid out so that what they share is computed once.

In a causal tower all that stands before the class name is the same for every class, prompts included. The
texts then stand in rows with a common beginning (`clipkit.packed_texts`), and columns that reach no feature
are not computed. Other towers read their texts whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clipkit.heads.features import unit_features
from clipkit.packed_texts import Packed, batches, can_pack, encode_packed, pack, plan_rows, repeated
from clipkit.prompts.class_tokens import tokens_with_slots
from clipkit.prompts.slots import text_slots
from clipkit.text_towers import encode_text, needed_lengths

if TYPE_CHECKING:
    from clipkit.model import DualEncoder

Attachment = Callable[[], AbstractContextManager[None]]

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

    def encode(
        self, model: DualEncoder, prompts: Sequence[Tensor], *, attachment: Attachment = nullcontext
    ) -> Tensor:
        """Features of the classes.

        Args:
            model: the frozen dual encoder.
            prompts: for each prompted block (M, width), or (C, M, width) for prompts of each class.
            attachment: a context that is entered for each run of the tower, also for those in the backward
                pass that compute activations again.

        Returns:
            (C, D), L2-normalised, in fp32.

        Raises:
            ValueError: prompts are not as many as the slots, or not of as many classes.
        """
        self._check(prompts)
        is_shared = all(vectors.ndim == 2 for vectors in prompts)
        if self.packed and is_shared:
            recompute = len(self.packed) > 1
            parts = [
                _run(self._encode_packed, model, rows, prompts, recompute, attachment) for rows in self.packed
            ]
            features = torch.cat(parts)[self._order(parts[0].device)]
        else:
            batches_of_texts = torch.split(torch.arange(len(self.names)), self._texts_per_batch)
            recompute = len(batches_of_texts) > 1
            parts = [
                _run(self._encode_plain, model, texts, _of(texts, prompts), recompute, attachment)
                for texts in batches_of_texts
            ]
            features = torch.cat(parts)
        return unit_features(features)

    def _check(self, prompts: Sequence[Tensor]) -> None:
        num_classes, num_slots = self.positions.shape
        for vectors in prompts:
            if vectors.shape[-2] != num_slots or (vectors.ndim == 3 and len(vectors) != num_classes):
                raise ValueError(
                    f"the texts of {num_classes} classes have {num_slots} slots each, got prompts of shape "
                    f"{tuple(vectors.shape)}"
                )

    def encode_for_each(self, model: DualEncoder, prompts: Tensor) -> Tensor:
        """Features of the classes for each of B images, whose prompts stand before the first block.

        No more than `TOKENS_PER_BATCH` tokens are encoded at once, unless one text is longer; where that
        takes several batches, activations are recomputed batch by batch.

        Args:
            model: the frozen dual encoder.
            prompts: (B, M, width).

        Returns:
            (B, C, D), L2-normalised, in fp32.
        """
        size = sum(rows.tokens.numel() for rows in self.packed) or len(self.names) * self.num_columns
        recompute = len(prompts) * size > TOKENS_PER_BATCH
        if self.packed:
            groups = [rows.texts for rows in self.packed]
            jobs: Iterator[tuple[Any, Any, Tensor]] = self._packed_jobs(prompts)
        else:
            groups = list(torch.split(torch.arange(len(self.names)), self._texts_per_batch))
            jobs = self._plain_jobs(prompts, groups)
        parts = [_run(encode, model, texts, [own], recompute) for encode, texts, own in jobs]
        return unit_features(self._by_image(parts, groups, len(prompts)))

    def _packed_jobs(self, prompts: Tensor) -> Iterator[tuple[Any, Packed, Tensor]]:
        """How to encode, packed rows for some images, and the prompts of each row."""
        for rows in self.packed:
            for some in torch.split(prompts, max(1, TOKENS_PER_BATCH // rows.tokens.numel())):
                own = some.repeat_interleave(len(rows.tokens), dim=0)
                yield self._encode_packed, repeated(rows, len(some)), own

    def _plain_jobs(self, prompts: Tensor, groups: Sequence[Tensor]) -> Iterator[tuple[Any, Tensor, Tensor]]:
        """How to encode, texts for some images, and the prompts of each text."""
        for texts in groups:
            for some in torch.split(prompts, max(1, self._texts_per_batch // len(texts))):
                own = some.repeat_interleave(len(texts), dim=0)
                yield self._encode_plain, texts.repeat(len(some)), own

    @property
    def num_columns(self) -> int:
        """Columns that are encoded, of texts that stand alone."""
        return int(self.lengths.max())

    @property
    def _texts_per_batch(self) -> int:
        return max(1, TOKENS_PER_BATCH // self.num_columns)

    def _order(self, device: torch.device) -> Tensor:
        """Where each text is among those of all packed rows."""
        return torch.cat([rows.texts for rows in self.packed]).argsort().to(device)

    def _by_image(self, parts: Sequence[Tensor], groups: Sequence[Tensor], num_images: int) -> Tensor:
        """(B, C, D) of parts that hold some images with one of the groups of texts each, image by image."""
        joined = torch.cat(list(parts))
        sizes = [num_images * len(group) for group in groups]
        columns = [part.reshape(num_images, -1, part.shape[1]) for part in torch.split(joined, sizes)]
        features = torch.cat(columns, dim=1)
        return features[:, self._order(features.device)] if self.packed else features

    def _encode_packed(self, model: DualEncoder, rows: Packed, prompts: Sequence[Tensor]) -> Tensor:
        with text_slots(model.model, prompts, self.positions[0]):
            return encode_packed(model.model, rows)

    def _encode_plain(self, model: DualEncoder, texts: Tensor, prompts: Sequence[Tensor]) -> Tensor:
        tokens = self.tokens[texts, : self.num_columns].to(model.logit_scale.device)
        with text_slots(model.model, prompts, self.positions[texts]):
            return encode_text(model.model, tokens)


def _of(texts: Tensor, prompts: Sequence[Tensor]) -> list[Tensor]:
    """Prompts of some texts."""
    return [vectors if vectors.ndim == 2 else vectors[texts.to(vectors.device)] for vectors in prompts]


def _run(
    encode: Any,
    model: DualEncoder,
    rows: Any,
    prompts: Sequence[Tensor],
    recompute: bool,
    attachment: Attachment = nullcontext,
) -> Tensor:
    """Encode a batch, in the backward pass again where activations of all batches would be too many."""

    def run() -> Tensor:
        with attachment():
            features: Tensor = encode(model, rows, prompts)
        return features

    if recompute and torch.is_grad_enabled():
        result: Tensor = checkpoint(run, use_reentrant=False)
        return result
    return run()


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
        ValueError: there is no class; a text with inserted slots does not fit into the context (others are
            cut, as the tokenizer does it); the template has no `{c}`, or fewer than M tokens before it.
    """
    if not names:
        raise ValueError("name at least one class, got none")
    tokens, positions = tokens_with_slots(
        model, names, template, num_slots, insert=insert, class_position=class_position
    )
    lengths = needed_lengths(model.model, tokens)
    can_share = class_position == "end" and can_pack(model.model)
    return ClassTexts(
        names=tuple(names),
        tokens=tokens,
        positions=positions,
        lengths=lengths,
        packed=_rows(tokens, lengths) if can_share else (),
    )


def bare_names(names: Sequence[str]) -> ClassTexts:
    """Classes without texts, for methods that store their features."""
    count = len(names)
    empty = torch.zeros(count, 0, dtype=torch.int64)
    return ClassTexts(names=tuple(names), tokens=empty, positions=empty, lengths=empty.sum(1), packed=())


def _rows(tokens: Tensor, lengths: Tensor) -> tuple[Packed, ...]:
    ids, sizes = tokens.numpy(), lengths.numpy()
    return tuple(pack(rows, ids, sizes) for rows in batches(plan_rows(ids, sizes), TOKENS_PER_BATCH))
