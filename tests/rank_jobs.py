"""Functions that tests run on several ranks."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from clipkit import distributed, gradcache
from clipkit.gradcache import Features
from clipkit.losses import Pairs, clip_loss, siglip_loss

NUM_PAIRS = 16


def _softmax(features: Features, **settings: Any) -> Tensor:
    return clip_loss(
        features["image_features"], features["text_features"], features["logit_scale"], **settings
    )


def _sigmoid(features: Features, **settings: Any) -> Tensor:
    scalars = features["logit_scale"], features["logit_bias"]
    return siglip_loss(features["image_features"], features["text_features"], *scalars, **settings)


def _with_positives(features: Features) -> Tensor:
    """Neighbours are positives of each other."""
    keys = torch.arange(features["image_features"].shape[0]) // 2 + 100 * distributed.rank()
    return _softmax(features, pairs=Pairs(positive_keys=keys), label_smoothing=0.1, kernel="tiled")


LOSSES: dict[str, Callable[[Features], Tensor]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "softmax, tiled": partial(_softmax, kernel="tiled"),
    "sigmoid, tiled": partial(_sigmoid, kernel="tiled"),
    "softmax, triton, ring": partial(_softmax, kernel="triton", exchange="ring"),
    "sigmoid, triton, ring": partial(_sigmoid, kernel="triton", exchange="ring"),
    "several positives": _with_positives,
}


class TwoTowers(nn.Module):
    """Two small towers with dropout, a logit scale and a bias."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Dropout(dropout), nn.Linear(10, 5))
        self.text = nn.Sequential(nn.Linear(7, 10), nn.Tanh(), nn.Dropout(dropout), nn.Linear(10, 5))
        self.logit_scale = nn.Parameter(torch.tensor(1.0))
        self.logit_bias = nn.Parameter(torch.tensor(-2.0))

    def encode_image(self, image: Tensor) -> Tensor:
        return F.normalize(self.image(image), dim=-1)

    def encode_text(self, text: Tensor) -> Tensor:
        return F.normalize(self.text(text), dim=-1)

    def forward(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        return {
            "image_features": self.encode_image(image),
            "text_features": self.encode_text(text),
            "logit_scale": self.logit_scale.exp(),
            "logit_bias": self.logit_bias,
        }


def pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(NUM_PAIRS, 6, generator=generator), torch.randn(NUM_PAIRS, 7, generator=generator)


def gradients(objective: str, num_chunks: int) -> tuple[float, dict[str, Tensor]]:
    """Loss and data-parallel mean gradients of the pairs spread over the ranks."""
    model = TwoTowers()
    model.logit_bias.requires_grad_(objective.startswith("sigmoid"))
    forward: Callable[..., dict[str, Tensor]] = model
    arguments: dict[str, Callable[[], AbstractContextManager[Any]]] = {}
    if distributed.is_distributed():
        wrapped = nn.parallel.DistributedDataParallel(model)
        forward, arguments = wrapped, {"no_sync": wrapped.no_sync}
    own = slice_of_rank()
    image, text = (part[own].chunk(num_chunks) for part in pairs())
    loss, _ = gradcache.backward(
        lambda chunk: forward(*chunk), list(zip(image, text, strict=True)), LOSSES[objective], **arguments
    )
    mean = float(distributed.all_reduce_mean(loss))
    return mean, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def cached_gradients_with_dropout(
    name: str, num_chunks: int, kind: Literal["ddp", "fsdp"]
) -> dict[str, Tensor]:
    """Data-parallel mean gradients by micro-batches, with other dropout masks on every rank."""
    from clipkit.training.parallel import parallelize

    model = TwoTowers(dropout=0.5)
    model.logit_bias.requires_grad_(name.startswith("sigmoid"))
    parallel = parallelize(model, kind, torch.device("cpu"))
    own = slice_of_rank()
    chunks = list(zip(*(part[own].chunk(num_chunks) for part in pairs()), strict=True))
    torch.manual_seed(100 + distributed.rank())
    gradcache.backward(lambda chunk: parallel.forward(*chunk), chunks, LOSSES[name], no_sync=parallel.no_sync)
    parallel.sync_replicated()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {
        name: (grad.full_tensor() if isinstance(grad, DTensor) else grad).clone()
        for name, grad in gradients.items()
    }


def slice_of_rank() -> slice:
    per_rank = NUM_PAIRS // distributed.world_size()
    return slice(distributed.rank() * per_rank, (distributed.rank() + 1) * per_rank)


def gathered_rows() -> Tensor:
    """Unequal numbers of rows: rank r has r of them, all equal to r."""
    rank = distributed.rank()
    return distributed.all_gather_rows(torch.full((rank, 2), float(rank)))


def without_local_world_size() -> int:
    """As under a launcher other than torchrun."""
    del os.environ["LOCAL_WORLD_SIZE"]
    return distributed.ranks_per_node()


def command(arguments: list[str]) -> int:
    """Run `clipkit` as this rank."""
    from clipkit.cli import main

    return main(arguments)


def command_with_output(arguments: list[str]) -> tuple[int, str]:
    """Run `clipkit` as this rank; its status and what it wrote to stdout."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = command(arguments)
    return status, output.getvalue()


def command_with_errors(arguments: list[str]) -> tuple[int, str]:
    """Run `clipkit` as this rank; its status and what it wrote to stderr."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        status = command(arguments)
    return status, error.getvalue()


def evaluation(captioned: str, labelled: str, parallel: Literal["ddp", "fsdp"]) -> dict[str, float]:
    """Metrics of an untrained model on both kinds of evaluation sets."""
    from clipkit.training.build import build_model, build_trainer
    from clipkit.training.config import DataConfig, EvalConfig, ModelConfig, TrainConfig
    from clipkit.training.evaluate import evaluate, open_evaluations

    config = TrainConfig(
        output=Path("unused"),
        model=ModelConfig(name="test-vit"),
        data=DataConfig(sources={"unused": "unused"}, num_workers=0),
        eval=EvalConfig(retrieval={"val": captioned}, zero_shot={"tiles4": labelled}, batch_size=7),
        steps=1,
        parallel=parallel,
    )
    torch.manual_seed(0)
    trainer = build_trainer(config, build_model(config), torch.device("cpu"), num_steps=1)
    return evaluate(trainer, open_evaluations(config))
