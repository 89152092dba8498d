"""Figures about the joint space."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from clipkit.zeroshot.suite import make_entry
from clipkit.zeroshot.tasks.diagnostics import Diagnostics
from hand_features import at, labelled, made_features, random_rows
from pair_shards import write_pairs

from clipkit.feature_diagnostics import effective_rank, uniformity


def test_two_images_and_three_captions_by_hand() -> None:
    images = labelled(at(0, 45, 90), captions=[["a", "b"], [], ["c"]])
    texts = {"a": at(0)[0], "b": at(90)[0], "c": at(180)[0]}
    found = Diagnostics(data="x").measure(made_features(images, texts=texts))
    # Centroids (1/2, 1/2) and (0, 1/3); cosines of true pairs 1, 0, 0 and of others 0, 1, -1.
    assert found.metrics == {
        "modality_gap": pytest.approx(math.hypot(1 / 2, 1 / 6)),
        "alignment": pytest.approx((0 + 2 + 2) / 3),
        "image_uniformity": pytest.approx(-4.0, abs=1e-5),
        "text_uniformity": pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3), abs=1e-5),
        "image_effective_rank": pytest.approx(2.0),
        "text_effective_rank": pytest.approx(effective_rank(at(0, 90, 180))),
        "true_pair_cosine": pytest.approx(1 / 3, abs=1e-6),
        "other_pair_cosine": pytest.approx(0.0, abs=1e-6),
    }
    assert set(found.plain) == set(found.metrics)
    assert found.notes == ("1 images without a caption are left out",)


def test_large_sets_are_drawn_from() -> None:
    rows = random_rows(300, 8, seed=0)
    images = labelled(rows, captions=[[str(number)] for number in range(300)])
    features = made_features(images, texts={str(number): -row for number, row in enumerate(rows)})
    every = Diagnostics(data="x", max_rows=0).measure(features)
    some = Diagnostics(data="x", max_rows=100).measure(features)
    assert every.metrics["image_uniformity"] == pytest.approx(uniformity(rows))
    assert every.notes == ()
    assert some.metrics["image_uniformity"] != every.metrics["image_uniformity"]
    assert some.metrics["image_uniformity"] == pytest.approx(every.metrics["image_uniformity"], abs=0.05)
    assert some.metrics["image_effective_rank"] != every.metrics["image_effective_rank"]
    assert some.metrics["modality_gap"] == every.metrics["modality_gap"]
    assert some.metrics["alignment"] == pytest.approx(4.0)
    assert some.notes == (
        "uniformity and rank of 100 of 300 image features",
        "uniformity and rank of 100 of 300 text features",
    )
    assert some.metrics == Diagnostics(data="x", max_rows=100).measure(features).metrics


def test_a_single_image_is_refused() -> None:
    features = made_features(labelled(at(0), captions=[["a", "b"]]), texts={"a": at(0)[0], "b": at(9)[0]})
    with pytest.raises(ValueError, match="at least two images with captions, got 1"):
        Diagnostics(data="x").measure(features)
    with pytest.raises(ValueError, match="max_rows must be at least 2, or 0 for all, got 1"):
        Diagnostics(data="x", max_rows=1)


def test_data_with_captions_is_opened(tmp_path: Path) -> None:
    tiles = write_pairs(tmp_path / "tiles", 12)
    (images,) = make_entry("tiles", {"task": "diagnostics", "data": tiles}).settings.sources().values()
    assert torch.tensor([len(images.read(index).captions) for index in range(12)]).tolist() == [2] * 12
