"""What an index costs in quality: against the exact search, and on the task, with all captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .index import SearchIndex, checked_unit_rows, nearest
from .index_change import PATH_COLUMN, SHARD_COLUMN, row_name, row_names
from .index_faiss import VectorIndex
from .index_tune import KS, recall_of
from .rows import Float32s, Int64s
from .search import hit_rate
from .store import EmbeddingFolder

RECALL_KS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class IndexEvaluation:
    """Through the index, and by an exact search over the same vectors."""

    num_images: int
    num_captions: int
    recall: dict[str, float]
    """By k: the share of the exact neighbours of the captions that the index finds."""
    metrics: dict[str, float]
    """`text_to_image_R@K` and `image_to_text_R@K` through the index."""
    exact_metrics: dict[str, float]

    def to_text(self) -> str:
        """A few lines."""
        lines = [
            f"{self.num_captions} captions of {self.num_images} images; of the exact neighbours found: "
            + ", ".join(f"@{k} {value:.3f}" for k, value in self.recall.items())
        ]
        lines += [
            f"{name}  {100 * value:.1f}  (exact: {100 * self.exact_metrics[name]:.1f})"
            for name, value in self.metrics.items()
        ]
        return "\n".join(lines)


def evaluate_index(path: str | Path, embeddings: str | Path) -> IndexEvaluation:
    """Search the images of an index by all captions of a folder, and the captions by its images.

    Rows of both belong together by their image_path; the images that are searched are all of the index. The
    captions are put into an index of the same make, with the same settings, for the time of the call.

    Args:
        path: an index of images.
        embeddings: a folder with embeddings of captions, of the same model.

    Raises:
        ValueError: the models differ, the folder has no captions or images that are not in the index, or the
            index does not keep vectors to compare with.
    """
    index = SearchIndex.open(path, modality="image")
    folder = EmbeddingFolder.open(embeddings)
    if index.model_id != folder.model_id:
        raise ValueError(f"{path} and {embeddings} are of different models")
    if not index.keeps_vectors:
        raise ValueError(
            f"{path} keeps codes only, not the vectors: see the recall measured when it was built"
        )
    captions, owners = _captions(index, folder)
    captions = checked_unit_rows(captions, index.embed_dim, "caption")
    k = max(*KS, *RECALL_KS)
    found, exact = index.search(captions, k).ids, index.exact(captions, k).ids
    positives = [[owner] for owner in owners.tolist()]
    metrics = _recalls("text_to_image", found, positives)
    exact_metrics = _recalls("text_to_image", exact, positives)
    images = np.unique(owners)
    backward = [np.flatnonzero(owners == image).tolist() for image in images]
    queries = index.vectors(images)
    own_captions = VectorIndex.make(index.factory, index.embed_dim)
    own_captions.train(captions)
    own_captions.add(captions)
    num_hits = min(max(RECALL_KS), len(captions))
    _, places = own_captions.search(queries, num_hits, index.settings)
    metrics |= _recalls("image_to_text", places, backward)
    _, exact_places = nearest(queries, [(np.arange(len(captions)), captions)], num_hits)
    exact_metrics |= _recalls("image_to_text", exact_places, backward)
    return IndexEvaluation(
        num_images=index.num_rows,
        num_captions=len(captions),
        recall={str(k): recall_of(index.search(captions, k).ids, exact, k) for k in KS},
        metrics=metrics,
        exact_metrics=exact_metrics,
    )


def _captions(index: SearchIndex, folder: EmbeddingFolder) -> tuple[Float32s, Int64s]:
    """All captions of a folder, and the id of the image of each."""
    if folder.text_embeddings is None:
        raise ValueError(f"{folder.path} has no embeddings of captions")
    columns = [name for name in index.columns if name in (PATH_COLUMN, SHARD_COLUMN)]
    known = [row_name(row) for row in index.metadata(index.ids, columns)]
    id_of_path = dict(zip(known, index.ids.tolist(), strict=True))
    paths = row_names(folder)
    unknown = [name for name in paths if name not in id_of_path]
    if unknown:
        raise ValueError(
            f"{len(unknown)} images of {folder.path} are not in the index, the first: {unknown[0]}"
        )
    owners = np.array([id_of_path[name] for name in paths], np.int64)
    captions = folder.text_embeddings.read(0, folder.num_rows)
    if folder.more_text_embeddings is not None:
        more = folder.more_text_embeddings
        captions = np.concatenate([captions, more.read(0, len(more))])
        owners = np.concatenate([owners, owners[folder.rows_of_more_texts()]])
    return captions, owners


def _recalls(direction: str, ids: Int64s, positives: list[list[int]]) -> dict[str, float]:
    return {f"{direction}_R@{k}": hit_rate(ids, positives, k) for k in RECALL_KS}
