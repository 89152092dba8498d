"""Texts as bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ByteTokenizer:
    """UTF-8 bytes as token ids between a start and an end token (ByT5's idea, arXiv:2105.13626)."""

    def __init__(
        self, *, context_length: int, start: int | None, end: int, pad: int, offset: int = 0
    ) -> None:
        """Describe the ids.

        Args:
            context_length: L; a longer text loses its last bytes.
            start: id in front of a text, None for none.
            end: id behind a text.
            pad: id of what fills it up.
            offset: id of byte 0.
        """
        self.context_length = context_length
        self._start = [] if start is None else [start]
        self._end, self._pad, self._offset = end, pad, offset

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """T texts -> (T, L) int64. Bytes whose id is that of a special token are left out."""
        texts = [texts] if isinstance(texts, str) else texts
        special = {*self._start, self._end, self._pad}
        room = self.context_length - len(self._start) - 1
        ids = torch.full((len(texts), self.context_length), self._pad, dtype=torch.int64)
        for row, text in enumerate(texts):
            found = [byte + self._offset for byte in text.encode() if byte + self._offset not in special]
            line = [*self._start, *found[:room], self._end]
            ids[row, : len(line)] = torch.tensor(line)
        return ids
