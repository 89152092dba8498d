"""Ranks, groups of ranks, and the collectives that do not carry gradients.

Without an initialised process group everything here is the identity of a world of one, so that a loss
reads the same on a laptop and on a cluster.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import torch
import torch.distributed as dist
from torch import Tensor

LOCAL: Final = "local"
"""The group of this rank alone."""

Group = dist.ProcessGroup | Literal["local"] | None
"""Ranks that work together: a process group, `LOCAL`, or None for the world."""

Scope = Literal["world", "group", "local"]


def is_distributed() -> bool:
    """Whether a process group of more than one rank is in use."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank(group: Group = None) -> int:
    """This process's rank in `group` (default: the world)."""
    return dist.get_rank(group) if is_distributed() and not isinstance(group, str) else 0


def world_size(group: Group = None) -> int:
    """Number of ranks in `group` (default: the world)."""
    return dist.get_world_size(group) if is_distributed() and not isinstance(group, str) else 1


def local_rank() -> int:
    """This process's rank on its machine, as torchrun sets it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def ranks_per_node() -> int:
    """Number of ranks on each machine, as torchrun sets it.

    Raises:
        ValueError: there are several ranks, and LOCAL_WORLD_SIZE is not set.
    """
    if not is_distributed():
        return 1
    if "LOCAL_WORLD_SIZE" not in os.environ:
        raise ValueError(
            "which ranks share a machine is not known: launch with torchrun, or set LOCAL_WORLD_SIZE to the "
            "number of ranks on each machine"
        )
    return int(os.environ["LOCAL_WORLD_SIZE"])


def make_group(scope: Scope, group_size: int | None = None) -> Group:
    """The ranks whose pairs are each other's negatives. Collective: all ranks call it together, once.

    Args:
        scope: `world`, `local`, or `group` for `group_size` consecutive ranks, which torchrun places on as
            few machines as possible.
        group_size: ranks of a group; only for `group`.

    Raises:
        ValueError: `group_size` is missing, or the ranks cannot be divided into such groups.
    """
    if scope == "world":
        return None
    if scope == "local":
        return LOCAL
    if group_size is None:
        raise ValueError("scope 'group' needs a group_size")
    check_group_size(group_size)
    if group_size == world_size():
        return None
    if group_size == 1:
        return LOCAL
    group, _ = dist.new_subgroups(group_size)
    assert isinstance(group, dist.ProcessGroup)
    return group


def check_group_size(group_size: int) -> None:
    """Refuse a size into which the ranks cannot be divided.

    Raises:
        ValueError: it does not divide the number of ranks.
    """
    if group_size < 1 or world_size() % group_size:
        raise ValueError(
            "a group must have a size that divides the number of ranks, got "
            f"{group_size} of {world_size()} ranks"
        )


def all_reduce_mean(value: Tensor, group: Group = None) -> Tensor:
    """Mean of a detached tensor over ranks; used for reporting, never for gradients."""
    return all_reduce_sum(value, group) / world_size(group)


def all_reduce_sum(value: Tensor, group: Group = None) -> Tensor:
    """Sum of a detached tensor over ranks, as a new tensor."""
    return _all_reduce(value, dist.ReduceOp.SUM, group)


def all_reduce_max(value: Tensor, group: Group = None) -> Tensor:
    """Largest of a detached tensor over ranks, element by element, as a new tensor."""
    return _all_reduce(value, dist.ReduceOp.MAX, group)


def _all_reduce(value: Tensor, op: dist.ReduceOp.RedOpType, group: Group) -> Tensor:
    value = value.detach().clone()
    if not isinstance(group, str) and world_size(group) > 1:
        dist.all_reduce(value, op=op, group=group)
    return value


def gather_counts(num_rows: int, device: torch.device, group: Group = None) -> tuple[int, ...]:
    """Number of rows of every rank, in rank order. Waits for the device."""
    if isinstance(group, str) or world_size(group) == 1:
        return (num_rows,)
    counts = [torch.zeros((), dtype=torch.int64, device=device) for _ in range(world_size(group))]
    dist.all_gather(counts, torch.tensor(num_rows, device=device), group=group)
    return tuple(int(count) for count in counts)


def gather_rows(rows: Tensor, counts: Sequence[int], group: Group = None) -> Tensor:
    """Concatenate the rows of all ranks in rank order, without gradient.

    Args:
        rows: (counts[rank], ...); the trailing shape and the dtype are the same on every rank.
        counts: number of rows of every rank.
        group: ranks to gather over; None is the world.

    Returns:
        (sum of counts, ...), the same on every rank.
    """
    if isinstance(group, str) or world_size(group) == 1:
        return rows
    longest = max(counts)
    gathered = rows.new_empty(len(counts) * longest, *rows.shape[1:])
    _newest("all_gather_single", "all_gather_into_tensor")(gathered, pad_rows(rows, longest), group=group)
    if min(counts) == longest:
        return gathered
    blocks = torch.split(gathered, longest)
    return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])


def sum_to_owners(rows: Tensor, counts: Sequence[int], group: Group = None) -> Tensor:
    """Add up what all ranks have for everyone's rows; each rank gets its own rows of the sum.

    Args:
        rows: (sum of counts, ...), in rank order.
        counts: number of rows of every rank.
        group: ranks to sum over; None is the world.

    Returns:
        (counts[rank], ...).
    """
    if isinstance(group, str) or world_size(group) == 1:
        return rows
    longest = max(counts)
    if min(counts) < longest:
        rows = torch.cat([pad_rows(block, longest) for block in torch.split(rows, list(counts))])
    own = rows.new_empty(longest, *rows.shape[1:])
    sum_and_scatter = _newest("reduce_scatter_single", "reduce_scatter_tensor")
    sum_and_scatter(own, rows.contiguous(), op=dist.ReduceOp.SUM, group=group)
    return own[: counts[rank(group)]]


def _newest(name: str, older_name: str) -> Callable[..., Any]:
    """A collective by the name that this version of torch does not warn of."""
    function: Callable[..., Any] = getattr(dist, name, None) or getattr(dist, older_name)
    return function


def pad_rows(rows: Tensor, num_rows: int) -> Tensor:
    """Contiguous rows, with zero rows appended up to `num_rows`."""
    if rows.shape[0] == num_rows:
        return rows.contiguous()
    padded = rows.new_zeros(num_rows, *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    return padded


def all_gather_rows(rows: Tensor) -> Tensor:
    """Concatenate row tensors of unequal length over the world, in rank order, without gradient.

    Args:
        rows: (N_rank, ...); the trailing shape and the dtype are the same on every rank.

    Returns:
        (sum of N_rank, ...) on every rank.
    """
    return gather_rows(rows, gather_counts(rows.shape[0], rows.device))


def all_gather_objects(value: Any) -> list[Any]:
    """What each rank gives, by rank; the values are pickled on their way."""
    if not is_distributed():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def barrier() -> None:
    """Wait for every rank; nothing to wait for in a world of one."""
    if is_distributed():
        dist.barrier()
