"""Losses as they run on several ranks, for the tests."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import warnings
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import loss_oracle
import numpy as np
import pytest
import torch
from loss_oracle import Case
from memory import peak_bytes, received_bytes

from clipkit import distributed
from clipkit.losses import Pairs, clip_loss, kernels, siglip_loss
from clipkit.losses.kernels import TILE_SIZES

HAS_TRITON = importlib.util.find_spec("triton") is not None
KERNELS = ("dense", "tiled", "triton") if HAS_TRITON else ("dense", "tiled")
TILE_KERNELS = KERNELS[1:]
EXCHANGES = ("gather", "ring")
GROUP_SIZE = 2
MEASURED_TILE_SIZE = 64


def with_settings_restored(job: Callable[..., Any]) -> Callable[..., Any]:
    """A job that leaves the kernels as they were: the ranks stay up for other tests."""

    @functools.wraps(job)
    def restoring(*arguments: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "MAX_DENSE_LOGITS", kernels.MAX_DENSE_LOGITS)
            for name, size in kernels.TILE_SIZES.items():
                patch.setitem(kernels.TILE_SIZES, name, size)
            if HAS_TRITON:
                from clipkit.losses.kernels.triton_tiles import TritonTiles

                patch.setattr(TritonTiles, "block", TritonTiles.block)
            return job(*arguments)

    return restoring


def small_tiles() -> None:
    """Tiles that do not divide the batches of the tests, and blocks that do not divide the tiles."""
    TILE_SIZES.update(tiled=7, triton=18)
    if HAS_TRITON:
        from clipkit.losses.kernels.triton_tiles import TritonTiles

        TritonTiles.block = (16, 16, 16)


def groups_of(scope: str, world_size: int, counts: tuple[int, ...]) -> list[list[int]]:
    """The pairs of each group, by their place in the global batch."""
    size = {"world": world_size, "group": GROUP_SIZE, "local": 1}[scope]
    ends = [0, *accumulate(counts)]
    bounds = [(ends[first], ends[first + size]) for first in range(0, world_size, size)]
    return [list(range(*bound)) for bound in bounds if bound[0] < bound[1]]


@with_settings_restored
def all_gradients(objective: str, scope: str) -> dict[tuple[str, str, str], dict[str, Any]]:
    """By kernel, exchange and case: loss and gradients, averaged as data parallelism does."""
    small_tiles()
    group = distributed.make_group(scope, group_size=GROUP_SIZE if scope == "group" else None)
    return {
        (kernel, exchange, name): _gradients(objective, case, group, kernel, exchange)
        for (kernel, exchange), (name, case) in itertools.product(
            itertools.product(KERNELS, EXCHANGES), loss_oracle.cases().items()
        )
    }


def own_pairs(case: Case, group: distributed.Group) -> tuple[slice, Pairs]:
    """This rank's place in the global batch, and what it knows of its pairs."""
    me, world_size = distributed.rank(), distributed.world_size()
    counts = case.counts(world_size)
    ends = [0, *accumulate(counts)]
    own = slice(ends[me], ends[me + 1])
    size = distributed.world_size(group)
    first = me - distributed.rank(group)
    columns = slice(ends[first], ends[first + size])

    def part(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[own]

    return own, Pairs(
        positive_keys=part(case.positive_keys),
        ignored_keys=part(case.ignored_keys),
        ignored=None if case.ignored is None else case.ignored[own, columns],
        max_text_similarity=case.max_text_similarity,
        negative_text_features=part(case.negatives),
        weights=part(case.weights),
        row_counts=counts[first : first + size] if case.is_uneven else None,
    )


def _gradients(
    objective: str, case: Case, group: distributed.Group, kernel: str, exchange: str
) -> dict[str, Any]:
    own, pairs = own_pairs(case, group)
    image, text = (whole[own].clone().requires_grad_() for whole in (case.image, case.text))
    scale, bias = (torch.tensor(value, requires_grad=True) for value in (case.scale, case.bias))
    settings = {
        "pairs": pairs,
        "label_smoothing": case.label_smoothing,
        "group": group,
        "kernel": kernel,
        "exchange": exchange,
    }
    if objective == "softmax":
        loss = clip_loss(image, text, scale, **settings)
    else:
        loss = siglip_loss(image, text, scale, bias, **settings)
    loss.backward()
    rows = {"image": image.grad, "text": text.grad}
    scalars = {"loss": loss, "scale": scale.grad}
    if objective == "sigmoid":
        scalars["bias"] = bias.grad
    world_size = distributed.world_size()
    return {
        **{name: distributed.all_gather_rows(grad / world_size).numpy() for name, grad in rows.items()},
        **{name: distributed.all_reduce_mean(value).numpy() for name, value in scalars.items()},
    }


def against_open_clip(objective: str) -> list[list[np.ndarray]]:
    """Loss and gradients of the plain batch on this rank: open_clip's, then ours with dense logits."""
    from open_clip.loss import ClipLoss, SigLipLoss

    case = loss_oracle.cases()["plain"]
    own, _ = own_pairs(case, None)
    rank, world_size = distributed.rank(), distributed.world_size()
    theirs = {
        "softmax": ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size),
        "sigmoid": SigLipLoss(rank=rank, world_size=world_size),
    }[objective]
    ours = clip_loss if objective == "softmax" else siglip_loss
    results = []
    for loss in (theirs, lambda *inputs: ours(*inputs, kernel="dense")):
        inputs = [
            *(whole[own].double().requires_grad_() for whole in (case.image, case.text)),
            *(torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (case.scale, case.bias)),
        ]
        inputs = inputs[: 3 if objective == "softmax" else 4]
        with warnings.catch_warnings():
            # Of what open_clip calls in torch.
            warnings.filterwarnings("ignore", "torch.distributed.nn.functional", FutureWarning)
            value = loss(*inputs)
        value.backward()
        results.append([value.detach().numpy(), *(x.grad.numpy() for x in inputs)])
    return results


@with_settings_restored
def automatic_kernel(objective: str) -> float:
    """Loss of a rank whose own logits alone would ask for another kernel than those of the others."""
    kernels.MAX_DENSE_LOGITS = 100
    case = loss_oracle.cases()["uneven"]
    own, pairs = own_pairs(case, None)
    image, text = (whole[own].clone().requires_grad_() for whole in (case.image, case.text))
    scale, bias = (torch.tensor(value) for value in (case.scale, case.bias))
    if objective == "softmax":
        loss = clip_loss(image, text, scale, pairs=pairs)
    else:
        loss = siglip_loss(image, text, scale, bias, pairs=pairs)
    loss.backward()
    return float(distributed.all_reduce_mean(loss))


@with_settings_restored
def loss_times_rank(objective: str, kernel: str, exchange: str) -> list[np.ndarray]:
    """Gradients of a loss that counts once on rank 0, twice on rank 1 and so on."""
    small_tiles()
    case = loss_oracle.cases()["plain"]
    own, _ = own_pairs(case, None)
    image, text = (whole[own].double().requires_grad_() for whole in (case.image, case.text))
    scale, bias = (torch.tensor(v, dtype=torch.float64) for v in (case.scale, case.bias))
    if objective == "softmax":
        loss = clip_loss(image, text, scale, kernel=kernel, exchange=exchange)
    else:
        loss = siglip_loss(image, text, scale, bias, kernel=kernel, exchange=exchange)
    (loss * (1 + distributed.rank())).backward()
    return [distributed.all_gather_rows(x.grad).numpy() for x in (image, text)]


@with_settings_restored
def measured_cost(
    objective: str,
    kernel: str,
    exchange: str,
    num_rows: int,
    embed_dim: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[int, int]:
    """Peak bytes above the features, and received bytes, of forward and backward on this rank."""
    TILE_SIZES.update(tiled=MEASURED_TILE_SIZE)
    generator = torch.Generator().manual_seed(distributed.rank())
    whole = [torch.randn(num_rows, embed_dim, generator=generator) for _ in range(2)]
    image, text = (x.to(dtype).requires_grad_() for x in whole)
    scale, bias = (torch.tensor(v, requires_grad=True) for v in (0.1, -5.0))

    def run() -> None:
        settings = {"kernel": kernel, "exchange": exchange}
        if objective == "softmax":
            clip_loss(image, text, scale, **settings).backward()
        else:
            siglip_loss(image, text, scale, bias, **settings).backward()

    with received_bytes() as received:
        peak = peak_bytes(run)
    return peak, sum(received)


@with_settings_restored
def bytes_kept(objective: str, exchange: str, num_rows: int, embed_dim: int) -> int:
    """Bytes that the tiled loss keeps between forward and backward on this rank."""
    TILE_SIZES.update(tiled=MEASURED_TILE_SIZE)
    generator = torch.Generator().manual_seed(distributed.rank())
    image, text = (torch.randn(num_rows, embed_dim, generator=generator).requires_grad_() for _ in range(2))
    scale, bias = (torch.tensor(v, requires_grad=True) for v in (0.1, -5.0))
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if objective == "softmax":
            value = clip_loss(image, text, scale, kernel="tiled", exchange=exchange)
        else:
            value = siglip_loss(image, text, scale, bias, kernel="tiled", exchange=exchange)
    value.backward()
    return sum(kept)


def settings() -> tuple[dict[str, int], int]:
    """What the jobs above change and put back."""
    return dict(kernels.TILE_SIZES), kernels.MAX_DENSE_LOGITS
