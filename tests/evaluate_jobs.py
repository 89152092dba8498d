"""Functions that tests of `clipkit evaluate` run on several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipkit.zeroshot.encoder import Encoder
from clipkit.zeroshot.runner import RunOptions, open_sources, run_model
from clipkit.zeroshot.suite import make_entry
from torch import Tensor

import clipkit
from clipkit import packed_texts
from clipkit.data.sources import open_source


def evaluate_tiles(model: str, tiles: str, output: str) -> dict[str, float]:
    """Metrics of classification on labelled tiles, as this rank has them."""
    entry = make_entry("tiles", {"task": "zeroshot_classification", "data": tiles})
    options = RunOptions(output=Path(output), batch_size=5, with_cache=False, quiet=True)
    (result,) = run_model(model, [entry], open_sources([entry]), options)
    return result.metrics


def count_encoded(model: str, tiles: str) -> tuple[int, int]:
    """How many images and texts this rank encodes when all ranks are asked for all of them."""
    encoder = Encoder(clipkit.load(model), None)
    counts = {"images": 0, "texts": 0}
    encode_image, encode_packed = encoder.model.encode_image, packed_texts.encode_packed

    def image(batch: Tensor) -> Tensor:
        counts["images"] += len(batch)
        return encode_image(batch)

    def packed(model: Any, batch: packed_texts.Packed) -> Tensor:
        counts["texts"] += len(batch.texts)
        return encode_packed(model, batch)

    encoder.model.encode_image = image  # type: ignore[method-assign]
    packed_texts.encode_packed = packed
    encoded = encoder.images(open_source("tiles", tiles), batch_size=5)
    assert encoded.index.tolist() == list(range(24))
    assert encoded.features.shape == (24, 16)
    texts = [f"text {number % 8}" for number in range(20)]
    features = encoder.texts(texts)
    packed_texts.encode_packed = encode_packed  # the next job of this rank finds it as it was
    assert features.shape == (20, 16)
    assert (features[0] == features[8]).all()
    return counts["images"], counts["texts"]
