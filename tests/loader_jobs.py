"""Loaders with a tokenizer and a transform that show every bit of randomness; what ranks run with them."""

from __future__ import annotations

import itertools
import os

import torch
from clipkit.training.data.batches import BatchPlan
from clipkit.training.data.loader import TrainLoader

from clipkit import distributed
from clipkit.data.sources import open_sources


def tokenizer(texts):
    rows = torch.zeros(len(texts), 24, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        codes = torch.tensor(list(text.encode())[:24])
        row[: len(codes)] = codes
    return rows


def transform(pixels):
    """A random brightness, so that batches show the state of the generator."""
    return pixels[:, :16, :16] // 2 + torch.randint(0, 128, (3, 1, 1), dtype=torch.uint8)


def loader(*sources, batch=10, rank=0, world=1, **options):
    plan = BatchPlan(batch_size_per_rank=batch, rank=rank, world_size=world, seed=options.pop("seed", 3))
    return TrainLoader(sources, plan, tokenizer=tokenizer, transform=transform, **options)


def take(loader, count):
    batches = iter(loader)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def count_on_ranks(folder, cache_home):
    os.environ["XDG_CACHE_HOME"] = cache_home
    sources = open_sources({"broken": folder})
    steps = loader(*sources, batch=7, rank=distributed.rank(), world=distributed.world_size())
    take(steps, 6 // distributed.world_size())
    steps.gather_skips()
    return steps.skip_report().counts
