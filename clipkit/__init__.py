"""clipkit: one model directory for contrastive dual encoders, from training to search.

The names below are imported when they are first used, so that `import clipkit` (and with it
`clipkit --help`) costs no import of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from clipkit.version import __version__

if TYPE_CHECKING:
    from clipkit.model import DualEncoder, create, load

_OWNERS = {"DualEncoder": "clipkit.model", "create": "clipkit.model", "load": "clipkit.model"}

__all__ = ["DualEncoder", "__version__", "create", "load"]


def __getattr__(name: str) -> Any:
    if name not in _OWNERS:
        raise AttributeError(f"module 'clipkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_OWNERS[name]), name)


def __dir__() -> list[str]:
    return __all__
