"""Collections of Milvus, in Milvus Lite."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipkit.retrieval.index import SearchIndex
from clipkit.retrieval.index_build import IndexSettings, build_index
from clipkit.retrieval.search import search_distinct
from index_folders import EMBED_DIM, images_of, unit, write_embeddings
from milvus_columns import METADATA, NUM_ROWS, queries_of

pytest.importorskip("pymilvus", reason="pymilvus is not installed: pip install 'clipkit[milvus]'")
pytest.importorskip("milvus_lite", reason="milvus-lite is not installed: pip install 'clipkit[milvus]'")

from clipkit.retrieval.milvus_build import build_milvus
from clipkit.retrieval.milvus_change import add, remove
from clipkit.retrieval.milvus_client import STATE, connect, read_property
from clipkit.retrieval.milvus_index import MilvusIndex

from clipkit.cli import main

NAME = "photos"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of embeddings, its flat index, and a collection of the same that no test changes."""
    folder = tmp_path_factory.mktemp("milvus")
    write_embeddings(folder / "emb", images_of(NUM_ROWS), columns=METADATA)
    build_index(folder / "emb", folder / "idx", IndexSettings(kind="flat"))
    build_milvus(folder / "emb", str(folder / "kept.db"), NAME)
    return folder


@pytest.fixture(scope="module")
def kept(root: Path) -> MilvusIndex:
    return MilvusIndex.open(str(root / "kept.db"), NAME)


@pytest.fixture
def uri(root: Path, tmp_path: Path) -> str:
    """Of a collection that a test may change."""
    place = str(tmp_path / "m.db")
    build_milvus(root / "emb", place, NAME)
    return place


def test_finds_what_a_flat_index_and_a_comparison_with_all_find(root: Path, kept: MilvusIndex) -> None:
    queries = queries_of(150)
    hits, flat = kept.search(queries, 10), SearchIndex.open(root / "idx").search(queries, 10)
    exact = queries.astype(np.float64) @ images_of(NUM_ROWS).astype(np.float64).T
    assert hits.ids.tolist() == flat.ids.tolist() == np.argsort(-exact, axis=1)[:, :10].tolist()
    np.testing.assert_allclose(hits.similarities, -np.sort(-exact, axis=1)[:, :10], atol=1e-6)
    assert (hits.ids.dtype, hits.similarities.dtype) == (np.int64, np.float32)


def test_what_it_says_of_itself(root: Path, kept: MilvusIndex) -> None:
    flat = SearchIndex.open(root / "idx")
    for name in ("model_id", "model_source", "embed_dim", "num_rows", "columns", "version", "keeps_vectors"):
        assert getattr(kept, name) == getattr(flat, name), name
    assert (kept.model_id, kept.model_source, kept.facts.kind) == ("abc", "my-model", "FLAT")


def test_metadata_and_vectors_in_the_order_asked_for(root: Path, kept: MilvusIndex) -> None:
    flat = SearchIndex.open(root / "idx")
    ids = [59, 0, 33, 0]
    assert kept.metadata(ids) == flat.metadata(ids)
    assert kept.metadata(ids, ["vector", "a note"]) == flat.metadata(ids, ["vector", "a note"])
    assert kept.metadata([]) == []
    np.testing.assert_array_equal(kept.vectors(ids), images_of(NUM_ROWS)[ids].astype(np.float32))
    assert kept.vectors([]).shape == (0, EMBED_DIM)
    with pytest.raises(ValueError, match="no row with id 60 in collection photos"):
        kept.metadata([1, 60])
    with pytest.raises(ValueError, match="no column 'nothing'"):
        kept.metadata([1], ["nothing"])


@pytest.mark.parametrize("k", [1, 59, 60, 61, 100_000])
def test_more_than_there_are(root: Path, kept: MilvusIndex, k: int) -> None:
    hits, flat = kept.search(queries_of(2), k), SearchIndex.open(root / "idx").search(queries_of(2), k)
    assert hits.ids.tolist() == flat.ids.tolist()
    assert np.isneginf(hits.similarities[:, 60:]).all()


def test_no_queries_and_bad_ones(kept: MilvusIndex) -> None:
    assert kept.search(queries_of(0), 3).ids.shape == (0, 3)
    with pytest.raises(ValueError, match=r"expected a query of shape \(n, 16\), got \(1, 8\)"):
        kept.search(np.ones((1, 8), np.float32), 3)
    with pytest.raises(ValueError, match="query 0 has norm 4"):
        kept.search(np.ones((1, EMBED_DIM), np.float32), 3)
    with pytest.raises(ValueError, match="k must be at least 1"):
        kept.search(queries_of(1), 0)


def test_near_duplicates_are_left_out(root: Path, kept: MilvusIndex) -> None:
    flat = SearchIndex.open(root / "idx")
    for threshold in (0.2, 0.5, 0.99):
        found = search_distinct(kept, queries_of(2), 8, threshold)
        assert found.ids.tolist() == search_distinct(flat, queries_of(2), 8, threshold).ids.tolist()


def test_a_graph_finds_what_the_flat_index_finds(root: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "m.db")
    graph = build_milvus(root / "emb", place, NAME, IndexSettings(kind="hnsw"))
    flat = SearchIndex.open(root / "idx").search(queries_of(20), 10)
    assert graph.facts.kind == "HNSW"
    assert graph.search(queries_of(20), 10).ids.tolist() == flat.ids.tolist()


def test_texts(tmp_path: Path) -> None:
    texts = images_of(20, 4)
    emb = write_embeddings(tmp_path / "emb", images_of(20), texts=texts)
    index = build_milvus(emb, str(tmp_path / "m.db"), NAME, IndexSettings(embed="text"))
    assert index.search(texts[[3, 8]].astype(np.float32), 1).ids.tolist() == [[3], [8]]
    assert (
        build_milvus(emb, str(tmp_path / "m.db"), "images").search(texts[:1].astype(np.float32), 1)
        is not None
    )
    with pytest.raises(ValueError, match="one kind of vectors"):
        build_milvus(emb, str(tmp_path / "m.db"), "both", IndexSettings(embed="both"))


def test_add_and_remove(root: Path, uri: str, tmp_path: Path) -> None:
    more = images_of(7, 3)
    extra = {"size": [row + 0.0 for row in range(7)]}  # of another type, and fewer columns
    assert add(uri, NAME, write_embeddings(tmp_path / "a", more, first=100, columns=extra)).tolist() == list(
        range(60, 67)
    )
    index = MilvusIndex.open(uri, NAME)
    assert (index.num_rows, index.version) == (67, 2)
    assert index.search(more.astype(np.float32), 1).ids[:, 0].tolist() == list(range(60, 67))
    row = index.metadata([63])[0]
    assert (row["image_path"], row["size"], row["tags"]) == ("103.jpg", 3, None)

    assert remove(uri, NAME, ids=[0, 66], paths=["103.jpg", "0.jpg"]) == 3
    index = MilvusIndex.open(uri, NAME)
    assert (index.num_rows, index.version) == (64, 3)
    found = index.search(queries_of(1), 100).ids[0]
    assert sorted(found[found >= 0].tolist()) == [row for row in range(67) if row not in (0, 63, 66)]
    with pytest.raises(ValueError, match="no row with id 63"):
        index.vectors([63])
    # An id is never used twice, also the highest.
    assert add(uri, NAME, write_embeddings(tmp_path / "b", images_of(1, 5), first=900)).tolist() == [67]


def test_pictures_in_tars_are_told_apart_by_their_tar(tmp_path: Path) -> None:
    def shard(name: str) -> dict[str, list[str]]:
        return {"shard": [f"/data/{name}.tar"] * 5}

    place = str(tmp_path / "m.db")
    build_milvus(write_embeddings(tmp_path / "a", images_of(5), columns=shard("a")), place, NAME)
    assert len(add(place, NAME, write_embeddings(tmp_path / "b", images_of(5, 1), columns=shard("b")))) == 5
    assert remove(place, NAME, paths=["/data/b.tar/3.jpg"]) == 1
    with pytest.raises(ValueError, match=r"no row has the image_path 3\.jpg"):
        remove(place, NAME, paths=["3.jpg"])
    found = MilvusIndex.open(place, NAME).search(queries_of(1), 10).ids[0]
    assert sorted(found.tolist()) == [-1, 0, 1, 2, 3, 4, 5, 6, 7, 9]


def test_what_is_refused_changes_nothing(root: Path, uri: str, tmp_path: Path) -> None:
    def folder(name: str, **options: Any) -> Path:
        options = {"images": images_of(5), "first": 100, **options}
        return write_embeddings(tmp_path / name, options.pop("images"), **options)

    bad = images_of(1200, 2)
    bad[1100] *= 2
    for made, message in (
        (folder("model", model_id="xyz"), "made by model xyz, collection photos by abc"),
        (folder("unknown", model_id=None), "made by an unknown model"),
        (folder("wide", images=images_of(5, width=8)), "has width 8, collection photos 16"),
        (folder("columns", columns={"new": [1] * 5}), "has no column new"),
        (folder("types", columns={"size": ["x"] * 5}), "column size holds int64"),
        (folder("long", columns={"a note": ["x" * 65_536] * 5}), "65536 bytes, Milvus keeps up to 65535"),
        (folder("norm", images=bad), "has norm 2"),
        (root / "emb", r"60 rows of .* are in collection photos already, the first is 0.jpg"),
    ):
        with pytest.raises(ValueError, match=message):
            add(uri, NAME, made)
        assert MilvusIndex.open(uri, NAME).num_rows == NUM_ROWS
    with pytest.raises(ValueError, match="no row with id 60"):
        remove(uri, NAME, ids=[1, 60])
    with pytest.raises(ValueError, match=r"no row has the image_path x\.jpg"):
        remove(uri, NAME, ids=[1], paths=["x.jpg"])
    assert MilvusIndex.open(uri, NAME).num_rows == NUM_ROWS


def test_a_build_replaces_only_when_asked_and_complete(root: Path, uri: str, tmp_path: Path) -> None:
    other = write_embeddings(tmp_path / "other", images_of(5, 2))
    with pytest.raises(ValueError, match="has a collection photos already: add --replace"):
        build_milvus(other, uri, NAME)
    broken = images_of(700, 2)
    broken[-1] = np.nan
    with pytest.raises(ValueError, match="image embedding 199 has norm nan"):
        build_milvus(write_embeddings(tmp_path / "b", broken, num_files=1), uri, NAME, replace=True)
    assert connect(uri).list_collections() == [NAME]
    assert MilvusIndex.open(uri, NAME).num_rows == NUM_ROWS
    assert build_milvus(other, uri, NAME, replace=True).num_rows == 5
    assert connect(uri).list_collections() == [NAME]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (IndexSettings(kind="IVF4,Flat"), "--kind must be auto or one of flat, hnsw, diskann in Milvus"),
        (IndexSettings(recall=0.9), "--recall is for faiss"),
        (IndexSettings(embed="text"), "has no text embeddings"),
    ],
)
def test_settings_that_do_not_fit(root: Path, tmp_path: Path, settings: IndexSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_milvus(root / "emb", str(tmp_path / "m.db"), NAME, settings)
    assert not (tmp_path / "m.db").exists()


def test_a_column_that_milvus_cannot_keep(tmp_path: Path) -> None:
    emb = write_embeddings(tmp_path / "emb", images_of(4), columns={"raw": [b"x"] * 4})
    with pytest.raises(ValueError, match="column raw holds binary, which a Milvus collection cannot keep"):
        build_milvus(emb, str(tmp_path / "m.db"), NAME)


KILLED = """
import os, signal, sys
from clipkit.retrieval import milvus_build, milvus_change
count = 0
before = milvus_build.entities
def entities(*args):
    global count
    count += 1
    if count == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return before(*args)
milvus_build.entities = entities
job, emb, uri = sys.argv[1:]
if job == "add":
    milvus_change.add(uri, "photos", emb)
else:
    milvus_build.build_milvus(emb, uri, "photos", replace=True)
"""


def test_killed_on_the_way(root: Path, tmp_path: Path) -> None:
    place, emb = str(tmp_path / "m.db"), write_embeddings(tmp_path / "new", images_of(900, 3), first=100)
    script = "from clipkit.retrieval import milvus_build as m; import sys; m.build_milvus(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", script, str(root / "emb"), place, NAME], check=True)
    for job in ("add", "build"):
        run = subprocess.run(
            [sys.executable, "-c", KILLED, job, str(emb), place], capture_output=True, check=False
        )
        assert run.returncode == -9, run.stderr.decode()
    assert read_property(connect(place), NAME, STATE)["pending"] == [60, 960]  # type: ignore[index]
    assert MilvusIndex.open(place, NAME).num_rows > NUM_ROWS
    # What the dead writer left is removed by the next change.
    assert add(place, NAME, emb).tolist() == list(range(960, 1860))
    assert MilvusIndex.open(place, NAME).num_rows == NUM_ROWS + 900


def test_not_installed(monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "m.db").mkdir()
    arguments = ["--backend", "milvus", "--uri", str(tmp_path / "m.db")]
    for module in ("pymilvus", "milvus_lite"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, module, None)
            assert main(["index", "build", str(root / "emb"), "--out", "x", *arguments]) == 1
        assert capsys.readouterr().err == (f"clipkit: Milvus needs {module}: pip install 'clipkit[milvus]'\n")


def test_uris_and_names_that_are_none(root: Path, uri: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither http://HOST:19530 nor a file of Milvus Lite"):
        MilvusIndex.open(str(tmp_path / "idx"), NAME)
    with pytest.raises(FileNotFoundError, match="there is no Milvus Lite file"):
        MilvusIndex.open(str(tmp_path / "absent.db"), NAME)
    assert not (tmp_path / "absent.db").exists()
    with pytest.raises(FileNotFoundError, match="has no collection other, it has: photos"):
        MilvusIndex.open(uri, "other")
    with pytest.raises(ValueError, match="'a-b' is no name of a Milvus collection"):
        build_milvus(root / "emb", uri, "a-b")
    client = connect(uri)
    client.create_collection("foreign", dimension=4)
    with pytest.raises(ValueError, match="collection foreign was not made by clipkit"):
        MilvusIndex.open(uri, "foreign")


def test_an_error_of_milvus_is_one_line(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    index = MilvusIndex.open(uri, NAME)
    connect(uri).drop_collection(NAME)
    with pytest.raises(OSError, match=r"Milvus at .*m\.db: "):
        index.search(queries_of(1), 3)
    assert capsys.readouterr() == ("", "")


def test_a_file_that_another_process_has_open(uri: str) -> None:
    search = ["from clipkit.cli import main; import sys; sys.exit(main(sys.argv[1:]))", "search", NAME, "x"]
    arguments = [sys.executable, "-c", *search, "--backend", "milvus", "--uri", uri]
    found = subprocess.run(arguments, capture_output=True, check=False, text=True)
    assert (found.returncode, found.stdout) == (1, "")
    assert "another process has it open" in found.stderr
    assert len(found.stderr.splitlines()) == 1, found.stderr


def test_nobody_answers() -> None:
    with pytest.raises(OSError, match=r"Milvus at 127\.0\.0\.1:9: Fail connecting"):
        MilvusIndex.open("http://user:secret@127.0.0.1:9", NAME)


def run(capsys: Any, *arguments: object) -> Any:
    assert main([str(one) for one in arguments]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_the_commands(root: Path, tmp_path: Path, capsys: Any) -> None:
    more = write_embeddings(tmp_path / "more", images_of(3, 2), first=300)
    place = ("--backend", "milvus", "--uri", tmp_path / "m.db")
    made = run(capsys, "index", "build", root / "emb", "--out", NAME, *place, "--json", "--quiet")
    assert made == {"collection": NAME, "kind": "FLAT", "num_rows": NUM_ROWS}
    assert run(capsys, "index", "add", NAME, more, *place, "--json") == {
        "added": 3,
        "num_rows": 63,
        "version": 2,
    }
    removed = run(capsys, "index", "remove", NAME, "--id", 1, "--path", "300.jpg", *place, "--json")
    assert removed == {"removed": 2, "num_rows": 61, "version": 3}
    assert main(["index", "remove", NAME, "--id", "1", "--uri", "x.db"]) == 2
    assert "--uri is of Milvus: add --backend milvus" in capsys.readouterr().err
    assert main(["index", "remove", NAME, "--id", "1", "--backend", "milvus"]) == 2
    assert "--backend milvus needs --uri" in capsys.readouterr().err


def test_search_by_a_model_and_refuse_another(tmp_path: Path, capsys: Any) -> None:
    from clipkit.retrieval.search import encode_queries
    from serve_jobs import captions, small_model

    from clipkit import create

    model = small_model()
    model.save(tmp_path / "model")
    create("test-vit").save(tmp_path / "other")
    texts = captions()
    emb = write_embeddings(
        tmp_path / "emb",
        encode_queries(model, texts, []),
        model_id=model.model_id,
        columns={"caption": texts},
    )
    place = ("--backend", "milvus", "--uri", tmp_path / "m.db")
    run(capsys, "index", "build", emb, "--out", NAME, *place, "--json", "--quiet")
    search = ("search", NAME, texts[7], "--json", *place, "--model")
    found = run(capsys, *search, tmp_path / "model", "-k", 3, "--where", "width >= 50")
    assert [len(found), found[0]["id"], found[0]["caption"]] == [3, 7, texts[7]]
    assert main([str(one) for one in (*search, tmp_path / "other")]) == 2
    assert "collection photos was made by model" in capsys.readouterr().err


def test_serve(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the service is not installed: pip install 'clipkit[serve]'")
    from clipkit.retrieval.service.catalog import Catalog
    from clipkit.retrieval.service.milvus_storage import Collections, collections_of

    place = str(tmp_path / "m.db")
    build_milvus(write_embeddings(tmp_path / "emb", images_of(10)), place, NAME)
    storage = Collections(place)
    places = collections_of({"shown": Path(NAME)})
    catalog = Catalog(places, storage, model_id="abc", embed_dim=EMBED_DIM)
    new = unit(images_of(2, 8).astype(np.float32))
    rows = [{"image_path": f"n{row}.jpg", "width": row} for row in range(2)]
    assert catalog.edit("shown", lambda at: storage.add(at, new, rows)) == [10, 11]
    served = catalog.get("shown").index
    assert served.search(new, 1).ids.tolist() == [[10], [11]]
    assert served.metadata(np.array([11]), ["image_path", "caption"]) == [
        {"image_path": "n1.jpg", "caption": None}
    ]
    with pytest.raises(ValueError, match=r"are in collection photos already, the first is n0\.jpg"):
        storage.add(places["shown"], new, rows)
    catalog.edit("shown", lambda at: storage.remove(at, [10]))
    assert catalog.get("shown").index.num_rows == 11
    with pytest.raises(ValueError, match="no row with one of these ids"):
        storage.remove(places["shown"], [10])
    with pytest.raises(ValueError, match="was made by model abc, not xyz"):
        Catalog(places, storage, model_id="xyz", embed_dim=EMBED_DIM)
    assert remove(place, NAME, ids=[11]) == 1
