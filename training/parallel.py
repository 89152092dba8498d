"""Wrapping a model for the ranks of a job."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from clipkit import distributed

_DDP_ARGUMENTS = inspect.signature(DistributedDataParallel).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _DDP_ARGUMENTS else "broadcast_buffers"
"""What torch calls the argument; it warns of the older name where it knows the newer."""


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """A model made ready for its ranks."""

    forward: Callable[..., dict[str, torch.Tensor]]
    """Call this in training instead of the model."""
    no_sync: Callable[[], AbstractContextManager[Any]]
    """Context without gradient synchronisation."""
    replicated: list[nn.Parameter]
    """Parameters whose gradients the wrapper leaves to `sync_replicated`."""
    buffers: list[torch.Tensor]
    """Running statistics, which every rank computes from its own part of the batch."""

    def sync_replicated(self) -> None:
        """Average over ranks the gradients that the wrapper does not."""
        for parameter in self.replicated:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad, op=dist.ReduceOp.SUM)
                parameter.grad /= distributed.world_size()

    def sync_buffers(self) -> None:
        """Give every rank the running statistics of rank 0, so that all evaluate and save one model."""
        for buffer in self.buffers:
            dist.broadcast(buffer, src=0)


def parallelize(model: nn.Module, kind: Literal["ddp", "fsdp"], device: torch.device) -> Parallel:
    """Replicate (DDP) or shard (FSDP2) a model on `device` over the world; a world of one needs neither."""
    if not distributed.is_distributed():
        return Parallel(forward=model, no_sync=nullcontext, replicated=[], buffers=[])
    if kind == "fsdp":
        return _shard(model)
    device_ids = [device.index] if device.type == "cuda" else None
    buffers: dict[str, Any] = {_SYNC_BUFFERS: False}
    wrapped = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True, **buffers)
    return Parallel(forward=wrapped, no_sync=wrapped.no_sync, replicated=[], buffers=_statistics(model))


def _statistics(model: nn.Module) -> list[torch.Tensor]:
    """Buffers that are saved, which is what tells running statistics from masks and constants."""
    saved = model.state_dict(keep_vars=True)
    return [buffer for name, buffer in model.named_buffers() if name in saved]


def _shard(model: nn.Module) -> Parallel:
    """FSDP2 over blocks and the rest; scalars cannot be sharded and stay replicated."""
    scalars = [parameter for parameter in model.parameters() if parameter.ndim == 0]
    # Innermost first, as fully_shard wants it.
    for stack in reversed([module for module in model.modules() if isinstance(module, nn.ModuleList)]):
        for block in stack:
            if any(True for _ in block.parameters()):
                fully_shard(block)
    fully_shard(model, ignored_params=set(scalars))
    for method in ("encode_image", "encode_text"):
        register_fsdp_forward_method(model, method)

    @contextmanager
    def no_sync() -> Iterator[None]:
        assert isinstance(model, FSDPModule)
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    replicated = [scalar for scalar in scalars if scalar.requires_grad]
    return Parallel(forward=model, no_sync=no_sync, replicated=replicated, buffers=_statistics(model))


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Whole weights on every rank, so that ranks may run different numbers of forward passes."""
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.reshard()
            module.set_reshard_after_forward(module is not shards[0], recurse=False)
