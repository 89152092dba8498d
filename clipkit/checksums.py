"""Checksums of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

_BYTES_AT_ONCE = 1 << 20


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(_BYTES_AT_ONCE):
            digest.update(part)
    return digest.hexdigest()
