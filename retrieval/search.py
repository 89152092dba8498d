"""Search an index by texts and images: encode, combine, search, leave out near-duplicates, rerank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .filters import Filter
from .index import NOT_FOUND, Hits, SearchIndex
from .rows import Float32s, Int64s

if TYPE_CHECKING:
    from clipkit.model import DualEncoder

    from .milvus_index import MilvusIndex


class Reranker(Protocol):
    """Looks at hits more closely than their embeddings allow."""

    def score(self, ids: Sequence[int], text: str) -> Sequence[float]:
        """How well each row fits a text, one finite score an id; higher is better.

        Args:
            ids: of the index; images are found through its metadata.
            text: the query.
        """


def check_model(index: SearchIndex | MilvusIndex, model: DualEncoder) -> None:
    """Refuse a model that the vectors of an index are not of.

    Raises:
        ValueError: the index knows its model, and it is another.
    """
    if model.embed_dim != index.embed_dim:
        raise ValueError(
            f"the model has width {model.embed_dim}, {index.path} {index.embed_dim}: use its own model"
        )
    if index.model_id is not None and (own := model.model_id) != index.model_id:
        raise ValueError(
            f"{index.path} was made by model {index.model_id[:12]}, this one is {own[:12]}: a query must be "
            "of the same model"
        )


def encode_queries(model: DualEncoder, texts: Sequence[str], images: Sequence[Path]) -> Float32s:
    """Unit vectors of texts, then of image files: (T + I, D) fp32.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is no image.
    """
    import torch
    import torch.nn.functional as F

    from clipkit.evaluation import encode_texts
    from clipkit.images import ImageError, decode_image

    device = model.logit_scale.device
    transform = model.preprocess()
    features = []
    with torch.inference_mode():
        if texts:
            features.append(encode_texts(model, texts, device=device))
        for path in images:
            try:
                pixels = transform(decode_image(path.read_bytes()))
            except ImageError as error:
                raise ValueError(f"{path}: {error}") from None
            features.append(model.encode_image(pixels[None].to(device)).float())
        rows: Float32s = F.normalize(torch.cat(features), dim=-1).cpu().numpy()
    return rows


def search_distinct(
    index: SearchIndex | MilvusIndex,
    queries: Float32s,
    k: int,
    threshold: float,
    *,
    where: Filter | None = None,
) -> Hits:
    """The best hits of which no two are more similar to each other than a threshold.

    A hit stays unless a better one that stays is as similar; the search goes on until `k` hits are found.

    Args:
        index: what to search.
        queries: (Q, D), rows L2-normalised.
        k: at least 1.
        threshold: cosine in (0, 1].
        where: a condition on metadata.

    Raises:
        ValueError: the threshold is out of range; as of `SearchIndex.search`.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold of near-duplicates must be in (0, 1], got {threshold}")
    ids = np.full((len(queries), k), NOT_FOUND, np.int64)
    similarities = np.full((len(queries), k), -np.inf, np.float32)
    for row in range(len(queries)):
        wanted = min(2 * k, index.num_rows)
        while True:
            hits = index.search(queries[row : row + 1], max(wanted, 1), where=where)
            found = hits.ids[0][hits.ids[0] != NOT_FOUND]
            places = distinct(index.vectors(found), threshold, k)
            if len(places) == k or len(found) < wanted or wanted >= index.num_rows:
                break
            wanted = min(4 * wanted, index.num_rows)
        ids[row, : len(places)] = found[places]
        similarities[row, : len(places)] = hits.similarities[0][places]
    return Hits(ids=ids, similarities=similarities)


def distinct(vectors: Float32s, threshold: float, k: int) -> Int64s:
    """Places of the first `k` rows that are less similar than a threshold to those taken before.

    Args:
        vectors: (n, D), none of them zero.
        threshold: cosine from which on a row counts as a duplicate.
        k: at most so many.
    """
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    taken: list[int] = []
    for place, vector in enumerate(unit):
        if len(taken) == k:
            break
        if not taken or float((unit[taken] @ vector).max()) < threshold:
            taken.append(place)
    return np.array(taken, np.int64)


def rerank(hits: Hits, texts: Sequence[str], reranker: Reranker) -> Hits:
    """The same hits in the order of a reranker's scores; equal scores keep their order.

    Args:
        hits: of Q queries.
        texts: Q of them.
        reranker: what scores; it is asked once a query.

    Raises:
        ValueError: it gives another number of scores than it was given ids, or one that is not finite.
    """
    ids, similarities = hits.ids.copy(), hits.similarities.copy()
    for row, text in enumerate(texts):
        there = np.flatnonzero(hits.ids[row] != NOT_FOUND)
        scores = np.asarray(reranker.score(hits.ids[row, there].tolist(), text), np.float64)
        if scores.shape != there.shape or not np.isfinite(scores).all():
            raise ValueError(
                f"a reranker must give one finite score for each of {len(there)} hits of {text!r}"
            )
        order = there[np.argsort(-scores, kind="stable")]
        ids[row, there], similarities[row, there] = hits.ids[row, order], hits.similarities[row, order]
    return Hits(ids=ids, similarities=similarities)


def reranked_recall(
    hits: Hits, texts: Sequence[str], positives: Sequence[Sequence[int]], reranker: Reranker, k: int
) -> dict[str, float]:
    """Recall@k before and after reranking: the share of queries with a positive among the first `k` hits.

    Args:
        hits: of Q queries, more than `k` of each.
        texts: Q of them.
        positives: for each query, the ids that are right.
        reranker: what scores.
        k: at least 1.

    Returns:
        `before`, `after`, and `possible`: the recall of a reranker that is always right.
    """
    after = rerank(hits, texts, reranker)
    return {
        "before": hit_rate(hits.ids, positives, k),
        "after": hit_rate(after.ids, positives, k),
        "possible": hit_rate(hits.ids, positives, hits.ids.shape[1]),
    }


def hit_rate(ids: Int64s, positives: Sequence[Sequence[int]], k: int) -> float:
    """Share of queries with any positive among the first `k` of `ids` (Q, K)."""
    found = [bool(np.isin(row[:k], list(right)).any()) for row, right in zip(ids, positives, strict=True)]
    return float(np.mean(found))
