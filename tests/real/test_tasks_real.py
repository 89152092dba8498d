"""Tasks on real features of CLIP ViT-B/32: a hundred photos of Flickr8k with five captions each."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clipkit.zeroshot.tasks.base import Features
from clipkit.zeroshot.tasks.diagnostics import Diagnostics
from clipkit.zeroshot.tasks.retrieval import ZeroshotRetrieval
from hand_features import labelled, made_features
from shared_data import shared_data


@pytest.fixture
def photos() -> Features:
    folder = shared_data("clip_vitb32_real")
    captions = json.loads((folder / "flickr100.json").read_text())["captions"]
    stored = np.load(folder / "flickr100.npz")
    images, texts = (
        F.normalize(torch.from_numpy(stored[name]).float(), dim=-1) for name in ("image", "text")
    )
    groups = [captions[5 * row : 5 * row + 5] for row in range(100)]
    return made_features(labelled(images, captions=groups), texts=dict(zip(captions, texts, strict=True)))


def test_retrieval(photos: Features) -> None:
    found = ZeroshotRetrieval(data="flickr8k").measure(photos)
    assert found.metrics["image_retrieval_recall@1"] == pytest.approx(0.832)
    assert found.metrics["text_retrieval_recall@1"] == pytest.approx(0.93)
    assert found.metrics["text_retrieval_recall@5"] == 1.0
    assert found.metrics["image_retrieval_median_rank"] == 1.0
    low, high = found.intervals["image_retrieval_recall@1"]
    assert 0.78 < low < 0.832 < high < 0.88


def test_diagnostics(photos: Features) -> None:
    """The two modalities lie in two narrow cones, and a photo is nearer to its captions than to others."""
    metrics = Diagnostics(data="flickr8k").measure(photos).metrics
    assert 0.7 < metrics["modality_gap"] < 1.3
    assert 0.25 < metrics["true_pair_cosine"] < 0.36
    assert metrics["other_pair_cosine"] < metrics["true_pair_cosine"] - 0.08
    assert metrics["alignment"] == pytest.approx(2 - 2 * metrics["true_pair_cosine"], abs=1e-4)
    # Spread over the whole sphere would be about -4.
    assert -3.5 < metrics["image_uniformity"] < -1
    assert -3.5 < metrics["text_uniformity"] < -1
    assert 20 < metrics["image_effective_rank"] < 100
