"""How every rank gets to see the rows of its whole group, and how gradients of those rows get home.

An exchange shows a function `visit` all rows of the group, in blocks. In return for a block, `visit` may give
a gradient of it; the gradients that all ranks give for a row are added up at the rank that owns the row.
`gather` shows everything at once; `ring` passes one rank's rows at a time from neighbour to neighbour, the
next block under way while this one is visited, so that no rank ever holds the rows of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from clipkit.distributed import Group, gather_rows, pad_rows, rank, sum_to_owners, world_size

ExchangeName = Literal["gather", "ring"]

Visit = Callable[[Tensor, slice], Tensor | None]
"""(block of rows, their place among the rows of the group) -> gradient of the block, or None."""


@dataclass(frozen=True)
class RowLayout:
    """Which rows of a group's batch lie on which of its ranks, in rank order."""

    counts: tuple[int, ...]
    """Number of rows of every rank."""
    group: Group

    @classmethod
    def of(cls, rows: Tensor, group: Group, counts: Sequence[int] | None = None) -> RowLayout:
        """The layout of a batch of which this rank has `rows`.

        Args:
            rows: (N, ...).
            group: the ranks; None is the world.
            counts: number of rows of every rank; None means as many as here on each.

        Raises:
            ValueError: `counts` does not fit the group or `rows`.
        """
        size = world_size(group)
        if counts is None:
            return cls((rows.shape[0],) * size, group)
        if len(counts) != size or counts[rank(group)] != rows.shape[0]:
            raise ValueError(
                f"row_counts must have one entry for each of the {size} rank(s) and {rows.shape[0]} for rank "
                f"{rank(group)}, got {tuple(counts)}"
            )
        return cls(tuple(counts), group)

    @property
    def num_ranks(self) -> int:
        """Ranks of the group."""
        return len(self.counts)

    @property
    def rank(self) -> int:
        """This process's rank in the group."""
        return rank(self.group)

    @property
    def num_rows(self) -> int:
        """Rows of all ranks together."""
        return sum(self.counts)

    @property
    def own(self) -> slice:
        """Where this rank's rows are among all."""
        return self.place(self.rank)

    def place(self, of_rank: int) -> slice:
        """Where the rows of a rank are among all."""
        ends = list(accumulate(self.counts))
        return slice(ends[of_rank] - self.counts[of_rank], ends[of_rank])

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all ranks, without gradient: (N, ...) -> (sum of counts, ...)."""
        return gather_rows(rows, self.counts, self.group)


def exchange_by_gathering(rows: Tensor, layout: RowLayout, visit: Visit) -> Tensor | None:
    """Visit the rows of all ranks as one block: an all-gather, and a reduce-scatter for gradients.

    Args:
        rows: (N, ...), this rank's.
        layout: the counts of all ranks.
        visit: called once.

    Returns:
        The sum over ranks of the gradients given for this rank's rows, if `visit` gives any.
    """
    gradient = visit(layout.gather(rows), slice(0, layout.num_rows))
    return None if gradient is None else sum_to_owners(gradient, layout.counts, layout.group)


def exchange_by_ring(rows: Tensor, layout: RowLayout, visit: Visit) -> Tensor | None:
    """Visit the rows of one rank after the other, beginning with our own; every block travels once round.

    The gradient of a block follows it one step behind and grows on the way, so the step after the last brings
    it home.

    Args:
        rows: (N, ...), this rank's.
        layout: the counts of all ranks.
        visit: called once for every rank's rows.

    Returns:
        The sum over ranks of the gradients given for this rank's rows, if `visit` gives any.
    """
    size, me = layout.num_ranks, layout.rank
    if size == 1:
        return visit(rows, slice(0, layout.num_rows))
    longest = max(layout.counts)
    block = pad_rows(rows, longest)
    gradients: _Transfer | None = None
    for step in range(size):
        owner = (me - step) % size
        is_last = step == size - 1
        blocks = None if is_last else _Transfer.start(block, layout.group, tag=0)
        part = visit(block[: layout.counts[owner]], layout.place(owner))
        if part is not None:
            part = pad_rows(part, longest)
            if gradients is not None:
                part = gradients.finish().add_(part)
            gradients = _Transfer.start(part, layout.group, tag=1)
        if blocks is not None:
            block = blocks.finish()
    return None if gradients is None else gradients.finish()[: layout.counts[me]]


class _Transfer:
    """A tensor on its way to the next rank, and one of the same shape coming from the one before."""

    def __init__(self, sent: Tensor, received: Tensor, works: list[dist.Work]) -> None:
        # The sent tensor must stay alive until it is away.
        self._sent: Tensor | None = sent
        self._received, self._works = received, works

    @classmethod
    def start(cls, tensor: Tensor, group: Group, tag: int) -> _Transfer:
        received = torch.empty_like(tensor)
        if not tensor.numel():
            return cls(tensor, received, [])
        assert not isinstance(group, str)
        size, me = world_size(group), rank(group)
        after, before = (
            peer if group is None else dist.get_global_rank(group, peer)
            for peer in ((me + 1) % size, (me - 1) % size)
        )
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, tensor, after, group, tag),
                dist.P2POp(dist.irecv, received, before, group, tag),
            ]
        )
        return cls(tensor, received, works)

    def finish(self) -> Tensor:
        for work in self._works:
            work.wait()
        self._sent = None
        return self._received


EXCHANGES: dict[ExchangeName, Callable[[Tensor, RowLayout, Visit], Tensor | None]] = {
    "gather": exchange_by_gathering,
    "ring": exchange_by_ring,
}


class _AllRows(torch.autograd.Function):
    """Concatenate every rank's rows; backward sums the gradients that all ranks have for our rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, layout: RowLayout, exchange: ExchangeName) -> Tensor:
        ctx.layout, ctx.exchange, ctx.dtype = layout, exchange, rows.dtype
        at_least_fp32 = torch.promote_types(rows.dtype, torch.float32)
        if exchange == "gather":
            return layout.gather(rows).to(at_least_fp32)
        gathered = rows.new_empty(layout.num_rows, *rows.shape[1:], dtype=at_least_fp32)
        EXCHANGES[exchange](rows, layout, lambda block, place: _copy(block, gathered[place]))
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        layout: RowLayout = ctx.layout
        if ctx.exchange == "gather":
            own: Tensor | None = sum_to_owners(grad, layout.counts, layout.group)
        else:
            nothing = grad.new_empty(layout.counts[layout.rank], 0)
            own = exchange_by_ring(nothing, layout, lambda _, place: grad[place])
        return None if own is None else own.to(ctx.dtype), None, None


def _copy(source: Tensor, target: Tensor) -> None:
    target.copy_(source)


class _SumToOwners(torch.autograd.Function):
    """Sum over ranks, own rows kept; backward gives every rank the gradients of all rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, layout: RowLayout) -> Tensor:
        ctx.layout = layout
        return sum_to_owners(rows, layout.counts, layout.group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.layout.gather(grad), None


def all_rows_with_grad(rows: Tensor, layout: RowLayout, exchange: ExchangeName = "gather") -> Tensor:
    """Rows of all ranks in rank order, differentiable.

    The backward is a *sum* over ranks. With a loss that is the mean over local rows, the mean of the
    parameter gradients over ranks (what DistributedDataParallel and FSDP take) is then exactly the gradient
    of the mean over all rows.

    Args:
        rows: (N, ...).
        layout: the counts of all ranks.
        exchange: by which way they travel.

    Returns:
        (sum of counts, ...), in at least fp32, in which gradients are summed, too.
    """
    if layout.num_ranks == 1:
        return rows.to(torch.promote_types(rows.dtype, torch.float32))
    gathered: Tensor = _AllRows.apply(rows, layout, exchange)
    return gathered


def sum_to_owners_with_grad(rows: Tensor, layout: RowLayout) -> Tensor:
    """Sum over ranks of what each has for every row, of which this rank keeps its own; differentiable.

    Args:
        rows: (sum of counts, ...).
        layout: the counts of all ranks.

    Returns:
        (N, ...); `rows` itself in a group of one.
    """
    if layout.num_ranks == 1:
        return rows
    own: Tensor = _SumToOwners.apply(rows, layout)
    return own
