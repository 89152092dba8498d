"""Many texts in one row: what they begin with is computed once.

The prompts of a classifier differ in few tokens: "a photo of a {c}." begins alike for every class. In a
causal tower a token depends on those before it alone, so texts with a common beginning can stand in one
sequence, the beginning first and then what follows it in each, as long as a mask keeps each text from seeing
the others and every token has the position that it has in its own text. The features are those of the texts
one by one; the tower is open_clip's as it is, given another mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from clipkit.text_towers import needed_lengths, open_clip_text, project_pooled

ROW_TOKENS = 96
"""Most tokens in a row of several texts: longer rows share more, and cost more in attention."""

_Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """Texts that stand in one sequence."""

    texts: tuple[int, ...]
    prefix_length: int
    num_tokens: int


def can_pack(model: nn.Module) -> bool:
    """Whether a model's text tower is causal, pools at the last token and takes a mask for each row."""
    tower = open_clip_text(model)
    if tower is None:
        return False
    # Two texts of which the first needs one column, if any tower needs fewer than all.
    probe = torch.zeros(1, tower.context_length, dtype=torch.int64)
    is_short = int(needed_lengths(model, probe)) < tower.context_length
    blocks = getattr(tower.transformer, "resblocks", ())
    return is_short and all(isinstance(getattr(b, "attn", None), nn.MultiheadAttention) for b in blocks)


def plan_rows(tokens: _Tokens, lengths: npt.NDArray[np.int64]) -> list[Row]:
    """Distribute texts over rows, so that neighbours in the order of their tokens share what they can.

    Args:
        tokens: (T, L).
        lengths: (T,) leading tokens that count.

    Returns:
        Rows that hold every text once; each of at most `ROW_TOKENS` tokens, unless one text is longer.
    """
    order = np.lexsort(tokens.T[::-1])
    rows: list[Row] = []
    texts: list[int] = []
    prefix = total = 0
    for text in order.tolist():
        length = int(lengths[text])
        if texts:
            shared = min(prefix, _common(tokens[texts[-1]], tokens[text], min(prefix, length)))
            joined = total + (length - shared) + (len(texts) - 1) * (prefix - shared)
            if joined <= ROW_TOKENS and joined - total <= length:
                texts.append(text)
                prefix, total = shared, joined
                continue
            rows.append(Row(tuple(texts), prefix, total))
        texts, prefix, total = [text], length, length
    if texts:
        rows.append(Row(tuple(texts), prefix, total))
    return rows


def _common(first: _Tokens, second: _Tokens, limit: int) -> int:
    """How many leading tokens two texts share, up to a limit."""
    differs = np.flatnonzero(first[:limit] != second[:limit])
    return int(differs[0]) if len(differs) else limit


def batches(rows: Sequence[Row], tokens_per_batch: int) -> Iterator[list[Row]]:
    """Rows of like length together, as many as fit when padded to the longest."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: row.num_tokens):
        if batch and (len(batch) + 1) * row.num_tokens > tokens_per_batch:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@dataclass(frozen=True)
class Packed:
    """The sequences of some rows, B of them with L tokens each."""

    tokens: Tensor
    """(B, L) int64."""
    positions: Tensor
    """(B, L) int64, place of each token in its own text."""
    mask: Tensor
    """(B, L, L) fp32, 0 where a token may look and else -inf."""
    texts: Tensor
    """(T,) int64, the texts in these rows."""
    last: Tensor
    """(T, 2) int64, row and column of the last token of each."""


def pack(rows: Sequence[Row], tokens: _Tokens, lengths: npt.NDArray[np.int64]) -> Packed:
    """Lay out some rows of `plan_rows`."""
    longest = max(row.num_tokens for row in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    positions = np.zeros_like(ids)
    owners = np.full_like(ids, -1)  # of no text; -2 marks the common beginning
    texts, last = [], []
    for number, row in enumerate(rows):
        prefix = row.prefix_length
        ids[number, :prefix] = tokens[row.texts[0], :prefix]
        positions[number, :prefix] = np.arange(prefix)
        owners[number, :prefix] = -2
        start = prefix
        for text in row.texts:
            end = start + int(lengths[text]) - prefix
            ids[number, start:end] = tokens[text, prefix : lengths[text]]
            positions[number, start:end] = np.arange(prefix, lengths[text])
            owners[number, start:end] = text
            texts.append(text)
            last.append((number, end - 1 if end > start else prefix - 1))
            start = end
    owner = torch.from_numpy(owners)
    sees = (owner[:, None, :] == -2) | (owner[:, None, :] == owner[:, :, None])
    sees &= torch.ones(longest, longest, dtype=torch.bool).tril()
    mask = torch.zeros(sees.shape).masked_fill_(~sees, -torch.inf)
    return Packed(torch.from_numpy(ids), torch.from_numpy(positions), mask, *map(torch.tensor, (texts, last)))


def repeated(packed: Packed, times: int) -> Packed:
    """The same rows several times over, one whole repetition after the other."""
    if times == 1:
        return packed
    num_rows, num_texts = len(packed.tokens), len(packed.texts)
    steps = torch.arange(times)
    shift = torch.stack([steps * num_rows, torch.zeros_like(steps)], dim=1)
    return Packed(
        packed.tokens.repeat(times, 1),
        packed.positions.repeat(times, 1),
        packed.mask.repeat(times, 1, 1),
        (packed.texts + steps[:, None] * num_texts).flatten(),
        (packed.last + shift[:, None]).flatten(0, 1),
    )


def encode_packed(model: Any, packed: Packed) -> Tensor:
    """Features of packed texts: (T, D), not normalised, in the order of `packed.texts`."""
    tower = open_clip_text(model)
    assert tower is not None
    device = tower.token_embedding.weight.device
    dtype = tower.transformer.get_cast_dtype()
    hidden = tower.token_embedding(packed.tokens.to(device)).to(dtype)
    hidden = hidden + tower.positional_embedding[packed.positions.to(device)].to(dtype)
    num_heads = tower.transformer.resblocks[0].attn.num_heads
    mask = packed.mask.to(device).repeat_interleave(num_heads, dim=0)
    hidden = tower.transformer(hidden, attn_mask=mask)
    rows, columns = packed.last.to(device).unbind(1)
    return project_pooled(tower, tower.ln_final(hidden[rows, columns]))
