"""What `conftest.py` sets before the tests are collected has an effect."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process alone takes all cores")
def test_a_worker_has_the_threads_that_its_environment_says() -> None:
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
