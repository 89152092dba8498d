"""Processes that stay up for the whole test session and run functions as the ranks of a gloo job.

Starting a rank costs an import of torch, so the four are started once and form a new process group for
every call.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def _serve(connection: Connection) -> None:
    import torch
    import torch.distributed as dist

    # It takes the group that there is when it is imported for the default of its functions.
    import torch.distributed.nn

    torch.set_num_threads(1)
    while True:
        message = connection.recv()
        if message is None:
            return
        function, arguments, rank, world_size, store = message
        sizes = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), **sizes)
        try:
            if world_size > 1:
                dist.init_process_group(
                    "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size
                )
            connection.send((True, function(*arguments)))
        except BaseException:
            connection.send((False, traceback.format_exc()))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


class RankPool:
    """Up to four ranks on this machine."""

    def __init__(self, size: int = 4) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections: list[Connection] = []
        self._processes = []
        for _ in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,))
            process.start()
            self._connections.append(ours)
            self._processes.append(process)

    def run(self, world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Results of `function(*arguments)` on each rank of a fresh group of `world_size`."""
        with tempfile.TemporaryDirectory() as directory:
            store = Path(directory) / "store"
            connections = self._connections[:world_size]
            for rank, connection in enumerate(connections):
                connection.send((function, arguments, rank, world_size, store))
            answers = []
            for rank, connection in enumerate(connections):
                assert connection.poll(180), f"rank {rank} of {world_size} did not answer"
                answers.append(connection.recv())
        failures = [text for is_well, text in answers if not is_well]
        assert not failures, "\n".join(failures)
        return [value for _, value in answers]

    def close(self) -> None:
        """End the processes."""
        for connection in self._connections:
            connection.send(None)
        for process in self._processes:
            process.join(timeout=10)
            process.kill()
