"""Help texts in the documentation are what the command prints, and links lead somewhere.

After a change: `python tests/test_docs.py` writes the present help into the documents.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
HELP_BLOCK = re.compile(r"```\n\$ clipkit ([^\n]*--(?:help|list-tasks))\n(.*?)```", re.DOTALL)


def help_text(arguments: str) -> str:
    from clipkit.cli import main

    output = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(output):
            assert main(shlex.split(arguments)) == 0
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return "".join(line.rstrip() + "\n" for line in output.getvalue().strip().splitlines())


def blocks() -> list[tuple[Path, str, str]]:
    return [(path, *found) for path in DOCUMENTS for found in HELP_BLOCK.findall(path.read_text())]


def test_help_blocks_are_up_to_date() -> None:
    found = blocks()
    assert len(found) >= 2
    for path, arguments, text in found:
        assert text == help_text(arguments), f"run `python tests/test_docs.py` to renew {path.name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


def renew() -> None:
    for path in DOCUMENTS:
        text = path.read_text()
        path.write_text(HELP_BLOCK.sub(lambda m: f"```\n$ clipkit {m[1]}\n{help_text(m[1])}```", text))


if __name__ == "__main__":
    renew()
