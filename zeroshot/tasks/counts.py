"""What is left out of an evaluation for want of images, and accuracies as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from clipkit.paired_metrics import accuracy_interval

from .base import Table

Item = TypeVar("Item")


def usable_items(
    items: Sequence[Item], keys_of: Callable[[Item], Iterable[str]], rows: Mapping[str, int]
) -> tuple[list[Item], tuple[str, ...]]:
    """The items all of whose images are there, and a note on the others, if any.

    Args:
        items: at least one.
        keys_of: the keys of an item's images.
        rows: by the key of every usable image.

    Raises:
        ValueError: no item is left.
    """
    kept = [item for item in items if all(key in rows for key in keys_of(item))]
    if not kept:
        raise ValueError(f"none of the {len(items):,} items has images that can be read; check the folder")
    num_lost = len(items) - len(kept)
    note = f"{num_lost:,} of {len(items):,} items are left out: an image of theirs cannot be read."
    return kept, (note,) if num_lost else ()


def rows_by_group(groups: Sequence[str]) -> dict[str, Tensor]:
    """Items of each group, (n_g,) int64 rising, groups in the order of their names."""
    members: dict[str, list[int]] = {group: [] for group in sorted(set(groups))}
    for row, group in enumerate(groups):
        members[group].append(row)
    return {group: torch.tensor(rows) for group, rows in members.items()}


def percent(share: float) -> str:
    """`62.5 %`."""
    return f"{100 * share:.1f} %"


def interval_of(outcomes: Tensor) -> str:
    """`57.1 to 67.6 %`, the 95 % interval of the mean of (N,) outcomes of 0 and 1."""
    low, high = accuracy_interval(int(outcomes.sum()), outcomes.numel())
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def accuracy_table(title: str, name: str, outcomes: Tensor, members: Mapping[str, Tensor]) -> Table:
    """A row for each group of items: how many, their accuracy and its interval.

    Args:
        title: of the table.
        name: what a group is, the head of the first column.
        outcomes: (N,) of 0 and 1.
        members: (n_g,) int64 by the name of the group, from `rows_by_group`.
    """
    rows = [
        (group, f"{len(own):,}", percent(float(outcomes[own].mean())), interval_of(outcomes[own]))
        for group, own in members.items()
    ]
    return Table(title=title, header=(name, "items", "accuracy", "95 % interval"), rows=tuple(rows))
