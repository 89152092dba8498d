"""Region heads and losses as they run on several ranks, for the tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit import distributed
from clipkit.losses.region import region_loss
from clipkit.regions.base import WITH_ALL_RANKS, Contrast, RegionBatch, RegionHead
from clipkit.regions.prompter import Prompter
from clipkit.regions.queries import QueryDecoder, QueryDecoderConfig
from clipkit.regions.roi import RoIAlign

GRID = (3, 4)
WIDTH, EMBED_DIM = 16, 8
NUM_IMAGES = 8
REGIONS_OF_IMAGES = (2, 0, 3, 1, 0, 0, 1, 4)
"""With 4 ranks of two images each, the third rank has none."""


@dataclass(frozen=True)
class Regions:
    """The global batch."""

    tokens: Tensor
    boxes: Tensor
    box_index: Tensor
    texts: Tensor

    def of_rank(self, rank: int, world_size: int) -> Regions:
        """The images of a rank, and their regions."""
        size = NUM_IMAGES // world_size
        images = slice(rank * size, (rank + 1) * size)
        own = (self.box_index >= images.start) & (self.box_index < images.stop)
        index = self.box_index[own] - images.start
        return Regions(self.tokens[images], self.boxes[own], index, self.texts[own])


def regions() -> Regions:
    generator = torch.Generator().manual_seed(4)
    count = sum(REGIONS_OF_IMAGES)
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values
    texts = F.normalize(torch.randn(count, EMBED_DIM, generator=generator) + 1, dim=-1)
    texts[5] = texts[1]  # two phrases alike
    return Regions(
        tokens=torch.randn(NUM_IMAGES, GRID[0] * GRID[1], WIDTH, generator=generator),
        boxes=corners.flatten(1),
        box_index=torch.arange(NUM_IMAGES).repeat_interleave(torch.tensor(REGIONS_OF_IMAGES)),
        texts=texts,
    )


def make_head(kind: str) -> RegionHead:
    torch.manual_seed(0)
    if kind == "prompter":
        return Prompter(WIDTH, EMBED_DIM)
    if kind == "roi-align":
        return RoIAlign(WIDTH, EMBED_DIM)
    config = QueryDecoderConfig(num_queries=4, num_layers=2, num_heads=2, mlp_width=16, dropout=0.0)
    return QueryDecoder(WIDTH, EMBED_DIM, config)


def head_gradients(kind: str, contrast: Contrast = WITH_ALL_RANKS) -> dict[str, np.ndarray]:
    """Losses and gradients of a head on this rank's part in fp64, averaged as data parallelism does."""
    part = regions().of_rank(distributed.rank(), distributed.world_size())
    head = make_head(kind).double()
    tokens, texts = (whole.double().requires_grad_() for whole in (part.tokens, part.texts))
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    batch = RegionBatch(boxes=part.boxes.double(), box_index=part.box_index, phrase_features=texts)
    losses = head.losses(head(tokens, GRID, batch), batch, scale, contrast)
    torch.stack(list(losses.values())).sum().backward()
    found = {f"loss of {name}": distributed.all_reduce_mean(loss) for name, loss in losses.items()}
    found["logit_scale"] = distributed.all_reduce_mean(scale.grad)
    for name, parameter in head.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found[name] = distributed.all_reduce_mean(grad)
    for name, rows in (("tokens", tokens), ("texts", texts)):
        found[name] = distributed.all_gather_rows(rows.grad / distributed.world_size())
    return {name: value.detach().numpy() for name, value in found.items()}


def losses_of_part(kind: str, rank: int, world_size: int) -> dict[str, float]:
    """Losses of a head on the regions of a rank, as if there were no others."""
    return _losses(kind, regions().of_rank(rank, world_size), WITH_ALL_RANKS)


def local_losses(kind: str) -> dict[str, float]:
    """Losses of a head on this rank, each rank a group of its own."""
    part = regions().of_rank(distributed.rank(), distributed.world_size())
    return _losses(kind, part, Contrast(group=distributed.make_group("local")))


@torch.no_grad()
def _losses(kind: str, part: Regions, contrast: Contrast) -> dict[str, float]:
    head = make_head(kind)
    batch = RegionBatch(boxes=part.boxes, box_index=part.box_index, phrase_features=part.texts)
    losses = head.losses(head(part.tokens, GRID, batch), batch, torch.tensor(9.0), contrast)
    return {name: float(loss) for name, loss in losses.items()}


def loss_of_nothing() -> tuple[float, list[float]]:
    """The loss and the gradients where no rank has a region."""
    features, texts = (torch.zeros(0, EMBED_DIM, requires_grad=True) for _ in range(2))
    scale = torch.tensor(9.0, requires_grad=True)
    loss = region_loss(features, texts, scale)
    loss.backward()
    return float(loss.detach()), [float(part.grad.sum()) for part in (features, texts, scale)]


def answers_of_rank(files: list[str]) -> dict[str, np.ndarray]:
    """Features of boxes and grounded phrases of some images, as this rank has them."""
    from clipkit.zeroshot.region_encoder import RegionEncoder
    from clipkit.zeroshot.region_source import GROUNDED, HEAD, Asked, RegionSource
    from region_shards import random_model

    from clipkit.data.image_files import ImageFiles
    from clipkit.data.prompted_images import Region

    boxes = [(0.1, 0.1, 0.6, 0.7), (0.3, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0)]
    asked = [
        Asked(boxes=tuple(map(Region, boxes[: number % 4])), phrases=("red", "blue")[: number % 3])
        for number in range(len(files))
    ]
    source = RegionSource(
        ImageFiles([Path(name) for name in files]), range(len(files)), asked, wanted=(HEAD, GROUNDED)
    )
    encoded, found = RegionEncoder(random_model("prompter"), None).regions(source, batch_size=2)
    parts = {
        "index": encoded.index,
        "images": encoded.features,
        "features": torch.cat([image.features[HEAD] for image in found.images]),
        "grounded": torch.cat([image.grounded for image in found.images if image.grounded is not None]),
    }
    return {name: part.numpy() for name, part in parts.items()}
