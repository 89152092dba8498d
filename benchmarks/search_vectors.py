"""Made embeddings of images and texts that are as hard to search as real ones.

Images are unit vectors around a mean, spread over directions whose variances fall as a power law, and
gathered in topics of very different sizes. A text is what an image is about, seen weakly, beside much that no
image has, around a mean of its own. So texts lie apart from images (the modality gap), and the images nearest
to a text are near to it for different reasons, which is what makes text queries hard.

Means, spectra of both kinds, the cosine of an image and its text, and how much of a text lies along the
directions of images are those of real ViT-B/32 features (`search_features.py` compares them). Number, sizes
and share of the topics, which a hundred photos cannot tell, were chosen at 100,000 rows by the work that
indexes have (`search_calibration.py` shows it beside VIBE's rates on LAION), before any index was compared
at a million.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]

ROWS_PER_FILE = 50_000


@dataclass(frozen=True, kw_only=True)
class VectorSettings:
    """Statistics of the vectors."""

    embed_dim: int = 512
    decay: float = 1.15
    """Exponent of the power law of the variances of images along principal directions."""
    text_decay: float = 1.3
    """The same of what texts have of their own."""
    num_topics: int = 20_000
    """About fifty images of each among a million; fewer rows need fewer topics."""
    topic_decay: float = 0.7
    """Exponent of the power law of their sizes."""
    topic_share: float = 0.7
    """Of the variance of what an image is about."""
    image_mean_energy: float = 0.56
    """Squared norm of the mean of all images."""
    text_mean_energy: float = 0.50
    mean_cosine: float = 0.33
    """Of both means."""
    pair_cosine: float = 0.32
    """Of an image and its text, less their means."""
    image_like_share: float = 0.15
    """Of the variance of texts that has nothing to do with their image: how much lies along the directions of
    images. The rest lies across the first `num_shared_directions` of those."""
    num_shared_directions: int = 64


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images and their texts, row by row."""

    images: Float32s
    texts: Float32s


class VectorSource:
    """Any number of images with texts; each batch of rows depends on its number alone."""

    def __init__(self, settings: VectorSettings | None = None, *, seed: int = 0) -> None:
        self._settings = chosen = settings or VectorSettings()
        self._seed = seed
        rng = np.random.default_rng(seed)
        dim = chosen.embed_dim
        scales = np.sqrt(_power_law(dim, chosen.decay, offset=2))[:, None]
        directions = _rotation(rng, dim)
        self._image_directions = (scales * directions).astype(np.float32)
        num_own = dim - chosen.num_shared_directions
        own = _rotation(rng, num_own) @ directions[chosen.num_shared_directions :]
        own_scales = np.sqrt(_power_law(num_own, chosen.text_decay, offset=2))[:, None]
        self._text_directions = (own_scales * own).astype(np.float32)
        self._topics = rng.standard_normal((chosen.num_topics, dim), dtype=np.float32)
        self._topic_sizes = _power_law(chosen.num_topics, chosen.topic_decay)
        first, second = _rotation(rng, dim)[:2]
        beside = np.sqrt(1 - chosen.mean_cosine**2)
        self._image_mean = np.sqrt(chosen.image_mean_energy) * first
        self._text_mean = np.sqrt(chosen.text_mean_energy) * (chosen.mean_cosine * first + beside * second)

    def batch(self, number: int, num_rows: int) -> Batch:
        """Rows of one batch: (num_rows, D) images and texts, L2-normalised."""
        chosen = self._settings
        rng = np.random.default_rng([self._seed, number])
        topics = rng.choice(chosen.num_topics, num_rows, p=self._topic_sizes)
        meanings = np.sqrt(chosen.topic_share) * (self._topics[topics] @ self._image_directions)
        meanings += np.sqrt(1 - chosen.topic_share) * _spread(rng, self._image_directions, num_rows)
        others = np.sqrt(chosen.image_like_share) * _spread(rng, self._image_directions, num_rows)
        others += np.sqrt(1 - chosen.image_like_share) * _spread(rng, self._text_directions, num_rows)
        said = chosen.pair_cosine * meanings + np.sqrt(1 - chosen.pair_cosine**2) * others
        return Batch(
            images=unit(self._image_mean + np.sqrt(1 - chosen.image_mean_energy) * meanings),
            texts=unit(self._text_mean + np.sqrt(1 - chosen.text_mean_energy) * said),
        )


def _spread(rng: np.random.Generator, directions: Float32s, num_rows: int) -> Float32s:
    """(num_rows, D) normally distributed along scaled directions (n, D)."""
    return rng.standard_normal((num_rows, len(directions)), dtype=np.float32) @ directions


def unit(rows: npt.NDArray[np.floating]) -> Float32s:
    """Rows scaled to length 1."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write_embedding_folder(source: VectorSource, folder: Path, num_rows: int) -> None:
    """Write images and texts as `clipkit embed` does: `img_emb/`, `text_emb/` (fp16) and `metadata/`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, start, size in _parts(num_rows):
        batch = source.batch(number, size)
        np.save(folder / f"img_emb/img_emb_{number:04d}.npy", batch.images.astype(np.float16))
        np.save(folder / f"text_emb/text_emb_{number:04d}.npy", batch.texts.astype(np.float16))
        table = pa.table({"image_path": [f"{row}.jpg" for row in range(start, start + size)]})
        pq.write_table(table, folder / f"metadata/metadata_{number:04d}.parquet")


def read_images(folder: Path) -> Float32s:
    """(N, D) images of an embedding folder as fp32, not normalised again after the rounding to fp16."""
    parts = [np.load(path, mmap_mode="r") for path in sorted((folder / "img_emb").glob("*.npy"))]
    rows = np.empty((sum(map(len, parts)), parts[0].shape[1]), np.float32)
    np.concatenate(parts, out=rows, casting="unsafe")
    return rows


def _parts(num_rows: int) -> Iterator[tuple[int, int, int]]:
    for number, start in enumerate(range(0, num_rows, ROWS_PER_FILE)):
        yield number, start, min(ROWS_PER_FILE, num_rows - start)


def _power_law(size: int, exponent: float, offset: int = 0) -> npt.NDArray[np.float64]:
    weights = (np.arange(1, size + 1) + offset) ** -exponent
    return weights / weights.sum()


def _rotation(rng: np.random.Generator, dim: int) -> npt.NDArray[np.float64]:
    return np.linalg.qr(rng.standard_normal((dim, dim)))[0]
