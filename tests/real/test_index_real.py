"""Real CLIP features through a search index: published recalls, both ways, with all captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clipkit.retrieval.filters import Filter
from clipkit.retrieval.index import SearchIndex
from clipkit.retrieval.index_build import IndexSettings, build_index
from clipkit.retrieval.index_evaluate import evaluate_index
from clipkit.retrieval.search import hit_rate
from index_folders import unit, write_embeddings
from shared_data import shared_data


@pytest.fixture
def features() -> tuple[np.ndarray, np.ndarray]:
    with np.load(shared_data("clip_vitb32_real") / "flickr100.npz") as file:
        arrays = [unit(file[name].astype(np.float32)) for name in file.files if file[name].ndim == 2]
    images, texts = sorted(arrays, key=len)
    assert (images.shape, texts.shape) == ((100, 512), (500, 512))
    return images, texts


def write_real(folder: Path, images: np.ndarray, texts: np.ndarray) -> Path:
    """As `clipkit embed --captions all`: the first caption beside the image, the others after."""
    captions = [[f"caption {5 * row + number}" for number in range(1, 5)] for row in range(100)]
    write_embeddings(folder, images, texts=texts[::5], model_id=None, columns={"more_captions": captions})
    (folder / "more_text_emb").mkdir()
    more = np.delete(texts, np.arange(0, 500, 5), axis=0)
    np.save(folder / "more_text_emb" / "more_text_emb_0.npy", more)
    return folder


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_recall_through_the_index(tmp_path: Path, features: tuple[np.ndarray, np.ndarray], kind: str) -> None:
    emb = write_real(tmp_path / "emb", *features)
    build_index(emb, tmp_path / "idx", IndexSettings(kind=kind, recall=1))
    found = evaluate_index(tmp_path / "idx", emb)
    assert (found.num_images, found.num_captions) == (100, 500)
    assert found.metrics["text_to_image_R@1"] == pytest.approx(0.832)
    assert found.metrics["image_to_text_R@1"] == pytest.approx(0.93)
    assert found.metrics["image_to_text_R@5"] == 1
    assert found.exact_metrics["text_to_image_R@1"] == pytest.approx(0.832)


def test_captions_as_an_index(tmp_path: Path, features: tuple[np.ndarray, np.ndarray]) -> None:
    images, texts = features
    emb = write_embeddings(tmp_path / "emb", texts, columns={"image": list(np.arange(500) // 5)})
    build_index(emb, tmp_path / "idx")
    index = SearchIndex.open(tmp_path / "idx")
    hits = index.search(images, 10)
    owners = [[5 * row + number for number in range(5)] for row in range(100)]
    assert hit_rate(hits.ids, owners, 1) == pytest.approx(0.93)
    assert hit_rate(hits.ids, owners, 5) == 1
    only = index.search(images[:1], 10, where=Filter.parse("image in (7, 8)"))
    assert sorted(only.ids[0]) == list(range(35, 45))
