from __future__ import annotations

import loss_jobs
import pytest
import torch
from rank_pool import RankPool

from clipkit.losses import kernels
from clipkit.losses.plan import loss_cost

NUM_ROWS, EMBED_DIM = 256, 192


@pytest.mark.parametrize("exchange", loss_jobs.EXCHANGES)
@pytest.mark.parametrize("kernel", ["dense", "tiled"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_costs_are_those_measured(
    ranks: RankPool,
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
    world_size: int,
    kernel: str,
    exchange: str,
) -> None:
    monkeypatch.setitem(kernels.TILE_SIZES, "tiled", loss_jobs.MEASURED_TILE_SIZE)
    measured = ranks.run(
        world_size, loss_jobs.measured_cost, objective, kernel, exchange, NUM_ROWS, EMBED_DIM
    )
    cost = loss_cost(
        objective, kernel, exchange, num_rows=NUM_ROWS, num_ranks=world_size, embed_dim=EMBED_DIM
    )
    for peak_bytes, received_bytes in measured:
        assert peak_bytes == pytest.approx(cost.memory_bytes, rel=0.25)
        assert received_bytes == pytest.approx(cost.received_bytes, rel=1e-3)


@pytest.mark.parametrize("kernel", ["dense", "tiled"])
@pytest.mark.parametrize("objective", ["softmax", "sigmoid"])
def test_costs_of_half_precision(
    ranks: RankPool, monkeypatch: pytest.MonkeyPatch, objective: str, kernel: str
) -> None:
    monkeypatch.setitem(kernels.TILE_SIZES, "tiled", loss_jobs.MEASURED_TILE_SIZE)
    job = loss_jobs.measured_cost, objective, kernel, "gather", NUM_ROWS, EMBED_DIM, torch.bfloat16
    cost = loss_cost(
        objective, kernel, "gather", num_rows=NUM_ROWS, num_ranks=2, embed_dim=EMBED_DIM, feature_bytes=2
    )
    for peak_bytes, received_bytes in ranks.run(2, *job):
        assert peak_bytes == pytest.approx(cost.memory_bytes, rel=0.25)
        assert received_bytes == pytest.approx(cost.received_bytes, rel=1e-3)


def test_a_ring_of_tiles_takes_the_same_memory_on_more_ranks(ranks: RankPool) -> None:
    two, three, four = (
        max(
            peak
            for peak, _ in ranks.run(
                size, loss_jobs.measured_cost, "softmax", "tiled", "ring", NUM_ROWS, EMBED_DIM
            )
        )
        for size in (2, 3, 4)
    )
    # Of two ranks, none has a block ahead while gradients of the last are under way.
    assert two < three < 1.25 * two
    assert four == pytest.approx(three, rel=0.02)


def test_the_plan_of_a_large_batch() -> None:
    at = {"num_rows": 4096, "num_ranks": 8, "embed_dim": 768}
    dense = loss_cost("softmax", "dense", "gather", **at)
    # open_clip keeps about 4 matrices for each direction of 4096 x 32,768 logits: 4.3 GB.
    assert 2.0e9 < dense.memory_bytes < 4.3e9
    assert loss_cost("softmax", "tiled", "ring", **at).memory_bytes < dense.memory_bytes / 20
    # Received features, by a half of what open_clip's gather of both towers receives in the forward pass.
    assert dense.received_bytes == pytest.approx(2 * 7 * 4096 * 768 * 4, rel=0.01)
    assert dense.num_negatives == 32_767
    grouped = loss_cost("softmax", "dense", "gather", num_rows=4096, num_ranks=2, embed_dim=768)
    assert grouped.received_bytes < dense.received_bytes / 2
