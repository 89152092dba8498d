"""Seeds of random draws that depend on nothing but their place in the training."""

from __future__ import annotations

import hashlib


def seed_of(*place: int) -> int:
    """A seed in [0, 2^63) for a run's seed and the numbers of, say, an epoch and an image."""
    digest = hashlib.sha256(",".join(map(str, place)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
