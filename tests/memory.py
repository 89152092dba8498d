"""Exact accounts of the CPU memory that PyTorch allocates, and of the bytes that ranks send each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], Any]) -> int:
    """The largest sum of allocations that are alive at one time while `function` runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        function()
    assert recorded.profiler is not None
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = largest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        largest = max(largest, alive)
    return largest


@contextmanager
def received_bytes() -> Iterator[list[int]]:
    """Bytes that reach this rank through each collective and message; an all-reduce counts as on a ring."""
    received: list[int] = []

    def size(tensor: Any, group: Any, factor: Callable[[int], float]) -> int:
        return round(tensor.numel() * tensor.element_size() * factor(dist.get_world_size(group)))

    newest = {
        older: getattr(dist, name, None) or getattr(dist, older)
        for older, name in (
            ("all_gather_into_tensor", "all_gather_single"),
            ("reduce_scatter_tensor", "reduce_scatter_single"),
        )
    }
    real = {name: getattr(dist, name) for name in ("all_reduce", "batch_isend_irecv")}

    def all_gather(output, tensor, group=None):  # type: ignore[no-untyped-def]
        received.append(size(tensor, group, lambda n: n - 1))
        return newest["all_gather_into_tensor"](output, tensor, group=group)

    def all_reduce(tensor, op=dist.ReduceOp.SUM, group=None):  # type: ignore[no-untyped-def]
        received.append(size(tensor, group, lambda n: 2 * (n - 1) / n))
        return real["all_reduce"](tensor, op=op, group=group)

    def reduce_scatter(output, tensor, op=dist.ReduceOp.SUM, group=None):  # type: ignore[no-untyped-def]
        received.append(size(output, group, lambda n: n - 1))
        return newest["reduce_scatter_tensor"](output, tensor, op=op, group=group)

    def batch_isend_irecv(operations):  # type: ignore[no-untyped-def]
        received.extend(o.tensor.numel() * o.tensor.element_size() for o in operations if o.op is dist.irecv)
        return real["batch_isend_irecv"](operations)

    with pytest.MonkeyPatch.context() as patch:
        for names, replacement in (
            (("all_gather_single", "all_gather_into_tensor"), all_gather),
            (("reduce_scatter_single", "reduce_scatter_tensor"), reduce_scatter),
            (("all_reduce",), all_reduce),
            (("batch_isend_irecv",), batch_isend_irecv),
        ):
            patch.setattr(dist, next(name for name in names if hasattr(dist, name)), replacement)
        yield received
