"""The learning rate by epoch: a constant warm-up, then a cosine that is counted from the warm-up's end."""

from __future__ import annotations

import math

WARM_UP_RATE = 1e-5
"""The rate of the warm-up epochs in CoOp and its kin."""


def learning_rate(epoch: int, num_epochs: int, lr: float, *, warmup_epochs: int) -> float:
    """The rate during an epoch.

    As Dassl counts with `WARMUP_RECOUNT`: the cosine begins at `lr` in the first epoch after the warm-up, and
    would reach 0 `num_epochs` later, so the last epochs are above 0.

    Args:
        epoch: counted from 0.
        num_epochs: of the whole training.
        lr: the highest rate.
        warmup_epochs: at `WARM_UP_RATE`.
    """
    if epoch < warmup_epochs:
        return WARM_UP_RATE
    return 0.5 * lr * (1 + math.cos(math.pi * (epoch - warmup_epochs) / num_epochs))
