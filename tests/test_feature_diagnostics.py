from __future__ import annotations

import math

import pytest
import torch
from hand_features import at, random_rows

from clipkit import feature_diagnostics
from clipkit.feature_diagnostics import (
    alignment,
    effective_rank,
    modality_gap,
    pair_cosines,
    uniformity,
)


def test_modality_gap_by_hand() -> None:
    # Centroids (1/2, 1/2) and (-1, 0).
    assert modality_gap(at(0, 90), at(180)) == pytest.approx(math.hypot(1.5, 0.5))
    assert modality_gap(at(0, 90), at(90, 0)) == pytest.approx(0.0, abs=1e-7)
    assert modality_gap(at(0), at(180)) == pytest.approx(2.0)


def test_alignment_by_hand() -> None:
    # Squared distances 0, 2 and 4.
    assert alignment(at(0, 0, 0), at(0, 90, 180)) == pytest.approx(2.0)
    rows = random_rows(10, 4, seed=0)
    assert alignment(rows, rows) == 0.0


def test_uniformity_by_hand() -> None:
    assert uniformity(at(0, 180)) == pytest.approx(-8.0)
    # Of three pairs two are at a squared distance of 2 and one at 4.
    expected = math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
    assert uniformity(at(0, 90, 180)) == pytest.approx(expected, abs=1e-5)
    assert uniformity(at(30, 30, 30)) == pytest.approx(0.0, abs=1e-5)


def test_uniformity_is_that_of_the_published_code(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(53, 8, seed=0)
    expected = float(torch.pdist(rows.double()).square().mul(-2).exp().mean().log())
    assert uniformity(rows) == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr(feature_diagnostics, "_COSINES_PER_BLOCK", 500)  # nine rows a block
    assert uniformity(rows) == pytest.approx(expected, abs=1e-5)


def test_uniformity_of_many_dimensions_is_near_minus_four() -> None:
    assert uniformity(random_rows(400, 512, seed=0)) == pytest.approx(-4.0, abs=0.05)


def test_effective_rank_by_hand() -> None:
    assert effective_rank(torch.eye(5)) == pytest.approx(5.0)
    assert effective_rank(at(20, 20, 200)) == pytest.approx(1.0, abs=1e-4)
    # Singular values 3 and 1: shares 3/4 and 1/4.
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])) == pytest.approx(expected)


def test_effective_rank_does_not_depend_on_scale_or_rotation() -> None:
    rows = random_rows(30, 6, seed=0)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).Q
    assert effective_rank(7 * rows @ rotation) == pytest.approx(effective_rank(rows), abs=1e-4)
    assert 1 < effective_rank(rows) < 6


def test_pair_cosines_by_hand() -> None:
    # Texts at 0 and 90 degrees of image 0, one at 0 of image 1 (at 60); image 0 is at 0.
    true, others = pair_cosines(at(0, 90, 0), at(0, 60), torch.tensor([0, 0, 1]))
    assert true == pytest.approx((1 + 0 + 0.5) / 3)
    assert others == pytest.approx((0.5 + math.cos(math.radians(30)) + 1) / 3)


def test_pair_cosines_are_means_over_the_whole_matrix() -> None:
    texts, images = random_rows(40, 5, seed=0), random_rows(15, 5, seed=1)
    owners = torch.arange(40) % 15
    cosines = texts.double() @ images.double().T
    is_true = torch.zeros(40, 15, dtype=torch.bool)
    is_true[torch.arange(40), owners] = True
    true, others = pair_cosines(texts, images, owners)
    assert true == pytest.approx(float(cosines[is_true].mean()))
    assert others == pytest.approx(float(cosines[~is_true].mean()))


def test_too_few_features_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two features, got 1"):
        uniformity(at(0))
    with pytest.raises(ValueError, match="at least two features to choose from, got 1"):
        pair_cosines(at(0), at(0), torch.tensor([0]))
