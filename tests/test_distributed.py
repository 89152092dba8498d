from __future__ import annotations

import pytest
import rank_jobs
import torch
from rank_pool import RankPool

from clipkit import distributed


def test_a_world_of_one_is_the_identity() -> None:
    rows = torch.arange(6.0).reshape(3, 2).requires_grad_()
    assert distributed.rank() == 0
    assert distributed.world_size() == 1
    assert distributed.all_gather_rows(rows) is rows
    assert float(distributed.all_reduce_mean(torch.tensor(3.0))) == 3.0


def test_rows_of_unequal_number_come_in_rank_order(ranks: RankPool) -> None:
    expected = [[1.0, 1.0], [2.0, 2.0], [2.0, 2.0], [3.0, 3.0], [3.0, 3.0], [3.0, 3.0]]
    for gathered in ranks.run(4, rank_jobs.gathered_rows):
        assert gathered.tolist() == expected


def test_machines_are_those_of_torchrun(ranks: RankPool) -> None:
    assert distributed.ranks_per_node() == 1
    assert ranks.run(4, distributed.ranks_per_node) == [4] * 4
    with pytest.raises(AssertionError, match="launch with torchrun, or set LOCAL_WORLD_SIZE"):
        ranks.run(2, rank_jobs.without_local_world_size)
