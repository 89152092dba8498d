"""Where files are kept that only save time: whatever is in there can be deleted."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """A folder under `$XDG_CACHE_HOME/clipkit`, by default `~/.cache/clipkit`; it need not exist."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "clipkit" / name
