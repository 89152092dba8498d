"""Changes of an index: right, whole or not at all, and beside searches."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from clipkit.retrieval.filters import Filter
from clipkit.retrieval.index import SearchIndex
from clipkit.retrieval.index_build import IndexSettings, build_index
from clipkit.retrieval.index_change import add, remove, update
from clipkit.retrieval.index_check import check
from clipkit.retrieval.write_lock import write_lock
from index_folders import images_of, write_embeddings
from index_jobs import POINTS

JOBS = Path(__file__).with_name("index_jobs.py")
KINDS = ("flat", "hnsw", "IVF4,PQ8x4fs,Refine(SQfp16)")
NUM_ROWS = 60


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_embeddings(tmp_path / "emb", images_of(NUM_ROWS))
    build_index(tmp_path / "emb", tmp_path / "idx")
    return tmp_path


def found(index: SearchIndex, rows: np.ndarray) -> list[int]:
    unit = rows.astype(np.float32)
    return index.search(unit / np.linalg.norm(unit, axis=1, keepdims=True), 1).ids[:, 0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_add_update_remove(tmp_path: Path, kind: str) -> None:
    images, more, newer = images_of(600), images_of(30, seed=1), images_of(10, seed=2)
    idx = tmp_path / "idx"
    write_embeddings(tmp_path / "emb", images)
    build_index(tmp_path / "emb", idx, IndexSettings(kind=kind, recall=0.99, num_queries=100))
    first = SearchIndex.open(idx)

    assert add(idx, write_embeddings(tmp_path / "more", more, first=600)).tolist() == list(range(600, 630))
    index = SearchIndex.open(idx)
    assert (index.version, index.num_rows) == (2, 630)
    assert found(index, more) == list(range(600, 630))
    assert index.metadata([629]) == [{"image_path": "629.jpg", "caption": "picture 629", "width": 6290}]

    assert remove(idx, ids=[5, 600], paths=["7.jpg"]) == 3
    index = SearchIndex.open(idx)
    assert index.num_rows == 627
    assert not {5, 7, 600} & set(index.search(images[5:6].astype(np.float32), 627).ids[0].tolist())
    assert found(index, images[[4, 6, 8]]) == [4, 6, 8]
    assert not {5, 7, 600} & set(index.ids.tolist())
    dogs = index.search(images[:1].astype(np.float32), 627, where=Filter.parse('caption contains "dog"')).ids[
        0
    ]
    expected = [n for n in range(630) if n % 3 == 0 and n != 600]
    assert sorted(dogs[: len(expected)]) == expected
    assert (dogs[len(expected) :] == -1).all()
    with pytest.raises(ValueError, match="no row with id 5"):
        index.metadata([5])

    columns = {"caption": [f"new {n}" for n in range(10)]}
    assert update(idx, write_embeddings(tmp_path / "newer", newer, first=20, columns=columns)) == 10
    index = SearchIndex.open(idx)
    assert index.num_rows == 627
    assert found(index, newer) == list(range(20, 30))
    assert index.metadata([20, 29], ["caption"]) == [{"caption": "new 0"}, {"caption": "new 9"}]
    assert found(index, images[[19, 30]]) == [19, 30]
    np.testing.assert_array_equal(index.vectors([20]), newer[:1].astype(np.float32))

    remove(idx, ids=list(range(100, 500)))
    index = SearchIndex.open(idx)
    assert (index.version, index.num_rows) == (5, 227)
    # Many are gone: what is left was written anew.
    assert len(np.load(idx / "current" / "ids.npy")) == 227
    assert found(index, newer) == list(range(20, 30))
    assert found(index, more[1:]) == list(range(601, 630))
    assert index.metadata([629, 20], ["width"]) == [{"width": 6290}, {"width": 200}]
    assert check(idx) == []
    add(idx, write_embeddings(tmp_path / "last", images_of(1, 9), first=1000))
    assert SearchIndex.open(idx).ids[-1] == 630  # not 629, were ids used twice
    # A version that was open before is as it was.
    assert (first.num_rows, first.is_current()) == (600, False)
    assert found(first, images[[5, 100]]) == [5, 100]
    assert first.metadata([5], ["image_path"]) == [{"image_path": "5.jpg"}]
    assert sorted(path.name for path in idx.iterdir()) == ["current", "v000006"]


def test_all_removed(root: Path) -> None:
    remove(root / "idx", ids=list(range(NUM_ROWS)))
    index = SearchIndex.open(root / "idx")
    assert index.num_rows == 0
    assert index.search(images_of(1).astype(np.float32), 3).ids.tolist() == [[-1, -1, -1]]
    assert check(root / "idx") == []
    add(root / "idx", root / "emb")
    index = SearchIndex.open(root / "idx")
    assert index.ids.tolist() == list(range(NUM_ROWS, 2 * NUM_ROWS))


def test_what_is_refused(root: Path) -> None:
    idx = root / "idx"
    other = write_embeddings(root / "other", images_of(5), first=100, model_id="xyz")
    wide = write_embeddings(root / "wide", images_of(5, width=8), first=100)
    unknown = write_embeddings(root / "unknown", images_of(5), first=100, model_id=None)
    for change in (add, update):
        with pytest.raises(ValueError, match="made by model xyz, the index by abc"):
            change(idx, other)
        with pytest.raises(ValueError, match="made by model unknown, the index by abc"):
            change(idx, unknown)
        with pytest.raises(ValueError, match="has width 8, the index 16"):
            change(idx, wide)
    with pytest.raises(ValueError, match=r"60 rows of .* are in the index already, the first is 0.jpg"):
        add(idx, root / "emb")
    absent = write_embeddings(root / "absent", images_of(3), first=NUM_ROWS - 1)
    with pytest.raises(ValueError, match=f"no row has the image_path {NUM_ROWS}.jpg, expected one"):
        update(idx, absent)
    with pytest.raises(ValueError, match="no row with id 60"):
        remove(idx, ids=[1, 60])
    with pytest.raises(ValueError, match=r"no row has the image_path x\.jpg"):
        remove(idx, paths=["x.jpg"])
    with pytest.raises(ValueError, match="has an index already: add --replace"):
        build_index(root / "emb", idx)
    with pytest.raises(ValueError, match="holds something else"):
        build_index(root / "emb", root / "other")
    with pytest.raises(FileNotFoundError, match="no index of clipkit's"):
        remove(root / "emb", ids=[1])
    assert SearchIndex.open(idx).version == 1
    assert sorted(path.name for path in idx.iterdir()) == ["current", "v000001"]


def test_pictures_in_tars_are_told_apart_by_their_tar(tmp_path: Path) -> None:
    def shard(name: str) -> dict[str, list[str]]:
        return {"shard": [f"/data/{name}.tar"] * 5}

    idx = tmp_path / "idx"
    build_index(write_embeddings(tmp_path / "a", images_of(5), columns=shard("a")), idx)
    assert len(add(idx, write_embeddings(tmp_path / "b", images_of(5, 1), columns=shard("b")))) == 5
    assert remove(idx, paths=["/data/b.tar/3.jpg"]) == 1
    assert SearchIndex.open(idx).ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9]


@pytest.mark.parametrize("job", ["build", "add", "remove"])
@pytest.mark.parametrize("point", POINTS)
def test_killed_on_the_way(root: Path, job: str, point: str) -> None:
    idx = root / "idx"
    remove(idx, ids=[59])
    before = SearchIndex.open(idx)
    emb = root / "emb" if job == "build" else write_embeddings(root / "new", images_of(7, 3), first=100)
    run = subprocess.run(
        [sys.executable, str(JOBS), point, job, str(idx), str(emb)], capture_output=True, check=False
    )
    assert run.returncode == -9, run.stderr.decode()
    index = SearchIndex.open(idx)
    assert check(idx) == []
    is_new = point == "current"
    expected = {"build": NUM_ROWS, "add": 66, "remove": 57}[job] if is_new else 59
    assert (index.version, index.num_rows) == (3 if is_new else 2, expected)
    assert (idx / ".lock").exists()
    # The dead writer holds nobody up, and what it left is removed.
    remove(idx, ids=[1])
    assert SearchIndex.open(idx).num_rows == expected - 1
    number = 4 if is_new else 3
    assert sorted(path.name for path in idx.iterdir()) == ["current", f"v{number:06d}"]
    assert found(before, images_of(NUM_ROWS)[[1, 58]]) == [1, 58]


def test_killed_in_the_first_build(root: Path) -> None:
    idx = root / "new"
    args = [sys.executable, str(JOBS), "not current", "build", str(idx), str(root / "emb")]
    assert subprocess.run(args, capture_output=True, check=False).returncode == -9
    with pytest.raises(FileNotFoundError):
        SearchIndex.open(idx)
    build_index(root / "emb", idx)
    assert check(idx) == []


def test_a_copy_without_links_can_be_searched(root: Path) -> None:
    shutil.copytree(root / "idx", root / "copy")  # follows links
    index = SearchIndex.open(root / "copy")
    assert (index.num_rows, index.is_current()) == (NUM_ROWS, True)
    assert check(root / "copy") == []
    with pytest.raises(ValueError, match="copy without links, which can be searched only"):
        remove(root / "copy", ids=[1])
    shutil.copytree(root / "idx", root / "true copy", symlinks=True)
    assert remove(root / "true copy", ids=[1]) == 1
    assert SearchIndex.open(root / "idx" / "current").num_rows == NUM_ROWS


def test_one_writer_at_a_time(root: Path) -> None:
    idx = root / "idx"
    with write_lock(idx / ".lock"), pytest.raises(OSError, match=f"is writing to {idx} .*{os.getpid()}"):
        remove(idx, ids=[1])
    assert SearchIndex.open(idx).version == 1
    assert remove(idx, ids=[1]) == 1
    assert not (idx / ".lock").exists()


def test_check_finds_damage(root: Path) -> None:
    idx = root / "idx"
    assert check(idx) == []
    for name in (
        "image.index",
        "ids.npy",
        "metadata/metadata_000001.arrow",
        "metadata/metadata_000000.parquet",
    ):
        path = idx / "current" / name
        content = path.read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        assert [name in problem and "sha256" in problem for problem in check(idx)] == [True]
        path.write_bytes(content[:-1])
        assert [f"{name} has {len(content) - 1} bytes" in problem for problem in check(idx)] == [True]
        with pytest.raises(ValueError, match="the index is damaged"):
            SearchIndex.open(idx)
        path.unlink()
        assert [f"{name} is missing" in problem for problem in check(idx)] == [True]
        path.write_bytes(content)
    assert check(idx) == []


def test_check_finds_what_checksums_do_not(root: Path) -> None:
    """A manifest that is at odds with files that are as it says."""
    path = root / "idx" / "current" / "clipkit.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "num_rows": 61}))
    assert ["numbers of rows" in problem for problem in check(root / "idx")] == [True]
    path.write_text(json.dumps({**manifest, "next_id": 59}))
    assert ["next_id" in problem for problem in check(root / "idx")] == [True]
    path.write_text(json.dumps({**manifest, "format_version": 2}))
    with pytest.raises(ValueError, match="format version 2, this clipkit reads 1: upgrade"):
        check(root / "idx")


def test_searches_beside_changes_see_whole_versions(root: Path) -> None:
    """Version v holds rows 100v..100v+9 besides; each search must find those of its own version only."""
    idx = root / "idx"
    images = images_of(10, 5)
    folders = [write_embeddings(root / f"v{v}", images, first=100 * v) for v in range(2, 9)]
    wrong: list[object] = []
    seen: set[int] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            index = SearchIndex.open(idx)
            hits = index.search(images.astype(np.float32), 1)
            paths = [row["image_path"] for row in index.metadata(hits.ids[:, 0])]
            seen.add(index.version)
            if index.version % 2 == 0:
                first = 100 * (index.version // 2 + 1)
                if paths != [f"{first + row}.jpg" for row in range(10)]:
                    wrong.append((index.version, paths))
            elif index.num_rows != NUM_ROWS or any(int(path[:-4]) >= 100 for path in paths):
                wrong.append((index.version, paths))

    def watched() -> None:
        try:
            look()
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=watched) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for folder in folders:
            add(idx, folder)
            index = SearchIndex.open(idx)
            remove(idx, ids=index.ids[-10:].tolist())
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert SearchIndex.open(idx).version == 15
    assert len(seen) > 1
