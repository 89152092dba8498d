"""A training step with regions as it runs on several ranks, and shards with regions, for the tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from broken_shards import encode, write_tar
from clipkit.training.build import build_model, build_trainer
from clipkit.training.config import DataConfig, LossConfig, ModelConfig, TrainConfig
from clipkit.training.data.batches import BatchPlan
from clipkit.training.data.loader import TrainLoader
from clipkit.training.data.regions import RegionSampler
from clipkit.training.regions_config import RegionsConfig
from clipkit.training.step import train_step
from loader_jobs import take, tokenizer
from PIL import Image
from region_jobs import NUM_IMAGES, REGIONS_OF_IMAGES, regions
from torch import Tensor
from torch.distributed.tensor import DTensor

from clipkit import distributed
from clipkit.augment import AugmentConfig
from clipkit.data.samples import SampleKeys, Source
from clipkit.data.sources import open_sources
from clipkit.preprocess import PreprocessConfig, TrainTransform

AS_PUBLISHED = "as-published"
"""Stands for a Prompter as in the paper."""
SETTINGS: dict[str, dict[str, int | float | bool]] = {
    AS_PUBLISHED: {"pools_prompts": False, "places_tokens": False},
    "query-decoder": {"num_queries": 4, "num_layers": 1, "num_heads": 2, "mlp_width": 16, "dropout": 0.0},
}
PHRASES = (
    "a red star",
    "the blue ring",
    "sky",
    "a very small green boat",
    "a red star",
    "one",
    "two",
    "three",
)


def config(
    kind: str = "none",
    *,
    parallel: Literal["ddp", "fsdp"] = "ddp",
    micro: int | None = None,
    weights: dict[str, float] | None = None,
    scope: Literal["world", "local"] = "world",
) -> TrainConfig:
    """One step of eight images."""
    return TrainConfig(
        output=Path("unused"),
        model=ModelConfig(name="test-vit"),
        data=DataConfig(
            sources={"unused": "unused"},
            batch_size_per_rank=NUM_IMAGES // distributed.world_size(),
            micro_batch_size_per_rank=micro,
        ),
        loss=LossConfig(scope=scope, weights=weights or {}),
        regions=RegionsConfig(
            head="prompter" if kind == AS_PUBLISHED else kind,  # type: ignore[arg-type]
            settings=SETTINGS.get(kind, {}),
        ),
        steps=1,
        parallel=parallel,
    )


def batch_of_rank(model: Any) -> dict[str, Any]:
    """This rank's images of a global batch, of which some, on four ranks all of one, have no regions."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (NUM_IMAGES, 3, *model.image_size), generator=generator, dtype=torch.uint8)
    rank, world_size = distributed.rank(), distributed.world_size()
    size = NUM_IMAGES // world_size
    own = slice(rank * size, (rank + 1) * size)
    found = regions()
    captions = [f"a {word} picture number {number}" for number, word in enumerate(PHRASES)]
    phrases = [PHRASES[row * 5 % 8] for row in range(sum(REGIONS_OF_IMAGES))]
    is_own = (found.box_index >= own.start) & (found.box_index < own.stop)
    return {
        "image": images[own],
        "text": model.tokenizer(captions)[own],
        "key": captions[own],
        "boxes": found.boxes[is_own],
        "box_index": found.box_index[is_own] - own.start,
        "region_text": model.tokenizer(phrases)[is_own],
    }


def step_of(wanted: TrainConfig, *, with_regions: bool = True) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures of a step and the mean gradients over ranks."""
    torch.manual_seed(0)
    model = build_model(wanted)
    trainer = build_trainer(wanted, model, torch.device("cpu"), num_steps=1)
    batch = batch_of_rank(model)
    if not with_regions:
        batch = {name: batch[name] for name in ("image", "text", "key")}
    result = train_step(trainer, batch, 0)
    gradients: dict[str, np.ndarray] = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        if grad is not None:
            whole: Tensor = grad.full_tensor() if isinstance(grad, DTensor) else grad
            gradients[name] = whole.numpy().copy()
    return {"loss": result.loss, "grad_norm": result.grad_norm, **result.figures}, gradients


def step_with_regions(
    kind: str, parallel: Literal["ddp", "fsdp"], micro: int | None
) -> tuple[dict[str, float], dict[str, Any]]:
    """`step_of`, for ranks."""
    return step_of(config(kind, parallel=parallel, micro=micro))


BAD_REGIONS: dict[str, Any] = {
    "ok": [{"box": [0.0, 0.0, 0.5, 1.0], "phrase": " left half "}],
    "none": None,
    "nan": [{"box": [float("nan"), 0, 1, 1], "phrase": "x"}, {"box": [0, 0, 1, 1], "phrase": "all"}],
    "three": [{"box": [0, 0, 1], "phrase": "x"}, {"phrase": "x"}],
    "order": [{"box": [0.5, 0.5, 0.4, 0.9], "phrase": "x"}, {"box": [0, 0, 1, 1], "phrase": "all"}],
    "flat": [{"box": [0.5, 0.5, 0.5, 0.9], "phrase": "x"}],
    "outside": [{"box": [1.1, 0.5, 1.4, 0.9], "phrase": "x"}],
    "pixels": [{"box": [3, 2, 11, 12], "phrase": "x"}, {"box": [0, 2, 11, 12], "phrase": "y"}],
    "silent": [
        {"box": [0, 0, 1, 1], "phrase": "  "},
        {"box": [0, 0, 1, 1]},
        {"box": [0, 0, 1, 1], "phrase": 3},
    ],
    "words": ["a red star", {"box": [0, 0, 1, 1], "phrase": "all"}],
    "many": [{"box": [0, 0, 1, 1 / number], "phrase": str(number)} for number in range(1, 7)],
    "object": {"box": [0, 0, 1, 1], "phrase": "alone"},
}
BAD_COUNTS = {
    "box_in_wrong_convention": 2,
    "box_not_four_finite_numbers": 3,
    "box_outside_the_image": 1,
    "box_with_corners_in_wrong_order": 1,
    "box_without_area": 1,
    "region_not_an_object": 1,
    "region_not_drawn": 2,
    "region_without_phrase": 3,
}


def write_regions(folder: Path) -> Path:
    """Shards of black pictures whose left half is white, with regions of every kind."""
    pixels = np.zeros((20, 24, 3), np.uint8)
    pixels[:, :12] = 255
    members: dict[str, bytes] = {}
    for key, found in BAD_REGIONS.items():
        fields = {} if found is None else {"regions": found}
        members |= {f"{key}.jpg": encode(Image.fromarray(pixels)), f"{key}.txt": key.encode()}
        members[f"{key}.json"] = json.dumps(fields).encode()
    folder.mkdir(parents=True, exist_ok=True)
    return write_tar(folder / "0.tar", members)


def open_regions(path: Path | str) -> Source:
    return open_sources({"shapes": path}, SampleKeys(fields=True))[0]


def region_loader(source: Source, *, batch: int, augment: AugmentConfig | None = None, **options: Any) -> Any:
    """Batches with regions of the present rank, or of the one that `rank` and `world` say."""
    rank, world = options.pop("rank", 0), options.pop("world", 1)
    whole = AugmentConfig(scale=(1.0, 1.0), ratio=(0.01, 100.0))
    transform = TrainTransform(PreprocessConfig(size=(16, 16)), augment or whole)
    plan = BatchPlan(batch_size_per_rank=batch, rank=rank, world_size=world, seed=3)
    sampler = RegionSampler(transform.with_window, per_image=4, seed=3)
    return TrainLoader([source], plan, tokenizer=tokenizer, transform=transform, regions=sampler, **options)


def counts_on_ranks(path: str, cache_home: str) -> dict[str, dict[str, int]]:
    """Regions left out in one epoch over all ranks."""
    os.environ["XDG_CACHE_HOME"] = cache_home
    world = distributed.world_size()
    steps = region_loader(
        open_regions(path), batch=len(BAD_REGIONS) // world, rank=distributed.rank(), world=world
    )
    take(steps, 1)
    for _ in range(2):  # a second time counts nothing again
        steps.gather_skips()
    return steps.lost_regions().counts
