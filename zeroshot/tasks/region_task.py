"""What tasks on regions share: a data set with boxes and phrases, or some of its images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from .base import Task
from .region_data import RegionPool, open_regions


@dataclass(frozen=True, kw_only=True)
class RegionTask(Task):
    """A task on the regions of images."""

    data: str
    """Shards whose json files have `regions: [{"box", "phrase"}]`; `scenes` for the built-in data."""
    max_images: int = 0
    """Images that are drawn from those with regions, as CLOC draws 2000 for retrieval; 0 takes all."""
    seed: int = 0
    """Of this draw."""

    def __post_init__(self) -> None:
        if self.max_images < 0:
            raise ValueError(f"max_images must be >= 0, got {self.max_images}")

    @cached_property
    def _pool(self) -> RegionPool:
        return open_regions(self.data, max_images=self.max_images, seed=self.seed)
