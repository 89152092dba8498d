"""What each way to compute a run's loss would cost, for `--loss.plan`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch
from rich.console import Console
from rich.table import Table

from clipkit import distributed
from clipkit.devices import autocast_of
from clipkit.exchange import ExchangeName
from clipkit.losses.kernels import ResolvedKernel, choose_kernel
from clipkit.losses.plan import LossCost, loss_cost

from .build import build_model
from .config import TrainConfig
from .objective import group_size_of

if TYPE_CHECKING:
    from clipkit.model import DualEncoder


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One way to compute the loss."""

    scope: str
    num_ranks: int
    kernel: ResolvedKernel
    exchange: ExchangeName
    cost: LossCost
    is_chosen: bool
    """Whether the run's settings lead here."""


def plan_loss(config: TrainConfig, device: torch.device) -> None:
    """Print the costs on rank 0.

    Raises:
        ValueError: the model cannot be built, or the device or the ranks do not allow the settings.
    """
    features = _features_of_one_pair(build_model(config).to(device), config)
    rows = plan_rows(config, features)
    if distributed.rank() == 0:
        Console().print(_table(config, features, rows))


def plan_rows(config: TrainConfig, features: torch.Tensor) -> list[PlanRow]:
    """Every combination of scope, kernel and exchange for a run.

    Args:
        config: the run.
        features: (any, D), as the model gives them: for their width, dtype and device.
    """
    num_rows, world_size = config.data.batch_size_per_rank, distributed.world_size()
    own_size = group_size_of(config.loss)
    chosen_kernel = choose_kernel(
        config.loss.kernel,
        features.device,
        features.dtype,
        num_rows=num_rows,
        num_columns=num_rows * own_size,
    )
    sizes = [size for size in range(world_size, 0, -1) if world_size % size == 0]
    kernels, exchanges = get_args(ResolvedKernel), get_args(ExchangeName)
    rows = []
    for size, kernel, exchange in itertools.product(sizes, kernels, exchanges):
        if size == 1 and exchange == "ring":
            continue  # nothing to exchange
        cost = loss_cost(
            config.loss.objective,
            kernel,
            exchange,
            num_rows=num_rows,
            num_ranks=size,
            embed_dim=features.shape[1],
            feature_bytes=features.element_size(),
        )
        rows.append(
            PlanRow(
                scope="world" if size == world_size else "local" if size == 1 else "group",
                num_ranks=size,
                kernel=kernel,
                exchange=exchange,
                cost=cost,
                is_chosen=(size, kernel) == (own_size, chosen_kernel)
                and (size == 1 or exchange == config.loss.exchange),
            )
        )
    return rows


def _features_of_one_pair(model: DualEncoder, config: TrainConfig) -> torch.Tensor:
    """(1, D), in the dtype that training will give them."""
    image = torch.zeros(1, 3, *model.image_size, dtype=torch.uint8)
    device = next(model.parameters()).device
    with torch.no_grad(), autocast_of(config.precision, device):
        features = model.eval()(image.to(device), model.tokenizer([""]).to(device))
    image_features: torch.Tensor = features["image_features"]
    return image_features


def _table(config: TrainConfig, features: torch.Tensor, rows: list[PlanRow]) -> Table:
    dtype = str(features.dtype).removeprefix("torch.")
    table = Table(
        title=f"{config.loss.objective} loss of {config.data.batch_size_per_rank:,} pairs on each of "
        f"{distributed.world_size()} rank(s), {features.shape[1]} wide in {dtype}",
        caption="MiB and TFLOP per rank and step, beyond the towers; → is what these settings take",
    )
    table.add_column("")
    for name in ("scope", "kernel", "exchange"):
        table.add_column(name)
    for name in ("negatives", "memory", "received", "TFLOP"):
        table.add_column(name, justify="right")
    for row in rows:
        cost = row.cost
        table.add_row(
            "→" if row.is_chosen else "",
            f"{row.num_ranks} ranks" if row.scope == "group" else row.scope,
            row.kernel,
            row.exchange if row.num_ranks > 1 else "-",
            f"{cost.num_negatives:,}",
            f"{cost.memory_bytes / 2**20:,.1f}",
            f"{cost.received_bytes / 2**20:,.1f}",
            f"{cost.flops / 1e12:.3g}",
        )
    return table
