"""Multinomial logistic regression on features, to convergence, and the choice of its L2 strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.metrics import topk_accuracy

WEIGHT_DECAYS = tuple(10 ** (step / 12 - 6) for step in range(97))
"""1e-6 to 1e2, twelve a decade: the grid of CLIP_benchmark's linear probe."""

_COARSE_STEP = 16


@dataclass(frozen=True, kw_only=True)
class LinearClassifier:
    """A minimum of `LogisticRegression`'s objective."""

    weight: Tensor
    """(C, D) fp64."""
    bias: Tensor
    """(C,) fp64."""
    weight_decay: float
    objective: float
    num_iterations: int
    has_converged: bool

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C) fp64, on the device of the classifier."""
        return features.to(self.weight) @ self.weight.T + self.bias


class LogisticRegression:
    """Mean cross-entropy plus `weight_decay / 2` times the squared norm of the weights; the bias is free.

    scikit-learn's `LogisticRegression` with `C = 1 / (N * weight_decay)`. Solved by L-BFGS in fp64 on centred
    features in their principal axes, each weight in units of its estimated curvature: the minimum is the
    same, but features of dual encoders share a large component, on which plain L-BFGS is slow.
    """

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        """Prepare to fit any number of classifiers.

        Args:
            features: (N, D); where they are is where the classifiers are fitted.
            labels: (N,) int64 in [0, C), every class at least once.
            num_classes: C.

        Raises:
            ValueError: features are not finite, or a class has none.
        """
        features = features.double()
        counts = torch.bincount(labels, minlength=num_classes)
        if len(counts) != num_classes or not bool(counts.all()):
            raise ValueError(f"a classifier of {num_classes} classes needs features of each of them")
        if not bool(torch.isfinite(features).all()):
            raise ValueError("a classifier needs finite features, got infinity or NaN")
        self._labels = labels.to(features.device)
        self._num_classes = num_classes
        self._mean = features.mean(dim=0)
        centred = features - self._mean
        if centred.shape[0] > centred.shape[1]:
            # Rounding of the eigenvalues does no harm: any rotation has the same minimum.
            self._axes = torch.linalg.eigh(centred.T @ centred).eigenvectors
        else:
            self._axes = torch.linalg.svd(centred, full_matrices=False).Vh.T
        self._rotated = centred @ self._axes
        self._variances = self._rotated.square().mean(dim=0)

    def fit(
        self,
        weight_decay: float,
        *,
        start: LinearClassifier | None = None,
        tolerance: float = 1e-6,
        max_iterations: int = 1000,
    ) -> LinearClassifier:
        """Minimise the objective.

        Args:
            weight_decay: above 0.
            start: a classifier of the same problem to begin from.
            tolerance: largest entry of the gradient, in units of the curvature, that counts as zero.
            max_iterations: of L-BFGS.
        """
        if weight_decay <= 0:
            raise ValueError(f"weight_decay must be above 0, got {weight_decay}")
        units = (self._variances / self._num_classes + weight_decay).rsqrt()
        weight = torch.zeros(self._num_classes, len(units), dtype=torch.float64, device=units.device)
        bias = torch.zeros(self._num_classes, dtype=torch.float64, device=units.device)
        if start is not None:
            weight = start.weight @ self._axes / units
            bias = start.bias + start.weight @ self._mean
        parameters = [weight.requires_grad_(), bias.requires_grad_()]
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=max_iterations,
            max_eval=4 * max_iterations,
            tolerance_grad=tolerance,
            tolerance_change=0.0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def objective() -> Tensor:
            optimizer.zero_grad()
            scaled = weight * units
            logits = self._rotated @ scaled.T + bias
            value: Tensor = F.cross_entropy(logits, self._labels) + weight_decay / 2 * scaled.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(objective)  # type: ignore[no-untyped-call]
        value = float(objective().detach())
        steepest = max(float(p.grad.abs().max()) for p in parameters if p.grad is not None)
        rotated = (weight * units).detach()
        original = rotated @ self._axes.T
        return LinearClassifier(
            weight=original,
            bias=bias.detach() - original @ self._mean,
            weight_decay=weight_decay,
            objective=value,
            num_iterations=int(optimizer.state[parameters[0]]["n_iter"]),
            has_converged=steepest <= tolerance,
        )


def choose_weight_decay(
    regression: LogisticRegression,
    features: Tensor,
    labels: Tensor,
    *,
    candidates: Sequence[float] = (),
) -> LinearClassifier:
    """The classifier that has most of the validation images right; of equals the one with the lower loss.

    Without candidates, CLIP's search (arXiv:2103.00020, A.3): seven strengths over the whole of
    `WEIGHT_DECAYS`, then ever smaller steps around the best one.

    Args:
        regression: on the training images.
        features: (V, D) of the validation images.
        labels: (V,) int64.
        candidates: strengths to choose from.
    """
    grid = tuple(sorted(candidates)) or WEIGHT_DECAYS
    fitted: dict[int, tuple[tuple[float, float], LinearClassifier]] = {}

    def best_of(places: Sequence[int]) -> int:
        # From strong to weak, each from its neighbour: a minimum is near that of a similar strength.
        for place in sorted(set(places) - fitted.keys(), reverse=True):
            near = min(fitted, key=lambda other: abs(other - place), default=None)
            start = None if near is None else fitted[near][1]
            classifier = regression.fit(grid[place], start=start)
            fitted[place] = (_merit(classifier.logits(features), labels), classifier)
        return max(places, key=lambda place: fitted[place][0])

    if candidates:
        return fitted[best_of(range(len(grid)))][1]
    best, step = best_of(range(0, len(grid), _COARSE_STEP)), _COARSE_STEP // 2
    while step:
        best = best_of([place for place in (best - step, best, best + step) if 0 <= place < len(grid)])
        step //= 2
    return fitted[best][1]


def _merit(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    loss = F.cross_entropy(logits, labels.to(logits.device))
    return topk_accuracy(logits, labels), -float(loss)
