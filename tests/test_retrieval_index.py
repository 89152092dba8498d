"""Searching: exact where it promises to be, whatever the kind of index, the filter, or who wrote it."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clipkit.retrieval.filters import Filter
from clipkit.retrieval.index import SearchIndex, nearest
from clipkit.retrieval.index_build import IndexSettings, build_index, choose_factory
from clipkit.retrieval.index_faiss import SearchSettings, VectorIndex
from index_folders import EMBED_DIM, images_of, unit, write_embeddings

NUM_ROWS = 400


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return images_of(NUM_ROWS)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> SearchIndex:
    root = tmp_path_factory.mktemp("index")
    write_embeddings(root / "emb", images, texts=images_of(NUM_ROWS, 1), num_files=3)
    build_index(root / "emb", root / "idx", IndexSettings(embed="both"))
    return SearchIndex.open(root / "idx")


def queries_of(count: int, seed: int = 7) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, EMBED_DIM))).astype(np.float32)


def brute_force(rows: np.ndarray, queries: np.ndarray, k: int, allowed: np.ndarray) -> list[list[int]]:
    found = []
    for query in queries.astype(np.float64):
        scores = rows.astype(np.float64) @ query
        places = [row for row in range(len(rows)) if allowed[row]]
        found.append(sorted(places, key=lambda row: -scores[row])[:k])
    return found


def test_flat_is_brute_force(index: SearchIndex, images: np.ndarray) -> None:
    assert (index.num_rows, index.embed_dim, index.version, index.model_id) == (NUM_ROWS, 16, 1, "abc")
    assert (index.factory, index.model_source) == ("Flat", "my-model")
    queries = queries_of(9)
    hits = index.search(queries, 13)
    assert hits.ids.tolist() == brute_force(images, queries, 13, np.ones(NUM_ROWS, bool))
    expected = np.take_along_axis(queries @ images.T.astype(np.float32), hits.ids, 1)
    np.testing.assert_allclose(hits.similarities, expected, atol=1e-6)
    assert np.array_equal(index.exact(queries, 13).ids, hits.ids)


@pytest.mark.parametrize("exact_up_to", [0, 20_000])
@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ('caption contains "dog"', lambda n: n % 3 == 0),
        ("width >= 1000 and not (width = 1010 or width > 2000)", lambda n: 100 <= n <= 200 and n != 101),
        ("width in (50, 70, 71)", lambda n: n in (5, 7)),
        ("width < 0", lambda n: False),
    ],
)
def test_filters(index, images, monkeypatch, where, wanted, exact_up_to) -> None:
    monkeypatch.setattr("clipkit.retrieval.index._EXACT_UP_TO", exact_up_to)
    allowed = np.array([wanted(number) for number in range(NUM_ROWS)])
    queries = queries_of(5, seed=3)
    hits = index.search(queries, 20, where=Filter.parse(where))
    expected = brute_force(images, queries, 20, allowed)
    assert hits.ids.tolist() == [row + [-1] * (20 - len(row)) for row in expected]
    assert np.isneginf(hits.similarities[hits.ids < 0]).all()
    assert np.isfinite(hits.similarities[hits.ids >= 0]).all()


def test_equal_rows_come_by_rising_id(tmp_path: Path) -> None:
    rows = np.zeros((40, 4), np.float16)
    rows[np.arange(40), np.arange(40) % 4] = 1
    write_embeddings(tmp_path / "emb", rows)
    build_index(tmp_path / "emb", tmp_path / "idx")
    index = SearchIndex.open(tmp_path / "idx")
    hits = index.search(np.eye(4, dtype=np.float32), 10)
    assert hits.ids.tolist() == [list(range(first, 40, 4)) for first in range(4)]
    assert (hits.similarities == 1).all()
    assert index.exact(np.eye(4, dtype=np.float32), 3).ids.tolist() == [[i, i + 4, i + 8] for i in range(4)]


def test_nearest_over_blocks_is_a_stable_sort() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(-2, 3, size=(500, 3)).astype(np.float32) / 2  # many ties
    queries = rng.integers(-2, 3, size=(150, 3)).astype(np.float32)
    blocks = [(np.arange(a, b), rows[a:b]) for a, b in ((0, 7), (7, 8), (8, 300), (300, 500))]
    similarities, places = nearest(queries, blocks, 11)
    expected = np.argsort(-(queries @ rows.T), axis=1, kind="stable")[:, :11]
    assert np.array_equal(places, expected)
    assert np.array_equal(similarities, np.take_along_axis(queries @ rows.T, expected, 1))


def test_more_than_there_is(index: SearchIndex) -> None:
    hits = index.search(queries_of(2), NUM_ROWS + 3)
    assert (hits.ids[:, -3:] == -1).all()
    assert sorted(hits.ids[0, :-3]) == list(range(NUM_ROWS))
    assert index.search(queries_of(0), 3).ids.shape == (0, 3)


def test_metadata_and_vectors_by_id(index: SearchIndex, images: np.ndarray) -> None:
    rows = index.metadata([399, 0, 399], ["width", "image_path"])
    assert rows == [{"width": 10 * n, "image_path": f"{n}.jpg"} for n in (399, 0, 399)]
    assert index.metadata([]) == []
    assert index.columns == ("image_path", "caption", "width")
    assert np.array_equal(index.vectors([3, 200]), images[[3, 200]].astype(np.float32))
    for wrong in (400, -1):
        with pytest.raises(ValueError, match=f"no row with id {wrong}"):
            index.metadata([wrong])
    with pytest.raises(ValueError, match="no column 'size', there are: image_path"):
        index.metadata([0], ["size"])


def test_the_other_modality(index: SearchIndex) -> None:
    texts = SearchIndex.open(index.path, modality="text")
    assert np.array_equal(texts.vectors([5]), images_of(NUM_ROWS, 1)[[5]].astype(np.float32))


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (np.ones((1, 3), np.float32), r"shape \(n, 16\), got \(1, 3\)"),
        (np.ones(16, np.float32), r"got \(16,\)"),
        (np.ones((1, 16), np.float32), "norm 4, expected L2-normalised"),
        (np.full((1, 16), np.nan, np.float32), "norm nan"),
    ],
)
def test_bad_queries(index: SearchIndex, queries: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        index.search(queries, 1)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        index.search(queries_of(1), 0)


@pytest.mark.parametrize("kind", ["hnsw", "IVF16,PQ8x4fs,Refine(SQfp16)", "IVF16,Flat", "IVF16,SQfp16"])
def test_approximate_kinds(tmp_path: Path, kind: str) -> None:
    images = images_of(1500)
    write_embeddings(tmp_path / "emb", images, texts=images_of(1500, 1))
    report = build_index(
        tmp_path / "emb", tmp_path / "idx", IndexSettings(kind=kind, recall=0.9, num_queries=300)
    )["image"]
    assert report.reaches_goal
    index = SearchIndex.open(tmp_path / "idx")
    assert index.settings == report.chosen.settings
    # Residuals in fp16 are rounded once more.
    np.testing.assert_allclose(index.vectors([3, 1499]), images[[3, 1499]], atol=1e-3 if "Q" in kind else 0)
    queries = queries_of(60)
    everything = np.ones(1500, bool)
    hits = index.search(queries, 10).ids
    exact = brute_force(images, queries, 10, everything)
    shared = [len(set(a) & set(b)) for a, b in zip(hits.tolist(), exact, strict=True)]
    assert np.mean(shared) / 10 > 0.8
    thorough = SearchSettings(nprobe=16, ef_search=1500, k_factor=40)
    all_of_it = index.search(queries, 10, settings=thorough).ids.tolist()
    assert np.mean([a == b for a, b in zip(all_of_it, exact, strict=True)]) > 0.95
    # One list of sixteen has fewer than 500 rows: the rest comes from comparing all.
    hits = index.search(queries[:2], 500, settings=SearchSettings(nprobe=1, ef_search=1, k_factor=1))
    assert (hits.ids >= 0).all()
    if kind != "hnsw":
        exact = brute_force(images, queries[:2], 500, everything)
        assert [len(set(a) & set(b)) >= 499 for a, b in zip(hits.ids.tolist(), exact, strict=True)] == [
            True
        ] * 2


@pytest.mark.parametrize("kind", ["hnsw", "IVF16,PQ8x4fs,Refine(SQfp16)"])
def test_filters_of_approximate_kinds(tmp_path: Path, monkeypatch, kind: str) -> None:
    monkeypatch.setattr("clipkit.retrieval.index._EXACT_UP_TO", 0)
    images = images_of(1500)
    write_embeddings(tmp_path / "emb", images)
    build_index(tmp_path / "emb", tmp_path / "idx", IndexSettings(kind=kind, num_queries=300))
    index = SearchIndex.open(tmp_path / "idx")
    allowed = np.arange(1500) % 3 == 0
    hits = index.search(queries_of(40), 10, where=Filter.parse('caption contains "dog"')).ids
    assert allowed[hits].all()
    exact = brute_force(images, queries_of(40), 10, allowed)
    assert np.mean([len(set(a) & set(b)) for a, b in zip(hits.tolist(), exact, strict=True)]) > 9


def test_an_index_of_clip_retrieval(tmp_path: Path, images: np.ndarray) -> None:
    made = VectorIndex.make("Flat", EMBED_DIM)
    made.add(images.astype(np.float32))
    made.write(tmp_path / "image.index")
    (tmp_path / "metadata").mkdir()
    for number, part in enumerate(np.array_split(np.arange(NUM_ROWS), 2)):
        table = pa.table({"image_path": [f"{row}.jpg" for row in part]})
        pq.write_table(table, tmp_path / "metadata" / f"metadata_{number}.parquet")
    index = SearchIndex.open(tmp_path)
    assert (index.version, index.model_id, index.num_rows, index.is_current()) == (0, None, NUM_ROWS, True)
    hits = index.search(queries_of(3), 5)
    assert hits.ids.tolist() == brute_force(images, queries_of(3), 5, np.ones(NUM_ROWS, bool))
    assert index.metadata([300]) == [{"image_path": "300.jpg"}]


def test_clip_retrieval_reads_ours(index: SearchIndex, images: np.ndarray) -> None:
    """As its ParquetMetadataProvider and ArrowMetadataProvider and faiss itself do."""
    import faiss

    folder = index.path / "current"
    read = faiss.read_index(str(folder / "image.index"), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    assert (read.ntotal, read.d, read.metric_type) == (NUM_ROWS, EMBED_DIM, faiss.METRIC_INNER_PRODUCT)
    parquet = pa.concat_tables(
        [pq.read_table(path) for path in sorted((folder / "metadata").glob("*.parquet"))]
    )
    arrow = pa.concat_tables(
        [
            pa.ipc.RecordBatchFileReader(pa.memory_map(str(path))).read_all()
            for path in sorted((folder / "metadata").glob("*.arrow"))
        ]
    )
    assert parquet["image_path"].to_pylist() == [f"{row}.jpg" for row in range(NUM_ROWS)]
    assert parquet.to_pylist() == arrow.to_pylist()


def test_an_l2_index_is_refused(tmp_path: Path, images: np.ndarray) -> None:
    import faiss

    faiss.write_index(faiss.IndexFlatL2(4), str(tmp_path / "image.index"))
    with pytest.raises(ValueError, match="another metric than inner product"):
        SearchIndex.open(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"there is no index at .*: build one with"):
            SearchIndex.open(place)


def test_bad_rows_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    images = images_of(20)
    images[13] *= 2
    write_embeddings(tmp_path / "emb", images)
    with pytest.raises(ValueError, match="13 has norm 2, expected L2-normalised"):
        build_index(tmp_path / "emb", tmp_path / "idx")
    assert list((tmp_path / "idx").iterdir()) == []
    with pytest.raises(ValueError, match="has no text embeddings: choose --embed otherwise"):
        build_index(tmp_path / "emb", tmp_path / "idx", IndexSettings(embed="text"))
    with pytest.raises(ValueError, match="faiss cannot make 'Nonsense' of width 16"):
        build_index(tmp_path / "emb", tmp_path / "idx", IndexSettings(kind="Nonsense"))


def test_searches_in_threads(index: SearchIndex) -> None:
    queries = queries_of(16)
    expected = index.search(queries, 5).ids
    wrong = []

    def work(number: int) -> None:
        where = Filter.parse("width < 5000") if number % 2 else None
        for row in range(16):
            if not np.array_equal(index.search(queries[row : row + 1], 5, where=where).ids[0], expected[row]):
                wrong.append((number, row))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("num_rows", "width", "kind", "memory", "factory"),
    [
        (9_999, 512, "auto", 1e9, "Flat"),
        (100_000, 512, "auto", 1e9, "IVF512,PQ256x4fs,Refine(SQfp16)"),
        (100_000, 512, "auto", 1e8, "IVF512,PQ256x4fs,Refine(SQ8)"),
        (100_000, 512, "auto", 1e7, "IVF512,PQ256x4fs"),
        (1_000_000, 511, "auto", 1e10, "IVF2048,SQfp16"),
        (10**6, 512, "flat", 1, "Flat"),
        (10, 512, "hnsw", 1, "HNSW32,Flat"),
        (10, 512, "OPQ8,PQ8", 1, "OPQ8,PQ8"),
    ],
)
def test_what_auto_chooses(num_rows, width, kind, memory, factory) -> None:
    assert choose_factory(num_rows, width, kind, memory) == factory


def test_bad_settings() -> None:
    for wrong in ({"recall": 0}, {"recall": 1.1}, {"recall_at": 0}, {"num_queries": 0}, {"memory_gb": -1}):
        with pytest.raises(ValueError, match=f"--{next(iter(wrong)).replace('_', '-')} must be"):
            IndexSettings(**wrong)


def test_the_manifest(index: SearchIndex) -> None:
    manifest = json.loads((index.path / "current" / "clipkit.json").read_text())
    assert (manifest["num_rows"], manifest["next_id"]) == (NUM_ROWS, NUM_ROWS)
    assert set(manifest["indexes"]) == {"image", "text"}
    assert manifest["indexes"]["image"]["recall"]["chosen"]["recall"]["10"] == 1
    assert "image.index" in manifest["files"]
    assert (index.path / "current" / "recall.html").read_text().startswith("<!doctype html>")
