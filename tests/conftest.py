from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rank_pool import RankPool

# Before anything imports triton, here or in a rank: its kernels run on the CPU, also where there is a GPU.
os.environ["TRITON_INTERPRET"] = "1"
# A console keeps the size that is set when it is made, and is made once; tests of help set a width.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Before anything imports torch: beside other workers, one thread each is the fastest. Processes that
    # tests start inherit it; those that go on with work of this one bit for bit must have as many.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs so, and the commands that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and the processes they start, leave nothing in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def ranks(private_cache: None) -> Iterator[RankPool]:
    from rank_pool import RankPool  # imports torch

    pool = RankPool()
    yield pool
    pool.close()
