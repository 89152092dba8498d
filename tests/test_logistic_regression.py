from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression as ScikitLearn
from torch import Tensor

from clipkit.logistic_regression import (
    WEIGHT_DECAYS,
    LinearClassifier,
    LogisticRegression,
    choose_weight_decay,
)
from clipkit.metrics import topk_accuracy

NUM_CLASSES = 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Of many small steps: several threads would wait for each other wherever other work runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def example(num_rows: int, dim: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit vectors around class means that share a large component, as those of dual encoders do."""
    means = torch.randn(NUM_CLASSES, dim, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_rows) % NUM_CLASSES
    noise = torch.randn(num_rows, dim, generator=generator)
    return F.normalize(6 + means[labels] + 2 * noise, dim=-1), labels


def objective(classifier: LinearClassifier, features: Tensor, labels: Tensor, weight_decay: float) -> float:
    loss = F.cross_entropy(classifier.logits(features), labels)
    return float(loss + weight_decay / 2 * classifier.weight.square().sum())


@pytest.mark.parametrize(("num_rows", "dim"), [(400, 16), (20, 48)])
@pytest.mark.parametrize("weight_decay", [1e-4, 1e-2])
def test_the_minimum_is_that_of_scikit_learn(num_rows: int, dim: int, weight_decay: float) -> None:
    features, labels = example(num_rows, dim)
    fitted = LogisticRegression(features, labels, NUM_CLASSES).fit(weight_decay)
    reference = ScikitLearn(C=1 / (num_rows * weight_decay), tol=1e-9, max_iter=10_000)
    reference.fit(features.double().numpy(), labels.numpy())
    np.testing.assert_allclose(fitted.weight.numpy(), reference.coef_, atol=1e-3)
    expected = reference.predict_proba(features.double().numpy())
    np.testing.assert_allclose(fitted.logits(features).softmax(dim=1).numpy(), expected, atol=1e-4)
    theirs = LinearClassifier(
        weight=torch.from_numpy(reference.coef_),
        bias=torch.from_numpy(reference.intercept_),
        weight_decay=weight_decay,
        objective=math.nan,
        num_iterations=0,
        has_converged=True,
    )
    least = objective(theirs, features, labels, weight_decay)
    assert fitted.has_converged
    assert fitted.objective == pytest.approx(objective(fitted, features, labels, weight_decay), abs=1e-9)
    assert fitted.objective == pytest.approx(least, abs=1e-6)


def test_two_points_by_hand() -> None:
    # At +1 and -1 the classes' weights are w and -w with logits +-w: w = 2 s / (2 decay) where s is the share
    # 1 / (1 + exp(2 w)) of the wrong class, from d/dw [log(1 + exp(-2 w)) + decay w^2] = 0.
    features, labels, decay = torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]), 0.1
    fitted = LogisticRegression(features, labels, 2).fit(decay, tolerance=1e-9)
    weight = float(fitted.weight[0])
    assert weight == pytest.approx(1 / (1 + math.exp(2 * weight)) / decay, rel=1e-6)
    assert float(fitted.weight[1]) == pytest.approx(-weight)
    assert float(fitted.bias[0] - fitted.bias[1]) == pytest.approx(0.0, abs=1e-7)


def test_a_strong_decay_leaves_the_shares_of_the_classes() -> None:
    features, _ = example(100, 8)
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 8 + [3] * 2)
    fitted = LogisticRegression(features, labels, NUM_CLASSES).fit(1e4)
    expected = torch.tensor([0.6, 0.3, 0.08, 0.02], dtype=torch.float64)
    torch.testing.assert_close(fitted.logits(features).softmax(dim=1)[0], expected, atol=1e-4, rtol=0)


def test_where_it_starts_makes_no_difference_but_saves_steps() -> None:
    features, labels = example(300, 12)
    regression = LogisticRegression(features, labels, NUM_CLASSES)
    cold = regression.fit(1e-5)
    warm = regression.fit(1e-5, start=regression.fit(2e-5))
    torch.testing.assert_close(warm.weight, cold.weight, atol=1e-3, rtol=0)
    assert regression.fit(1e-5, start=cold).num_iterations < 3
    assert warm.num_iterations < cold.num_iterations


def test_too_few_steps_are_told() -> None:
    features, labels = example(300, 12)
    fitted = LogisticRegression(features, labels, NUM_CLASSES).fit(1e-6, max_iterations=3)
    assert not fitted.has_converged


def test_rotated_features_have_the_same_predictions() -> None:
    features, labels = example(200, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(3))).Q
    plain = LogisticRegression(features, labels, NUM_CLASSES).fit(1e-3)
    rotated = LogisticRegression(features @ rotation, labels, NUM_CLASSES).fit(1e-3)
    torch.testing.assert_close(
        rotated.logits(features @ rotation).softmax(dim=1),
        plain.logits(features).softmax(dim=1),
        atol=1e-4,
        rtol=0,
    )


def test_the_search_finds_the_best_of_the_grid() -> None:
    features, labels = example(60, 24)
    validation, truth = example(800, 24, seed=1)
    regression = LogisticRegression(features, labels, NUM_CLASSES)
    tried = [regression.fit(decay) for decay in WEIGHT_DECAYS[::12]]
    every = [topk_accuracy(classifier.logits(validation), truth) for classifier in tried]
    best = choose_weight_decay(regression, validation, truth)
    assert max(every) > max(every[0], every[-1]) + 0.01
    assert topk_accuracy(best.logits(validation), truth) >= max(every)
    assert min(abs(best.weight_decay - decay) for decay in WEIGHT_DECAYS) < 1e-12


def test_of_strengths_that_are_equally_right_the_surer_one_is_chosen() -> None:
    features, labels = torch.eye(4), torch.arange(4)
    regression = LogisticRegression(features, labels, NUM_CLASSES)
    assert (
        choose_weight_decay(regression, features, labels, candidates=(1.0, 1e-4, 1e-2)).weight_decay == 1e-4
    )
    assert choose_weight_decay(regression, features, labels).weight_decay == pytest.approx(1e-6)


def test_the_grid_is_that_of_clip_benchmark() -> None:
    np.testing.assert_allclose(WEIGHT_DECAYS, np.logspace(-6, 2, num=97))


def test_what_cannot_be_fitted_is_refused() -> None:
    features, labels = example(40, 8)
    with pytest.raises(ValueError, match="needs features of each"):
        LogisticRegression(features, labels, NUM_CLASSES + 1)
    with pytest.raises(ValueError, match="needs features of each"):
        LogisticRegression(features, labels, NUM_CLASSES - 1)
    with pytest.raises(ValueError, match="finite"):
        LogisticRegression(features.fill_(torch.nan), labels, NUM_CLASSES)
    with pytest.raises(ValueError, match="weight_decay must be above 0"):
        LogisticRegression(*example(40, 8), NUM_CLASSES).fit(0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_minimum_is_the_same() -> None:
    features, labels = example(300, 12)
    validation, truth = example(200, 12, seed=1)
    here = choose_weight_decay(LogisticRegression(features, labels, NUM_CLASSES), validation, truth)
    regression = LogisticRegression(features.cuda(), labels, NUM_CLASSES)
    there = choose_weight_decay(regression, validation.cuda(), truth)
    assert there.weight_decay == here.weight_decay
    torch.testing.assert_close(there.weight.cpu(), here.weight, atol=1e-3, rtol=0)
