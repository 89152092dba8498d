"""Processes that stay up for the whole test session and run functions as the ranks of a gloo job.

Starting a rank costs an import of torch, so the four are started once and form a new process group for
every call.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from torch.distributed import TCPStore

SECONDS_TO_ANSWER = 300


def _serve(connection: Connection, port: int) -> None:
    import torch
    import torch.distributed as dist

    # It takes the group that there is when it is imported for the default of its functions.
    import torch.distributed.nn

    torch.set_num_threads(1)
    warnings.simplefilter("error")
    # Kernels of 1 x 1 have strides that mean nothing, and come in two kinds.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    store = dist.TCPStore("127.0.0.1", port)
    while True:
        message = connection.recv()
        if message is None:
            return
        function, arguments, rank, world_size, run = message
        sizes = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), **sizes)
        faulthandler.dump_traceback_later(SECONDS_TO_ANSWER - 5)
        try:
            if world_size > 1:
                own_store = dist.PrefixStore(f"run {run}", store)
                dist.init_process_group("gloo", store=own_store, rank=rank, world_size=world_size)
                # A rank that is done at once must not leave while another still connects to it.
                dist.barrier()
            answer = (True, function(*arguments))
        except BaseException:
            answer = (False, traceback.format_exc())
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            faulthandler.cancel_dump_traceback_later()
        # Last, so that the next run meets no rank that still closes the group of this one.
        connection.send(answer)


class RankPool:
    """Up to four ranks on this machine."""

    def __init__(self, size: int = 4) -> None:
        self._size = size
        self._num_runs = 0
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for _ in range(self._size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self._store.port))
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def _stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._connections.clear()
        self._processes.clear()

    def run(self, world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Results of `function(*arguments)` on each rank of a fresh group of `world_size`."""
        self._num_runs += 1
        connections = self._connections[:world_size]
        for rank, connection in enumerate(connections):
            connection.send((function, arguments, rank, world_size, self._num_runs))
        answers = []
        try:
            for rank, connection in enumerate(connections):
                assert connection.poll(SECONDS_TO_ANSWER), f"rank {rank} of {world_size} did not answer"
                answers.append(connection.recv())
        except BaseException:
            # One lost rank fails its own test; the tests after it get new ones.
            self._stop()
            self._start()
            raise
        failures = [text for is_well, text in answers if not is_well]
        assert not failures, "\n".join(failures)
        return [value for _, value in answers]

    def close(self) -> None:
        """End the processes."""
        for connection in self._connections:
            connection.send(None)
        for process in self._processes:
            process.join(timeout=10)
        self._stop()
