"""Real data that lies beside a developer's checkout and is never part of the project."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_data(name: str) -> Path:
    """The path of one of the data sets; skips the test where it is absent."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"needs the real data '{name}', expected at {path}")
    return path
