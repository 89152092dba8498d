"""Features that were computed before, on disk, by what they are features of.

One SQLite file a model, named by its model id, so that other weights or another preprocessing never meet old
features. A key is a hash of content, not of a name: a moved file is found again, a changed one is not.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipkit.user_cache import user_cache

_KEYS_PER_QUERY = 500
_BUSY_SECONDS = 60.0


def content_key(kind: str, content: bytes) -> bytes:
    """Key of what features are of.

    Args:
        kind: keeps apart what may have equal content, `image` or `text`, and the precision of the tower.
        content: the bytes of a file, or a text in UTF-8.
    """
    return hashlib.sha256(kind.encode() + b"\0" + content).digest()


class FeatureCache:
    """Features of one model; several processes may use it at a time."""

    def __init__(self, path: Path, embed_dim: int) -> None:
        """Open the file, and make it if it is not there.

        Args:
            path: of the SQLite file.
            embed_dim: width of all features in it.
        """
        self._path = path
        self._embed_dim = embed_dim
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._connect() as connection:
            # Seven features of 512 numbers fit into such a page, and one into the usual of 4 KiB.
            connection.execute("PRAGMA page_size=16384")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS features (key BLOB PRIMARY KEY, value BLOB NOT NULL)"
            )

    @classmethod
    def of_model(cls, model_id: str, embed_dim: int) -> FeatureCache:
        """The cache of a model under the user's cache folder."""
        return cls(user_cache("features") / f"{model_id}.sqlite", embed_dim)

    def read(self, keys: Iterable[bytes]) -> dict[bytes, Tensor]:
        """Features that are there, (D,) fp32 each, by key."""
        found: dict[bytes, Tensor] = {}
        with self._connect() as connection:
            for some in _parts(list(dict.fromkeys(keys)), _KEYS_PER_QUERY):
                marks = ",".join("?" * len(some))
                query = f"SELECT key, value FROM features WHERE key IN ({marks})"
                for key, value in connection.execute(query, some):
                    if len(value) == 4 * self._embed_dim:
                        found[key] = torch.from_numpy(np.frombuffer(value, np.float32).copy())
        return found

    def write(self, features: Mapping[bytes, Tensor]) -> None:
        """Keep features, (D,) each, by key; all of them or, after a crash, none."""
        rows = [(key, value.float().cpu().numpy().tobytes()) for key, value in features.items()]
        with self._connect() as connection:
            connection.executemany("INSERT OR REPLACE INTO features VALUES (?, ?)", rows)

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as connection, connection:
            yield connection


def _parts(items: Sequence[bytes], size: int) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
