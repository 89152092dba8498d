"""What `clipkit embed` takes: folders, tars and tables of images, captions or both."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_shards import encode, photo
from clipkit.retrieval.store import EmbeddingFolder
from embed_jobs import NUM_PAIRS, image_rows, run_embed, text_rows, write_folder, write_pairs
from small_models import small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    small_model().save(path)
    return str(path)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "pairs")


@pytest.mark.parametrize(("images", "captions"), [(True, True), (True, False), (False, True)])
def test_folders_of_images_captions_or_both(model: str, tmp_path: Path, images: bool, captions: bool) -> None:
    source = write_folder(tmp_path / "data", images=images, captions=captions)
    run_embed(source, model, tmp_path / "out")
    folder = EmbeddingFolder.open(tmp_path / "out")
    assert folder.num_rows == 3
    assert (folder.image_embeddings is not None, folder.text_embeddings is not None) == (images, captions)
    table = folder.metadata([2, 0]).to_pydict()
    if images:
        assert table["image_path"] == [str(source / "deep" / f"x{n}.jpg") for n in (2, 0)]
        assert folder.image_embeddings is not None
        np.testing.assert_allclose(folder.image_embeddings.take([2, 0]), image_rows(model, [2, 0]), atol=1e-3)
    else:
        assert table["key"] == ["deep/x2.txt", "deep/x0.txt"]
    assert table["caption"] == (["text 2", "text 0"] if captions else [None, None])
    if captions:
        assert folder.text_embeddings is not None
        assert folder.more_text_embeddings is not None
        np.testing.assert_allclose(folder.text_embeddings.take([1]), text_rows(model, ["text 1"]), atol=1e-3)
        assert folder.rows_of_more_texts().tolist() == [0, 1, 2]


def test_what_most_samples_have_is_embedded(model: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "data", images=True, captions=True)
    (source / "deep" / "x0.txt").unlink()
    report = run_embed(source, model, tmp_path / "two-thirds")
    assert report is not None
    assert report.manifest["embedded"] == ["image", "text"]
    assert report.manifest["failed"] == {"missing caption": 1}
    (source / "deep" / "x1.txt").unlink()
    report = run_embed(source, model, tmp_path / "one-third")
    assert report is not None
    assert report.manifest["embedded"] == ["image"]
    assert report.manifest["num_rows"] == 3
    captions = EmbeddingFolder.open(tmp_path / "one-third").metadata(range(3), ["caption"])
    assert captions.to_pydict()["caption"] == [None, None, "text 2"]
    (source / "deep" / "x2.txt").unlink()
    with pytest.raises(ValueError, match="has a caption: give --embed image"):
        run_embed(source, model, tmp_path / "none", embed="both")


def test_texts_of_shards_need_no_image(model: str, tmp_path: Path, pairs: Path) -> None:
    report = run_embed(pairs, model, tmp_path / "out", embed="text", captions="first")
    assert report is not None
    assert report.manifest["embedded"] == ["text"]
    assert report.manifest["num_rows"] == NUM_PAIRS - 1
    folder = EmbeddingFolder.open(tmp_path / "out")
    assert folder.more_text_embeddings is None
    row = folder.metadata([4]).to_pydict()
    assert (row["key"], row["caption"]) == (["00000.tar: 000000004"], ["picture 4 said a"])
    assert row["more_captions"] == [["picture 4 said b"]]


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_tables(model: str, tmp_path: Path, kind: str) -> None:
    write_folder(tmp_path / "data", images=True, captions=False)
    paths = [f"data/deep/x{n}.jpg" for n in (2, 1, 2, 0)] + ["nowhere.jpg"]
    titles = ["two", "one", "two again", "zero", "missing"]
    table = tmp_path / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"filepath": paths, "title": titles}), table)
    else:
        mark = "\t" if kind == "tsv" else ","
        lines = ["filepath" + mark + "title", *(a + mark + b for a, b in zip(paths, titles, strict=True))]
        table.write_text("\n".join(lines) + "\n")
    report = run_embed(table, model, tmp_path / "out")
    assert report is not None
    assert report.manifest["failed"] == {"missing file": 1}
    found = EmbeddingFolder.open(tmp_path / "out").metadata(range(3)).to_pydict()
    assert found["image_path"] == [str(tmp_path / path) for path in (paths[0], paths[1], paths[3])]
    assert found["caption"] == ["two", "one", "zero"]
    assert found["more_captions"] == [["two again"], [], []]

    run_embed(table, model, tmp_path / "texts", embed="text")
    found = EmbeddingFolder.open(tmp_path / "texts").metadata(range(5)).to_pydict()
    assert found["caption"] == titles
    assert found["key"] == [f"t.{kind}: row {row}" for row in range(1, 6)]
    with pytest.raises(ValueError, match=r"has no column 'titel'.*--embed image takes images without"):
        run_embed(table, model, tmp_path / "wrong", caption_column="titel")
    assert not (tmp_path / "wrong").exists()


def test_what_utf8_cannot_say_is_replaced(model: str, tmp_path: Path) -> None:
    fields = rb'{"caption": "half \ud83d of a pair", "note": "\udc80", "\udc81": 1}'
    name = os.fsdecode(b"caf\xe9")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / f"{name}.jpg").write_bytes(encode(photo(0)))
    (folder / f"{name}.json").write_bytes(fields)
    (folder / f"{name}2.jpg").write_bytes(b"")
    (folder / f"{name}2.json").write_bytes(fields)
    run_embed(folder, model, tmp_path / "out", caption_keys=("json.caption",))
    row = EmbeddingFolder.open(tmp_path / "out").metadata([0]).to_pylist()[0]
    assert row["image_path"] == str(folder / "caf?.jpg")
    assert (row["caption"], row["note"], row["?"]) == ("half ? of a pair", "?", 1)
    assert pq.read_table(tmp_path / "out" / "failed.parquet")["place"].to_pylist() == ["caf?2.jpg"]
