"""Statistics of made embeddings beside those of real CLIP features, on as many rows.

    python benchmarks/search_features.py ../shared/data/clip_vitb32_real/flickr100.npz

The file has `image` (n, D) and `text` (5 n, D), five captions of each image in the order of the images. A
spectrum that is estimated from so few rows is biased, in the same way for both sides of the table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import numpy as np
from search_vectors import Float32s, VectorSource, unit

NUM_BATCHES = 6
_CAPTIONS = 5


def statistics_of(images: Float32s, texts: Float32s) -> dict[str, float]:
    """What is compared, of (n, D) images and their texts, rows L2-normalised."""
    found = {f"image: {name}": value for name, value in spectrum_of(images).items()}
    found |= {f"text: {name}": value for name, value in spectrum_of(texts).items()}
    centred_images, centred_texts = (rows - rows.mean(axis=0) for rows in (images, texts))
    directions = np.linalg.svd(centred_images, full_matrices=False)[2]
    along = ((centred_texts @ directions.T) ** 2).sum(axis=0) / (centred_texts**2).sum()
    similarities = texts @ images.T
    own = np.diag(similarities)
    others = similarities[~np.eye(len(images), dtype=bool)].reshape(len(images), -1)
    return found | {
        "text variance along the first 10 directions of images, %": 100 * along[:10].sum(),
        "along all of them, %": 100 * along.sum(),
        "cosine of a pair": own.mean(),
        "of a text and other images": others.mean(),
        "its standard deviation for one text": others.std(axis=1).mean(),
        "recall@1, text to image, %": 100 * (similarities.argmax(axis=1) == np.arange(len(images))).mean(),
    }


def spectrum_of(rows: Float32s) -> dict[str, float]:
    """Of (n, D) rows less their mean: participation ratio, and shares of the first principal directions."""
    centred = rows - rows.mean(axis=0)
    products = centred @ centred.T
    num_rows = len(rows)
    squares = (np.sum(products**2) - np.sum(np.diag(products) ** 2)) / (num_rows * (num_rows - 1))
    shares = np.linalg.svd(centred, compute_uv=False) ** 2
    shares *= 100 / shares.sum()
    similarities = rows @ rows.T
    np.fill_diagonal(similarities, -1)
    return {
        "participation ratio": (np.trace(products) / (num_rows - 1)) ** 2 / squares,
        "variance along the first direction, %": shares[0],
        "first 5, %": shares[:5].sum(),
        "first 20, %": shares[:20].sum(),
        "first 50, %": shares[:50].sum(),
        "squared norm of the mean": float(np.sum(rows.mean(axis=0) ** 2)),
        "similarity to the nearest other": similarities.max(axis=1).mean(),
    }


def table(real: Iterable[dict[str, float]], made: Iterable[dict[str, float]]) -> str:
    """Markdown, means over draws."""
    sides = [list(real), list(made)]
    lines = ["| of as many rows | real | made |", "|---|---|---|"]
    for name in sides[0][0]:
        means = (np.mean([one[name] for one in side]) for side in sides)
        lines.append(f"| {name} | " + " | ".join(f"{mean:.3g}" for mean in means) + " |")
    return "\n".join(lines)


def main() -> None:
    stored = np.load(sys.argv[1])
    images, texts = unit(stored["image"]), unit(stored["text"])
    source = VectorSource()
    batches = [source.batch(number, len(images)) for number in range(NUM_BATCHES)]
    print(
        table(
            [statistics_of(images, texts[first::_CAPTIONS]) for first in range(_CAPTIONS)],
            [statistics_of(batch.images, batch.texts) for batch in batches],
        )
    )


if __name__ == "__main__":
    main()
