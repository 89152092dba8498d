"""Rows that the service adds to an index on the disk: the same as from a folder, whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipkit.retrieval.index import SearchIndex
from clipkit.retrieval.index_build import IndexSettings, build_index
from clipkit.retrieval.index_change import add
from clipkit.retrieval.index_check import check
from index_folders import EMBED_DIM, images_of, unit, write_embeddings

pytest.importorskip("fastapi", reason="the service is not installed: pip install 'clipkit[serve]'")

from clipkit.retrieval.service.catalog import Place
from clipkit.retrieval.service.storage import Folders

JOBS = Path(__file__).with_name("index_jobs.py")
NUM_ROWS = 20


@pytest.fixture
def place(tmp_path: Path) -> Place:
    build_index(write_embeddings(tmp_path / "emb", images_of(NUM_ROWS)), tmp_path / "idx")
    return Place(path=tmp_path / "idx")


def vectors_of(num_rows: int) -> np.ndarray:
    return unit(np.random.default_rng(9).normal(size=(num_rows, EMBED_DIM))).astype(np.float32)


def test_rows_are_those_that_a_folder_would_give(place: Place, tmp_path: Path) -> None:
    """Byte for byte: no answer tells in which way a row came in."""
    build_index(tmp_path / "emb", tmp_path / "other")
    vectors = vectors_of(3)
    rows = [{"image_path": f"{n}.jpg", "caption": f"new {n}", "width": n} for n in range(50, 53)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    folder = write_embeddings(tmp_path / "same", vectors.astype(np.float16), num_files=1, columns=columns)
    assert Folders().add(place, vectors, rows) == add(tmp_path / "other", folder).tolist() == [20, 21, 22]
    for name in ("image.index", "ids.npy", "metadata/metadata_000002.arrow"):
        ours, theirs = (path / "current" / name for path in (place.path, tmp_path / "other"))
        assert ours.read_bytes() == theirs.read_bytes()
    assert check(place.path) == []


def test_fields_that_only_some_rows_have_are_kept(place: Place) -> None:
    rows: list[dict[str, Any]] = [{"image_path": "a"}, {"caption": "b", "tags": ["x"]}, {}]
    ids = Folders().add(place, vectors_of(3), rows)
    index = SearchIndex.open(place.path)
    assert index.metadata(ids) == [
        {"image_path": "a", "caption": None, "width": None, "tags": None},
        {"image_path": None, "caption": "b", "width": None, "tags": ["x"]},
        {"image_path": None, "caption": None, "width": None, "tags": None},
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "expected a field in at least one row, such as image_path, got none"),
        ({"a": {}}, "metadata: Cannot write struct type"),
        ({"a": 2**70}, "metadata: .*too (large|big)"),
        ({"a": [1, "x"]}, "metadata: Could not convert"),
        ({"image_path": "3.jpg"}, r"1 rows of the request are in the index already, the first is 3\.jpg"),
    ],
)
def test_what_cannot_be_kept_is_refused(place: Place, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Folders().add(place, vectors_of(1), [row])
    index = SearchIndex.open(place.path)
    assert (index.version, index.num_rows) == (1, NUM_ROWS)


def test_an_index_of_both_kinds_is_not_added_to(tmp_path: Path) -> None:
    emb = write_embeddings(tmp_path / "emb", images_of(NUM_ROWS), texts=images_of(NUM_ROWS, 1))
    build_index(emb, tmp_path / "idx", IndexSettings(embed="both"))
    with pytest.raises(
        ValueError, match="has vectors of images and texts: add rows with `clipkit index add`"
    ):
        Folders().add(Place(path=tmp_path / "idx"), vectors_of(1), [{"image_path": "new.jpg"}])


def test_killed_on_the_way_nothing_is_left_outside_the_index(place: Place, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    folder = write_embeddings(tmp_path / "new", images_of(7, 3), first=100)
    run = subprocess.run(
        [sys.executable, str(JOBS), "adding", "request", str(place.path), str(folder)],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        check=False,
    )
    assert run.returncode == -9, run.stderr.decode()
    assert list(temporary.iterdir()) == []
    assert SearchIndex.open(place.path).num_rows == NUM_ROWS
    Folders().remove(place, [3])  # removes what was left inside
    assert sorted(path.name for path in place.path.iterdir()) == ["current", "v000002"]
