from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAPPED = {"training", "zeroshot", "retrieval"}


@pytest.fixture(scope="module")
def metadata() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def _folders() -> set[str]:
    """Packages that the folders hold, by the names they are imported as."""
    packages = set()
    for top in {"clipkit"} | MAPPED:
        for init in (ROOT / top).rglob("__init__.py"):
            name = ".".join(init.parent.relative_to(ROOT).parts)
            packages.add(f"clipkit.{name}" if top in MAPPED else name)
    return packages


def test_every_package_is_listed(metadata: configparser.ConfigParser) -> None:
    listed = metadata["options"]["packages"].split()
    assert len(listed) == len(set(listed)) >= 8
    assert set(listed) == _folders()


def test_mapped_folders(metadata: configparser.ConfigParser) -> None:
    mapping = dict(line.split(" = ") for line in metadata["options"]["package_dir"].strip().splitlines())
    assert mapping == {f"clipkit.{name}": name for name in MAPPED}
    links = sorted((ROOT / "typings" / "clipkit").iterdir())
    assert {link.name for link in links} == MAPPED
    assert all(link.resolve() == ROOT / link.name for link in links)


def test_data_files_are_packaged(metadata: configparser.ConfigParser) -> None:
    patterns = metadata["options.package_data"]["clipkit.configs"].split()
    files = [path for path in (ROOT / "clipkit" / "configs").iterdir() if path.suffix not in {".py", ".pyc"}]
    files = [path for path in files if path.is_file()]
    assert len(files) >= 2
    assert all(any(path.match(pattern) for pattern in patterns) for path in files)


def test_faiss_wheels_are_never_asked_for_together(metadata: configparser.ConfigParser) -> None:
    extras = metadata["options.extras_require"]
    assert "faiss" not in metadata["options"]["install_requires"]
    for name, requirements in extras.items():
        assert not ("faiss-cpu" in requirements and "faiss-gpu" in requirements), name


def test_tools_are_pinned_alike(metadata: configparser.ConfigParser) -> None:
    dev = metadata["options.extras_require"]["dev"]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    for tool in ("ruff", "mypy"):
        (version,) = re.findall(rf"{tool}==(\S+)", dev)
        assert f"{tool}" in hooks
        assert f"rev: v{version}" in hooks
