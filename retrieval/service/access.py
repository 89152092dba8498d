"""Keys: read once from a file or the environment, compared in constant time, never shown."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

KEYS_VARIABLE = "CLIPKIT_SERVE_API_KEYS"
ADMIN_VARIABLE = "CLIPKIT_SERVE_ADMIN_TOKEN"
_MIN_CHARS = 16


class Keys:
    """A set of secrets; empty, it admits nobody."""

    def __init__(self, secrets: Iterable[str]) -> None:
        """Keep the hashes of `secrets`.

        Raises:
            ValueError: one is too short to be a secret.
        """
        found = [secret for secret in secrets if secret]
        if any(len(secret) < _MIN_CHARS for secret in found):
            raise ValueError(
                f"keys must have at least {_MIN_CHARS} characters: `openssl rand -hex 32` makes one"
            )
        self._digests = [_digest(secret) for secret in found]

    def __len__(self) -> int:
        return len(self._digests)

    def admit(self, given: str | None) -> bool:
        """Whether `given` is one of the keys; takes the same time whichever it is, or whether it is one."""
        digest = _digest(given or "")
        is_known = [hmac.compare_digest(digest, one) for one in self._digests]  # all, not up to the first
        return any(is_known) and bool(given)


def read_keys(path: Path | None, variable: str, environment: Mapping[str, str] = os.environ) -> Keys:
    """Keys of a file (one a line, `#` begins a comment line) and of a variable (between commas).

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no key, or one is too short.
    """
    secrets = [part.strip() for part in environment.get(variable, "").split(",")]
    if path is not None:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        from_file = [line for line in lines if line and not line.startswith("#")]
        if not from_file:
            raise ValueError(f"{path} holds no key: expected one a line")
        secrets += from_file
    return Keys(secrets)


def key_of(headers: Mapping[str, str]) -> str | None:
    """The key of a request: `Authorization: Bearer KEY`, or `X-API-Key: KEY`."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
