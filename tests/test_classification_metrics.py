from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from clipkit import classification_metrics, metrics
from clipkit.classification_metrics import (
    ConfusedPair,
    class_recalls,
    confused_pairs,
    expected_calibration_error,
    mean_per_class_recall,
)


def test_class_recalls_by_hand_leave_out_empty_classes() -> None:
    right = torch.tensor([1.0, 0.0, 1.0, 1.0])
    labels = torch.tensor([0, 0, 2, 2])
    recalls = class_recalls(right, labels, 4)
    assert recalls[[0, 2]].tolist() == [0.5, 1.0]
    assert recalls[[1, 3]].isnan().all()
    assert mean_per_class_recall(right, labels, 4) == 0.75


@pytest.mark.parametrize("seed", range(3))
def test_mean_per_class_recall_is_balanced_accuracy(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(300, 10, generator=generator)
    labels = torch.randint(8, (300,), generator=generator)  # two classes have no image
    logits[:, 8:] = -10
    right = (metrics.label_ranks(logits, labels) == 0).double()
    expected = balanced_accuracy_score(labels.numpy(), logits.argmax(dim=1).numpy())
    assert mean_per_class_recall(right, labels, 10) == pytest.approx(expected, abs=1e-9)
    order = torch.randperm(300, generator=generator)
    assert mean_per_class_recall(right[order], labels[order], 10) == pytest.approx(expected, abs=1e-9)


def logits_of(confidences: list[float], num_classes: int = 2) -> torch.Tensor:
    """Rows whose first class has these probabilities, the others equal shares of the rest."""
    first = torch.tensor(confidences, dtype=torch.float64)[:, None]
    rest = ((1 - first) / (num_classes - 1)).expand(-1, num_classes - 1)
    return torch.cat([first, rest], dim=1).log()


def test_calibration_error_by_hand() -> None:
    # Two bins of two and one of one: |1/2 - 0.85| * 2/5 + |1 - 0.65| * 2/5 + |0 - 0.95| / 5, with ten bins.
    logits = logits_of([0.84, 0.86, 0.64, 0.66, 0.95])
    labels = torch.tensor([0, 1, 0, 0, 1])
    expected = 0.35 * 0.4 + 0.35 * 0.4 + 0.95 * 0.2
    assert expected_calibration_error(logits, labels, num_bins=10) == pytest.approx(expected)


def test_calibration_error_is_that_of_a_slow_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification_metrics, "_LOGITS_PER_BLOCK", 100)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(400, 6, generator=generator)
    labels = torch.randint(6, (400,), generator=generator)
    probabilities = logits.double().softmax(dim=1)
    expected = 0.0
    for number in range(15):
        inside = [
            (float(row.max()), int(row.argmax()) == int(label))
            for row, label in zip(probabilities, labels, strict=True)
            if number / 15 < float(row.max()) <= (number + 1) / 15
        ]
        if inside:
            confidence = sum(p for p, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            expected += len(inside) / 400 * abs(accuracy - confidence)
    assert expected_calibration_error(logits, labels) == pytest.approx(expected, abs=1e-9)


def test_a_confidence_on_an_edge_belongs_to_the_lower_bin() -> None:
    # 0.5 lies in the bin (0, 1/2]; in the other bin its gap would cancel with that of 0.75.
    logits, labels = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]), torch.tensor([0, 1])
    assert expected_calibration_error(logits, labels, num_bins=2) == pytest.approx((0.5 + 0.75) / 2)


def test_sure_and_right_is_calibrated_and_sure_and_wrong_is_not() -> None:
    logits = 1000 * torch.eye(4)
    assert expected_calibration_error(logits, torch.arange(4)) == pytest.approx(0.0)
    assert expected_calibration_error(logits, torch.tensor([1, 2, 3, 0])) == pytest.approx(1.0)
    assert expected_calibration_error(torch.full((4, 4), math.nan), torch.zeros(4, dtype=torch.int64)) == 1.0


def test_confused_pairs_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    predictions = torch.tensor([0, 1, 2, 1, 0, 1, 1, 2, 0])
    assert confused_pairs(predictions, labels) == [
        ConfusedPair(2, 1, 2, 0.5),
        ConfusedPair(0, 1, 1, 1 / 3),
        ConfusedPair(0, 2, 1, 1 / 3),
        ConfusedPair(1, 0, 1, 0.5),
        ConfusedPair(2, 0, 1, 0.25),
    ]
    assert len(confused_pairs(predictions, labels, top=2)) == 2
    assert confused_pairs(labels, labels) == []


def test_confused_pairs_are_the_cells_off_the_diagonal() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, predictions = (torch.randint(7, (500,), generator=generator) for _ in range(2))
    matrix = metrics.confusion_matrix(predictions, labels, 7)
    pairs = confused_pairs(predictions, labels, top=100)
    assert len(pairs) == 42
    assert all(matrix[pair.label, pair.prediction] == pair.count for pair in pairs)
    assert [pair.count for pair in pairs] == sorted((pair.count for pair in pairs), reverse=True)
