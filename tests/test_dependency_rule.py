"""Applications import the library, the library imports no application, applications never each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
APPLICATIONS = ("training", "zeroshot", "retrieval")


def _imports(path: Path) -> Iterator[str]:
    """Absolute names of all modules that a file imports, anywhere in it."""
    package = (path.parent.relative_to(ROOT)).parts
    package = ("clipkit", *package) if package[0] in APPLICATIONS else package
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _violations(root: Path, owner: str) -> list[str]:
    forbidden = {f"clipkit.{name}" for name in APPLICATIONS if name != owner} | set(APPLICATIONS)
    forbidden |= {"tests", "benchmarks"}
    found = []
    for path in sorted(root.rglob("*.py")):
        for name in _imports(path):
            if any(name == module or name.startswith(f"{module}.") for module in forbidden):
                found.append(f"{path.relative_to(ROOT)} imports {name}")
    return found


def test_library_imports_no_application() -> None:
    assert len(list((ROOT / "clipkit").rglob("*.py"))) > 10
    assert _violations(ROOT / "clipkit", "clipkit") == []


def test_applications_import_no_other_application() -> None:
    for name in APPLICATIONS:
        assert list((ROOT / name).rglob("*.py")), name
        assert _violations(ROOT / name, name) == []


def test_the_rule_sees_relative_and_nested_imports(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "bad.py").write_text(
        "def f():\n    from ..zeroshot import x\n"
        "import clipkit.retrieval.store\nfrom clipkit import zeroshot\n"
    )
    assert len(_violations(tmp_path / "training", "training")) >= 3
