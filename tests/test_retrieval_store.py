"""Reading folders of embeddings: clip-retrieval's and clipkit's, whole and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clipkit.retrieval.store import EmbeddingFolder

SIZES = (3, 1, 4)
NUM_ROWS = sum(SIZES)


def rows_of(seed: int, num_rows: int = NUM_ROWS, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_rows, width)).astype(np.float16)


def write_folder(folder: Path, *, images: bool = True, texts: bool = True) -> Path:
    """A folder as clip-retrieval makes it; row r has caption `text r`, only file 1 has a column `rare`."""
    kept = {"img_emb": images, "text_emb": texts}
    for seed, name in enumerate(name for name in kept if kept[name]):
        (folder / name).mkdir(parents=True)
        for number, part in enumerate(np.split(rows_of(seed), np.cumsum(SIZES)[:-1])):
            np.save(folder / name / f"{name}_{number}.npy", part)
    (folder / "metadata").mkdir()
    first = 0
    for number, size in enumerate(SIZES):
        ids = range(first, first + size)
        columns: dict[str, Any] = {
            "image_path": [f"{row}.jpg" for row in ids],
            "caption": [f"text {row}" for row in ids],
            "width": [[row, None, row / 2][number] for row in ids],
            "code": [[row, str(row), True][number] for row in ids],
        }
        if number == 1:
            columns["rare"] = [f"rare {row}" for row in ids]
        pq.write_table(
            pa.table(columns), folder / "metadata" / f"metadata_{number}.parquet", row_group_size=2
        )
        first += size
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "emb")


def add_manifest(path: Path, **changes: Any) -> Path:
    names = [file.relative_to(path).as_posix() for file in path.glob("*/*")]
    manifest = {
        "format_version": 1,
        "model_id": "abc",
        "embedded": ["image", "text"],
        "files": dict.fromkeys(names, ""),
        "complete": True,
    }
    (path / "clipkit.json").write_text(json.dumps({**manifest, **changes}))
    return path


def test_a_folder_of_clip_retrieval(path: Path) -> None:
    folder = EmbeddingFolder.open(path)
    assert (folder.num_rows, folder.embed_dim, folder.model_id) == (8, 6, None)
    assert folder.more_text_embeddings is None
    assert folder.rows_of_more_texts().tolist() == []
    for seed, part in enumerate((folder.image_embeddings, folder.text_embeddings)):
        assert part is not None
        assert part.shape == (8, 6)
        assert len(part) == 8
        found = np.concatenate(list(part.blocks()))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, rows_of(seed).astype(np.float32))


@pytest.mark.parametrize(("images", "texts"), [(True, False), (False, True)])
def test_one_kind_of_embeddings_is_enough(tmp_path: Path, images: bool, texts: bool) -> None:
    folder = EmbeddingFolder.open(write_folder(tmp_path / "emb", images=images, texts=texts))
    assert (folder.image_embeddings is not None, folder.text_embeddings is not None) == (images, texts)
    assert (folder.num_rows, folder.embed_dim) == (8, 6)


@pytest.mark.parametrize("rows_per_block", range(1, NUM_ROWS + 2))
def test_blocks_of_any_size_hold_all_rows_in_order(path: Path, rows_per_block: int) -> None:
    part = EmbeddingFolder.open(path).image_embeddings
    assert part is not None
    blocks = list(part.blocks(rows_per_block))
    assert {len(block) for block in blocks[:-1]} <= {rows_per_block}
    np.testing.assert_array_equal(np.concatenate(blocks), rows_of(0).astype(np.float32))


def test_any_part_can_be_read(path: Path) -> None:
    part = EmbeddingFolder.open(path).text_embeddings
    assert part is not None
    whole = rows_of(1).astype(np.float32)
    for start in range(NUM_ROWS + 1):
        for stop in range(start, NUM_ROWS + 1):
            np.testing.assert_array_equal(part.read(start, stop), whole[start:stop])
    for rows in ([], [7], [4, 0, 4, 3, 2], np.arange(NUM_ROWS)[::-1]):
        np.testing.assert_array_equal(part.take(rows), whole[np.asarray(rows, int)])
    for row in (-1, NUM_ROWS):
        with pytest.raises(ValueError, match=rf"there is no row {row}, rows are 0 to 7"):
            part.take([0, row])


def test_metadata_of_any_rows(path: Path) -> None:
    folder = EmbeddingFolder.open(path)
    assert folder.metadata_rows.columns == ("image_path", "caption", "width", "code", "rare")
    rows = [7, 3, 0, 7, 5, 2]
    table = folder.metadata(rows)
    assert table.column_names == list(folder.metadata_rows.columns)
    assert table["caption"].to_pylist() == [f"text {row}" for row in rows]
    assert table["rare"].to_pylist() == [None, "rare 3", None, None, None, None]
    assert table["width"].to_pylist() == [3.5, None, 0.0, 3.5, 2.5, 2.0]
    assert table["code"].to_pylist() == ["True", "3", "0", "True", "True", "2"]
    assert folder.metadata([2, 1], ["caption"]).to_pydict() == {"caption": ["text 2", "text 1"]}
    assert folder.metadata([6, 0], ["rare", "image_path"]).to_pylist() == [
        {"rare": None, "image_path": "6.jpg"},
        {"rare": None, "image_path": "0.jpg"},
    ]
    assert folder.metadata([], ["caption"]).num_rows == 0
    with pytest.raises(ValueError, match="there is no column 'captoin', the columns are image_path, caption"):
        folder.metadata([0], ["captoin"])
    with pytest.raises(ValueError, match="there is no row 8"):
        folder.metadata([8])


def test_files_that_hold_other_numbers_of_rows_are_named(path: Path) -> None:
    np.save(path / "text_emb" / "text_emb_1.npy", rows_of(0, 2))
    with pytest.raises(
        ValueError, match=r"text_emb_1.npy has 2 rows, metadata_1.parquet has 1: .* not aligned"
    ):
        EmbeddingFolder.open(path)


@pytest.mark.parametrize("name", ["img_emb/img_emb_1.npy", "metadata/metadata_1.parquet"])
def test_a_file_without_counterpart_is_named(path: Path, name: str) -> None:
    (path / name).unlink()
    lonely = {"img_emb/img_emb_1.npy": "metadata_1.parquet", "metadata/metadata_1.parquet": "img_emb_1.npy"}
    with pytest.raises(ValueError, match=f"{lonely[name]} has no counterpart in .*{name.split('/')[0]},"):
        EmbeddingFolder.open(path)


@pytest.mark.parametrize("name", ["img_emb/img_emb_2.npy", "metadata/metadata_2.parquet"])
def test_the_last_file_can_lack_its_counterpart_too(path: Path, name: str) -> None:
    (path / name).unlink()
    with pytest.raises(ValueError, match=r"_2\.(npy|parquet) has no counterpart"):
        EmbeddingFolder.open(path)


@pytest.mark.parametrize("name", ["img_emb/img_emb_2.npy", "metadata/metadata_2.parquet"])
def test_files_that_are_cut_short_are_named(path: Path, name: str) -> None:
    content = (path / name).read_bytes()
    for damaged in (content[:-10], content[:20], b""):
        (path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{Path(name).name} is damaged or no") as caught:
            EmbeddingFolder.open(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (rows_of(0, 4, 5), "has width 5, img_emb_0.npy has 6"),
        (np.zeros((4, 6), np.int8), "holds int8 of shape"),
        (np.zeros(4, np.float16), r"holds float16 of shape \(4,\), expected rows of floats"),
    ],
)
def test_arrays_that_do_not_fit_are_named(path: Path, array: np.ndarray, message: str) -> None:
    np.save(path / "img_emb" / "img_emb_2.npy", array)
    with pytest.raises(ValueError, match=f"img_emb_2.npy {message}"):
        EmbeddingFolder.open(path)


def test_kinds_of_different_width_are_refused(path: Path) -> None:
    for number, size in enumerate(SIZES):
        np.save(path / "text_emb" / f"text_emb_{number}.npy", rows_of(0, size, 5))
    with pytest.raises(ValueError, match="different widths"):
        EmbeddingFolder.open(path)


def test_a_file_of_clip_retrieval_may_be_empty(path: Path) -> None:
    np.save(path / "img_emb" / "img_emb_3.npy", rows_of(0, 0))
    np.save(path / "text_emb" / "text_emb_3.npy", rows_of(0, 0))
    empty = pa.table({"caption": pa.array([], pa.string())})
    pq.write_table(empty, path / "metadata" / "metadata_3.parquet")
    folder = EmbeddingFolder.open(path)
    assert folder.image_embeddings is not None
    np.testing.assert_array_equal(folder.image_embeddings.read(5, 8), rows_of(0).astype(np.float32)[5:])
    assert folder.metadata([7], ["caption"]).to_pydict() == {"caption": ["text 7"]}


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        EmbeddingFolder.open(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="has no embeddings: expected metadata/ and img_emb/"):
        EmbeddingFolder.open(tmp_path)
    (tmp_path / "clipkit.json").write_text('{"format_version": 1, "tokenizer": {}}')
    with pytest.raises(ValueError, match=r"its clipkit.json is of something else"):
        EmbeddingFolder.open(tmp_path)


def test_the_manifest_is_heeded(path: Path) -> None:
    assert EmbeddingFolder.open(add_manifest(path)).model_id == "abc"
    add_manifest(path, complete=False)
    with pytest.raises(ValueError, match="is not finished: run the same `clipkit embed` again"):
        EmbeddingFolder.open(path)
    add_manifest(path, format_version=2)
    with pytest.raises(ValueError, match="has format version 2, this clipkit reads up to 1"):
        EmbeddingFolder.open(path)
    add_manifest(path)
    np.save(path / "img_emb" / "img_emb_3.npy", rows_of(0))
    with pytest.raises(ValueError, match=r"img_emb_3.npy is not listed in clipkit.json: move it"):
        EmbeddingFolder.open(path)
    for number in range(4):
        (path / "img_emb" / f"img_emb_{number}.npy").unlink()
    with pytest.raises(ValueError, match=r"img_emb_0.npy is missing: run the same"):
        EmbeddingFolder.open(path)


def test_further_captions_belong_to_their_rows(path: Path) -> None:
    (path / "more_text_emb").mkdir()
    counts = iter((2, 0, 1, 0, 3, 0, 0, 1))
    for number in range(len(SIZES)):
        file = path / "metadata" / f"metadata_{number}.parquet"
        table = pq.read_table(file)
        lists = [["x"] * next(counts) for _ in range(table.num_rows)]
        column = pa.array(lists, pa.list_(pa.string()))
        pq.write_table(table.append_column("more_captions", column), file)
        if number != 1:
            np.save(
                path / "more_text_emb" / f"more_text_emb_{number}.npy", rows_of(number, sum(map(len, lists)))
            )
    folder = EmbeddingFolder.open(path)
    assert folder.more_text_embeddings is not None
    assert folder.rows_of_more_texts().tolist() == [0, 0, 2, 4, 4, 4, 7]
    assert len(folder.more_text_embeddings) == 7
