"""Ranks and the two collectives that the losses need, with the gradients that data parallelism expects.

Without an initialised process group everything here is the identity of a world of one, so that a loss
reads the same on a laptop and on a cluster.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | None


def is_distributed() -> bool:
    """Whether a process group of more than one rank is in use."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank(group: Group = None) -> int:
    """This process's rank in `group` (default: the world)."""
    return dist.get_rank(group) if is_distributed() else 0


def world_size(group: Group = None) -> int:
    """Number of ranks in `group` (default: the world)."""
    return dist.get_world_size(group) if is_distributed() else 1


def local_rank() -> int:
    """This process's rank on its machine, as torchrun sets it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


class _AllGather(torch.autograd.Function):
    """Concatenate every rank's rows; backward sums the gradients that all ranks have for our rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Group) -> Tensor:
        ctx.group = group
        gathered = rows.new_empty(world_size(group) * rows.shape[0], *rows.shape[1:])
        dist.all_gather(list(gathered.chunk(world_size(group))), rows.contiguous(), group=group)
        return gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        blocks = list(grad.contiguous().chunk(world_size(ctx.group)))
        own = torch.empty_like(blocks[0])
        dist.reduce_scatter(own, blocks, op=dist.ReduceOp.SUM, group=ctx.group)
        return own, None


def all_gather_with_grad(rows: Tensor, group: Group = None) -> Tensor:
    """Rows of all ranks in rank order, differentiable.

    The backward is a reduce-scatter *sum*. With a loss that is the mean over local rows, the mean of the
    parameter gradients over ranks (what DistributedDataParallel and FSDP take) is then exactly the gradient
    of the mean over all rows.

    Args:
        rows: (N, ...), the same shape on every rank.
        group: ranks to gather over; None is the world.

    Returns:
        (W * N, ...); `rows` itself in a world of one.
    """
    if world_size(group) == 1:
        return rows
    gathered: Tensor = _AllGather.apply(rows, group)
    return gathered


def all_reduce_mean(value: Tensor, group: Group = None) -> Tensor:
    """Mean of a detached tensor over ranks; used for reporting, never for gradients."""
    value = value.detach().clone()
    if world_size(group) > 1:
        dist.all_reduce(value, op=dist.ReduceOp.SUM, group=group)
        value /= world_size(group)
    return value


def all_gather_rows(rows: Tensor) -> Tensor:
    """Concatenate row tensors of unequal length over the world, in rank order, without gradient.

    Args:
        rows: (N_rank, ...); the trailing shape and the dtype are the same on every rank.

    Returns:
        (sum of N_rank, ...) on every rank.
    """
    if not is_distributed():
        return rows
    sizes = [torch.zeros((), dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor(rows.shape[0], device=rows.device))
    longest = int(max(sizes))
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    blocks = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(blocks, padded)
    return torch.cat([block[: int(size)] for block, size in zip(blocks, sizes, strict=True)])


def barrier() -> None:
    """Wait for every rank; nothing to wait for in a world of one."""
    if is_distributed():
        dist.barrier()
