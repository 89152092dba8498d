"""Queries out of parts, near-duplicates, rerankers, and the commands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from broken_shards import encode, photo
from clipkit.retrieval.combine import combine, parse_weighted
from clipkit.retrieval.embed import embed
from clipkit.retrieval.embed_settings import EmbedSettings
from clipkit.retrieval.index import Hits, SearchIndex
from clipkit.retrieval.index_build import build_index
from clipkit.retrieval.search import distinct, hit_rate, rerank, reranked_recall, search_distinct
from embed_jobs import write_pairs
from index_folders import images_of, unit, write_embeddings
from small_models import small_model

import clipkit
from clipkit.cli import main

NUM_IMAGES = 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red car", ("a red car", 1)),
        ("a red car:0.5", ("a red car", 0.5)),
        ("12:30", ("12", 30)),
        ("ratio 16:9:1", ("ratio 16:9", 1)),
        ("a: b", ("a: b", 1)),
        ("a:.25", ("a", 0.25)),
        ("C:/x.jpg", ("C:/x.jpg", 1)),
    ],
)
def test_weights(text: str, expected: tuple[str, float]) -> None:
    assert parse_weighted(text) == expected


@pytest.mark.parametrize(
    ("text", "message"), [("", "expected a text"), ("  :2", "expected a text"), ("a:0", "above 0")]
)
def test_wrong_weights(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_weighted(text)


def test_combining() -> None:
    vectors = np.eye(3, dtype=np.float32)[:2]
    np.testing.assert_allclose(combine(vectors, [3, 4]), [[0.6, 0.8, 0]], rtol=1e-6)
    np.testing.assert_allclose(combine(vectors, [3, -4]), [[0.6, -0.8, 0]], rtol=1e-6)
    with pytest.raises(ValueError, match="cancel each other out"):
        combine(vectors[[0, 0]], [1, -1])


def test_distinct_rows_by_hand() -> None:
    angles = np.deg2rad([0, 10, 30, 35, 200, 5])
    rows = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    # cos 20 degrees = 0.94: 10 is near 0; 30 is near 10, which is not kept, but not near 0.
    assert distinct(rows, 0.94, 9).tolist() == [0, 2, 4]
    assert distinct(rows, 0.94, 2).tolist() == [0, 2]
    assert distinct(rows[:0], 0.94, 2).tolist() == []


def test_the_search_goes_on_behind_duplicates(tmp_path: Path) -> None:
    rows = np.concatenate([np.repeat(images_of(1), 50, axis=0), images_of(10, 1)])
    build_index(write_embeddings(tmp_path / "emb", rows), tmp_path / "idx")
    index = SearchIndex.open(tmp_path / "idx")
    query = rows[:1].astype(np.float32)
    hits = search_distinct(index, query, 4, 0.999)
    scores = rows[50:].astype(np.float32) @ query[0]
    assert hits.ids[0].tolist() == [0, *(50 + np.argsort(-scores)[:3])]
    np.testing.assert_allclose(hits.similarities[0, 1:], np.sort(scores)[::-1][:3], atol=1e-6)
    assert (search_distinct(index, query, 20, 0.999).ids[0] >= 0).sum() == 11
    with pytest.raises(ValueError, match=r"must be in \(0, 1\], got 1.5"):
        search_distinct(index, query, 4, 1.5)


class ByTable:
    def __init__(self, scores: dict[int, float]) -> None:
        self.scores = scores
        self.asked: list[str] = []

    def score(self, ids: Sequence[int], text: str) -> Sequence[float]:
        self.asked.append(text)
        return [self.scores[one] for one in ids]


def test_reranking_by_hand() -> None:
    hits = Hits(
        ids=np.array([[1, 2, 3], [4, 5, -1]]),
        similarities=np.array([[0.9, 0.8, 0.7], [0.6, 0.5, -np.inf]], np.float32),
    )
    reranker = ByTable({1: 0.0, 2: 1.0, 3: 1.0, 4: 0.1, 5: 0.2})
    after = rerank(hits, ["a", "b"], reranker)
    assert after.ids.tolist() == [[2, 3, 1], [5, 4, -1]]
    np.testing.assert_allclose(after.similarities[0], [0.8, 0.7, 0.9])
    assert reranker.asked == ["a", "b"]
    assert hits.ids.tolist() == [[1, 2, 3], [4, 5, -1]]
    found = reranked_recall(hits, ["a", "b"], [[2], [4]], reranker, 1)
    assert found == {"before": 0.5, "after": 0.5, "possible": 1.0}
    assert reranked_recall(hits, ["a", "b"], [[2], [5, 9]], reranker, 1)["after"] == 1
    assert hit_rate(hits.ids, [[3], [7]], 2) == 0
    for wrong in ([1.0], [float("nan")] * 3):
        reranker.score = lambda ids, text, wrong=wrong: wrong  # type: ignore[method-assign]
        with pytest.raises(ValueError, match="one finite score for each of 3 hits of 'a'"):
            rerank(hits, ["a", "b"], reranker)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, images, their embeddings and an index: model/, pictures/, emb/, idx/."""
    root = tmp_path_factory.mktemp("search")
    small_model(0).save(root / "model")
    (root / "pictures").mkdir()
    for number in range(NUM_IMAGES):
        (root / "pictures" / f"{number}.png").write_bytes(encode(photo(number), "PNG"))
        (root / "pictures" / f"{number}.txt").write_text(f"picture {number}")
    model = clipkit.load(root / "model")
    location, name = str(root / "pictures"), str(root / "model")
    embed(location, model, root / "emb", EmbedSettings(), model_name=name, num_workers=0)
    assert main(["index", "build", str(root / "emb"), "--out", str(root / "idx"), "--quiet"]) == 0
    return root


def run(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> str:
    capsys.readouterr()
    found = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert found == status, captured.err
    return captured.out if status == 0 else captured.out + captured.err


def test_search_by_image(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(NUM_IMAGES):
        picture = job / "pictures" / f"{number}.png"
        rows = json.loads(run(capsys, "search", job / "idx", "--image", picture, "-k", 2, "--json"))
        assert rows[0]["image_path"] == str(picture)
        assert rows[0]["similarity"] == pytest.approx(1, abs=1e-3)
        assert rows[0]["caption"] == f"picture {number}"
        assert len(rows) == 2


def test_search_by_text_is_the_models(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    model = clipkit.load(job / "model")
    with torch.no_grad():
        parts = model.encode_text(model.tokenizer(["one", "two", "three"]), normalize=True).numpy()
    query = unit(parts[0] + 0.5 * parts[1] - 0.25 * parts[2])
    index = SearchIndex.open(job / "idx")
    expected = np.argsort(-(index.vectors(index.ids) @ query)).tolist()
    options = ("one", "--add", "two:0.5", "--subtract", "three:.25")
    rows = json.loads(run(capsys, "search", job / "idx", *options, "--json"))
    assert [row["id"] for row in rows] == expected
    assert rows[0]["similarity"] == pytest.approx(float(np.max(index.vectors(index.ids) @ query)), abs=1e-4)


def test_output_for_people_and_pipes(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = ("search", job / "idx", "a picture")
    rows = json.loads(run(capsys, *search, "-k", 3, "--json"))
    assert run(capsys, *search, "-k", 3, "--paths").splitlines() == [row["image_path"] for row in rows]
    lines = run(capsys, *search, "-k", 3).splitlines()
    assert len(lines) == 3
    assert lines[0].split() == [
        f"{rows[0]['similarity']:.4f}",
        str(rows[0]["id"]),
        rows[0]["image_path"],
        *rows[0]["caption"].split(),
    ]
    kept = json.loads(run(capsys, *search, "--where", 'caption endswith "4"', "--json"))
    assert [row["id"] for row in kept] == [4]
    assert len(run(capsys, *search, "-k", 10**12, "--paths").splitlines()) == NUM_IMAGES
    assert "nothing was found" in run(capsys, *search, "--where", 'caption = ""', status=1)
    alone = json.loads(run(capsys, *search, "--deduplicate", 0.0001, "--json"))
    assert len(alone) < NUM_IMAGES
    sheet = job / "hits.html"
    run(capsys, *search, "--sheet", sheet)
    assert sheet.read_text().count("<img") == NUM_IMAGES


def test_mistakes_are_one_line(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = ("search", job / "idx")
    small_model(1).save(tmp_path / "other")
    cases = [
        ((*search, "x", "--model", tmp_path / "other"), 2, "a query must be of the same model"),
        (search, 2, "name what to look for"),
        ((*search, "--subtract", "x"), 2, "name what to look for"),
        ((*search, "x", "-k", 0), 2, "--top-k must be at least 1, got 0"),
        ((*search, "x", "--where", "size > 3"), 2, "no column 'size' to filter by"),
        ((*search, "x", "--where", "size >"), 2, "has 'nothing more' where"),
        ((*search, "--image", job / "pictures" / "0.txt"), 2, "not an image"),
        ((*search, "--image", tmp_path / "none.png"), 1, "none.png"),
        (("search", tmp_path, "x"), 1, "build one with `clipkit index build`"),
        (("index", "build", job / "emb", "--out", job / "idx"), 2, "add --replace"),
        (("index", "build", job / "emb", "--out", tmp_path / "i", "--recall", 2), 2, "--recall must be in"),
        (("index", "remove", job / "idx"), 2, "by --id or --path"),
        (("index", "remove", job / "idx", "--id", 99), 2, "no row with id 99"),
    ]
    for arguments, status, message in cases:
        shown = run(capsys, *arguments, status=status)
        assert message in shown
        assert shown.count("\n") == 1


def test_an_index_that_does_not_know_its_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_index(write_embeddings(tmp_path / "emb", images_of(9), model_id=None), tmp_path / "idx")
    assert "name it with --model" in run(capsys, "search", tmp_path / "idx", "x", status=2)
    small_model(0).save(tmp_path / "model")
    rows = json.loads(run(capsys, "search", tmp_path / "idx", "x", "--model", tmp_path / "model", "--json"))
    assert len(rows) == 9


def test_the_life_of_an_index(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = clipkit.load(job / "model")
    more = write_pairs(tmp_path / "shards", broken=False)
    embed(str(more), model, tmp_path / "more", EmbedSettings(), num_workers=0)
    idx = tmp_path / "idx"
    report = json.loads(run(capsys, "index", "build", job / "emb", "--out", idx, "--quiet", "--json"))
    assert report["image"]["chosen"]["recall"]["10"] == 1
    assert "23 rows added, now 29 in version 2" in run(capsys, "index", "add", idx, tmp_path / "more")
    assert "23 rows updated" in run(capsys, "index", "update", idx, tmp_path / "more")
    shard = tmp_path / "shards" / "00000.tar"
    removed = run(capsys, "index", "remove", idx, "--path", f"{shard}/000000003", "--id", 0, "--json")
    assert json.loads(removed) == {"removed": 2, "num_rows": 27, "version": 4}
    assert "version 4, 27 rows" in run(capsys, "index", "check", idx)
    sheet = tmp_path / "hits.html"
    run(capsys, "search", idx, "picture", "-k", 27, "--sheet", sheet)
    assert sheet.read_text().count("<img") == 27  # out of the tars too
    shown = run(capsys, "index", "evaluate", idx, tmp_path / "more", status=2)
    assert f"1 images of {tmp_path / 'more'} are not in the index, the first: {shard}/000000003" in shown
    places = run(capsys, "search", idx, "picture", "-k", 27, "--paths").splitlines()
    in_tar = next(place for place in places if place.startswith(f"{shard}/"))
    assert "1 rows removed" in run(capsys, "index", "remove", idx, "--path", in_tar)


def test_evaluate_and_damage(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, "index", "evaluate", job / "idx", job / "emb", "--json"))
    assert found["num_captions"] == NUM_IMAGES
    assert found["metrics"] == found["exact_metrics"]
    assert "text_to_image_R@1" in run(capsys, "index", "evaluate", job / "idx", job / "emb")
    idx = tmp_path / "idx"
    run(capsys, "index", "build", job / "emb", "--out", idx, "--quiet")
    path = idx / "current" / "metadata" / "metadata_000000.parquet"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    assert "sha256" in run(capsys, "index", "check", idx, status=1)
    assert len(json.loads(run(capsys, "index", "check", idx, "--json", status=1))["problems"]) == 1
    assert pq.read_metadata(path).num_rows == NUM_IMAGES  # that alone would not have told


def test_index_needs_no_torch_and_says_what_faiss_is_in(job: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from clipkit.cli import main; status = main(sys.argv[1:]);"
        "sys.exit(status or 3 * ('torch' in sys.modules))"
    )
    command = ["index", "build", str(job / "emb"), "--out", str(tmp_path / "idx"), "--quiet"]
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    without = "import sys; sys.modules['faiss'] = None; " + script
    command = ["index", "check", str(tmp_path / "idx")]
    done = subprocess.run([sys.executable, "-c", without, *command], capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("clipkit: a search index needs faiss: pip install 'clipkit[cpu]'")
