"""Recall against the exact search, and the settings that reach a goal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clipkit.retrieval.index_build import IndexSettings, build_index
from clipkit.retrieval.index_evaluate import evaluate_index
from clipkit.retrieval.index_faiss import SearchSettings, VectorIndex
from clipkit.retrieval.index_tune import (
    Measured,
    Queries,
    RecallReport,
    make_queries,
    measure,
    recall_of,
    tune,
    without,
    write_report,
)
from clipkit.retrieval.store import EmbeddingFolder
from index_folders import images_of, unit, write_embeddings


def test_recall_by_hand() -> None:
    exact = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = np.array([[2, 1, 9, 3], [5, -1, -1, -1]])
    assert recall_of(found, exact, 1) == 0.5
    assert recall_of(found, exact, 2) == 0.75
    assert recall_of(found, exact, 4) == 0.5
    assert recall_of(found, exact, 100) == 0.5
    assert recall_of(exact, exact, 3) == 1


def test_without_the_query_itself() -> None:
    positions = np.array([[1, 2, 3], [4, 1, 5], [6, 7, 8]])
    assert without(positions, np.array([1, 1, 1])).tolist() == [[2, 3], [4, 5], [6, 7]]


@pytest.fixture
def folder(tmp_path: Path) -> EmbeddingFolder:
    return EmbeddingFolder.open(write_embeddings(tmp_path / "emb", images_of(300), texts=images_of(300, 1)))


def test_queries_are_texts_where_there_are_any(folder: EmbeddingFolder) -> None:
    assert folder.image_embeddings is not None
    assert folder.text_embeddings is not None
    queries, rate = make_queries(folder.image_embeddings, folder.text_embeddings, 50)
    assert (queries.kind, queries.vectors.shape, queries.neighbours.shape) == ("text", (50, 16), (50, 100))
    assert queries.own is None
    assert rate > 0
    texts = folder.text_embeddings.read(0, 300)
    assert all((texts == vector).all(axis=1).any() for vector in queries.vectors)
    scores = queries.vectors @ folder.image_embeddings.read(0, 300).T
    assert np.array_equal(queries.neighbours, np.argsort(-scores, axis=1, kind="stable")[:, :100])


def test_images_as_queries_do_not_find_themselves(folder: EmbeddingFolder) -> None:
    base = folder.image_embeddings
    assert base is not None
    queries, _ = make_queries(base, None, 50, recall_at=120)
    assert queries.own is not None
    assert queries.neighbours.shape == (50, 120)
    assert not (queries.neighbours == queries.own[:, None]).any()
    assert np.array_equal(base.take(queries.own), queries.vectors)
    index = VectorIndex.make("Flat", 16)
    index.add(base.read(0, 300))
    assert measure(index, queries, SearchSettings(), 120).recall == {"1": 1, "10": 1, "100": 1, "120": 1}


class Slowed:
    """An index that finds the first `nprobe` of four neighbours only, by a clock of its own."""

    refines, is_graph, num_lists = False, False, 8

    def __init__(self, neighbours: np.ndarray) -> None:
        self.neighbours = neighbours
        self.now = 0.0

    def __len__(self) -> int:
        return 1000

    def perf_counter(self) -> float:
        return self.now

    def search(self, queries, k, settings):
        self.now += len(queries) * settings.nprobe
        found = np.full((len(queries), k), -1)
        known = self.neighbours[queries[:, 0].astype(int)][:, : min(k, settings.nprobe)]
        found[:, : known.shape[1]] = known
        return np.zeros(found.shape), found


def tuned(monkeypatch, index: Slowed, goal: float, recall_at: int) -> RecallReport:
    queries = Queries(kind="text", vectors=np.arange(20.0)[:, None], neighbours=index.neighbours)
    monkeypatch.setattr("clipkit.retrieval.index_tune.time", index)
    return tune(index, queries, factory="x", goal=goal, recall_at=recall_at, exact_rate=1.0)


def some_neighbours(num: int) -> np.ndarray:
    return np.random.default_rng(0).permuted(np.tile(np.arange(1000), (20, 1)), axis=1)[:, :num]


@pytest.mark.parametrize(("goal", "nprobe"), [(0.2, 1), (0.5, 2), (0.6, 3), (0.8, 4)])
def test_tuning_takes_the_fastest_that_reaches_the_goal(monkeypatch, goal: float, nprobe: int) -> None:
    """Also one between the powers of two."""
    report = tuned(monkeypatch, Slowed(some_neighbours(4)), goal, 4)
    assert report.reaches_goal
    assert report.chosen.settings == SearchSettings(nprobe=nprobe)
    assert report.chosen.recall["4"] == nprobe / 4
    assert report.chosen.queries_per_second == 1 / nprobe
    assert report.chosen.milliseconds == 1000 * nprobe
    assert report.num_queries == 10
    curve = [(one.settings.nprobe, one.recall["4"]) for one in report.curve]
    assert (nprobe, nprobe / 4) in curve
    assert curve == sorted(curve)


class Refined(Slowed):
    """Finds as many as lists visited times candidates looked at; candidates cost little, lists much."""

    refines, num_lists = True, 64

    def search(self, queries, k, settings):
        self.now += len(queries) * (settings.nprobe + 0.1 * settings.k_factor)
        found = np.full((len(queries), k), -1)
        num_found = min(k, settings.nprobe * settings.k_factor, self.neighbours.shape[1])
        found[:, :num_found] = self.neighbours[queries[:, 0].astype(int)][:, :num_found]
        return np.zeros(found.shape), found


@pytest.mark.parametrize("recall_at", [7, 20, 64])
def test_tuning_finds_the_best_of_all_pairs_of_lists_and_candidates(monkeypatch, recall_at: int) -> None:
    """Against trying every pair, up to the small steps."""
    index = Refined(some_neighbours(recall_at))
    report = tuned(monkeypatch, index, 1.0, recall_at)
    k_factors = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
    costs = [n + 0.1 * k for n in range(1, 65) for k in k_factors if n * k >= recall_at]
    assert report.chosen.recall[str(recall_at)] == 1
    assert report.chosen.milliseconds is not None
    assert report.chosen.milliseconds == pytest.approx(1000 * min(costs), rel=0.2)


def test_what_is_fast_in_a_batch_is_not_chosen_when_it_is_slow_alone(monkeypatch) -> None:
    class Batched(Slowed):
        def search(self, queries, k, settings):
            before = self.now
            result = super().search(queries, k, settings)
            if settings.nprobe == 3:
                self.now = before + (0.1 if len(queries) > 1 else 100)
            return result

    report = tuned(monkeypatch, Batched(some_neighbours(4)), 0.6, 4)
    assert report.chosen.settings == SearchSettings(nprobe=4)


def test_a_recall_must_be_surely_above_the_goal(monkeypatch) -> None:
    """With 4 lists, recalls are 0.6 and 0.8 in turns: 0.7, its standard error 0.1 / sqrt(10) = 0.032."""

    class Uneven(Slowed):
        def search(self, queries, k, settings):
            scores, found = super().search(queries, k, settings)
            if settings.nprobe == 4:
                found[queries[:, 0] % 2 == 1, 3:] = -1
            return scores, found

    index = Uneven(some_neighbours(5))
    assert tuned(monkeypatch, index, 0.66, 5).chosen.settings == SearchSettings(nprobe=4)
    report = tuned(monkeypatch, index, 0.69, 5)
    assert report.chosen.settings == SearchSettings(nprobe=5)
    measured = next(one for one in report.curve if one.settings.nprobe == 4)
    assert measured.recall["5"] == pytest.approx(0.7)
    assert measured.recall_error == pytest.approx(0.1 / 10**0.5)


def test_a_graph_is_tuned_by_its_width(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "emb", images_of(1200), texts=images_of(1200, 1))
    settings = IndexSettings(kind="HNSW4", num_queries=50)
    report = build_index(tmp_path / "emb", tmp_path / "idx", settings)["image"]
    assert report.reaches_goal
    assert report.chosen.settings.ef_search in range(16, 1025)
    assert report.chosen.settings.nprobe is None


def test_a_goal_out_of_reach(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "emb", images_of(1500), texts=images_of(1500, 1))
    settings = IndexSettings(kind="IVF8,PQ4x4fs", recall=0.99, num_queries=50)
    report = build_index(tmp_path / "emb", tmp_path / "idx", settings)["image"]
    assert not report.reaches_goal
    assert report.chosen.recall["10"] < 0.99
    with pytest.raises(ValueError, match="keeps codes only"):
        evaluate_index(tmp_path / "idx", tmp_path / "emb")


def test_the_page_shows_the_curve(tmp_path: Path) -> None:
    def point(nprobe: int, recall: float, rate: float) -> Measured:
        recalls = {"1": recall, "10": recall, "100": recall}
        return Measured(settings=SearchSettings(nprobe=nprobe), recall=recalls, queries_per_second=rate)

    curve = (point(1, 0.5, 1000.0), point(8, 0.975, 100.0))
    report = RecallReport(
        factory="IVF8,Flat",
        num_rows=10,
        query_kind="text",
        num_queries=5,
        goal=0.95,
        recall_at=10,
        chosen=curve[1],
        exact_queries_per_second=50.0,
        reaches_goal=True,
        curve=curve,
    )
    write_report(tmp_path, {"image": report})
    page = (tmp_path / "recall.html").read_text()
    assert page.count("<polyline") == 1
    assert "<td>8</td><td></td><td></td><td>0.9750</td><td>100</td>" in page
    assert report.to_text() == (
        "IVF8,Flat (nprobe 8): recall@1 0.975, recall@10 0.975, recall@100 0.975 of the exact search on 5 "
        "text queries, 100 queries/s (exact: 50)"
    )


def test_evaluation_by_hand(tmp_path: Path) -> None:
    """Three images; captions of image 2 lie at image 1."""
    images = np.eye(3, 16).astype(np.float16)
    texts = images[[0, 1, 1]].copy()
    texts[2] = unit(images[1].astype(float) + 0.5 * images[2])
    emb = write_embeddings(tmp_path / "emb", images, texts=texts.astype(np.float16), num_files=1)
    build_index(emb, tmp_path / "idx")
    found = evaluate_index(tmp_path / "idx", emb)
    assert (found.num_images, found.num_captions) == (3, 3)
    assert found.recall == {"1": 1, "10": 1, "100": 1}
    assert found.metrics["text_to_image_R@1"] == pytest.approx(2 / 3)
    assert found.metrics["text_to_image_R@5"] == 1
    # Image 2 is nearest to its own caption: the others have no part of it.
    assert found.metrics["image_to_text_R@1"] == 1
    assert found.metrics == found.exact_metrics
    other = write_embeddings(tmp_path / "other", images, texts=images, first=7)
    with pytest.raises(ValueError, match=r"3 images of .* are not in the index, the first: 7\.jpg"):
        evaluate_index(tmp_path / "idx", other)
