"""Training batches, endless and in a fixed order, from the step a run is at."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from clipkit import distributed
from clipkit.data.order import SampleOrder
from clipkit.data.samples import SampleKeys, Source, check_usable
from clipkit.data.skips import SkipLog, SkipReport
from clipkit.data.sources import open_sources
from clipkit.data.workers import produce
from clipkit.preprocess import TrainTransform

from ..config import DataConfig
from ..regions_config import RegionsConfig
from .batches import BatchPlan, Tokenizer, TrainBatches
from .regions import RegionLog, RegionSampler, check_regions

if TYPE_CHECKING:
    from clipkit.model import DualEncoder


class TrainLoader:
    """This rank's part of every global batch.

    Iterating gives, without end, a dict of `image` uint8 (b, 3, h, w), `text` int64 (b, L) and `key` (list of
    b), and with a region sampler `boxes` fp32 (R, 4), `box_index` int64 (R,) and `region_text` int64 (R, L).
    These are the same for any number of workers, and concatenated over ranks for any number of ranks.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        plan: BatchPlan,
        *,
        tokenizer: Tokenizer,
        transform: Callable[[Tensor], Tensor],
        regions: RegionSampler | None = None,
        weights: Mapping[str, float] | None = None,
        shuffle_window_samples: int = 262_144,
        num_workers: int = 0,
        start_step: int = 0,
    ) -> None:
        """Lay out the order.

        Args:
            sources: with at least one sample each.
            plan: batch size, place in the world, seed, caption policy.
            tokenizer: called once a batch, list of b texts -> int64 (b, L).
            transform: uint8 (3, H, W) -> uint8 (3, h, w); randomness from torch's global generator, which is
                seeded for every sample.
            regions: takes the place of `transform` where regions are trained with.
            weights: times per epoch that a source's samples are seen, by name; 1 where none is given.
            shuffle_window_samples: samples shuffled together, see `SampleOrder`.
            num_workers: processes; 0 prepares batches in this one.
            start_step: number of the first batch.

        Raises:
            ValueError: a source without samples, or an epoch smaller than one batch.
        """
        for source in sources:
            check_usable(source)
        weights = weights or {}
        order = SampleOrder(
            [source.sizes_per_shard for source in sources],
            [weights.get(source.name, 1.0) for source in sources],
            seed=plan.seed,
            window_samples=shuffle_window_samples,
        )
        self.fingerprint = {
            source.name: hashlib.sha256(str(tuple(source.sizes_per_shard)).encode()).hexdigest()
            for source in sources
        }
        """What the order of samples depends on, by source: the samples in each shard, hashed."""
        self.batch_size_total = plan.batch_size_total
        """Samples of one step over all ranks."""
        self.num_samples_per_epoch = order.num_samples_per_epoch
        """Samples of all sources, times their weights."""
        self.num_batches_per_epoch = order.num_samples_per_epoch // plan.batch_size_total
        """Steps of an epoch; samples that do not fill a last batch are left out."""
        if self.num_batches_per_epoch == 0:
            raise ValueError(
                f"an epoch of {order.num_samples_per_epoch} samples does not fill one batch of "
                f"{plan.world_size} rank(s) x {plan.batch_size_per_rank} samples; "
                "lower data.batch_size_per_rank or add data"
            )
        self._batches = TrainBatches(
            sources, order, plan, tokenizer=tokenizer, transform=transform, regions=regions
        )
        self._num_workers = num_workers
        self._start_step = start_step
        self._skips = SkipLog(sources)
        self._lost_regions = RegionLog(sources)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        steps = itertools.count(self._start_step)
        for made in produce(self._batches, steps, self._num_workers):
            self._skips.add(made.skips)
            self._lost_regions.add(made.lost_regions)
            yield made.batch

    def skip_report(self) -> SkipReport:
        """What could not be used so far: of this rank, and of all since the last `gather_skips`."""
        return self._skips.report()

    def lost_regions(self) -> SkipReport:
        """Regions left out over all draws so far, by source; see `skip_report`."""
        found = self._lost_regions.problems().items()
        return SkipReport(
            {name: dict(sorted(problems.counts.items())) for name, problems in found},
            {name: dict(sorted(problems.examples.items())) for name, problems in found},
        )

    def gather_skips(self) -> None:
        """Make the reports and the states those of all ranks. All ranks must call it together."""
        self._skips.gather()
        self._lost_regions.gather()

    def skip_state(self) -> list[list[str | int]]:
        """The samples found unusable so far, as JSON values for a checkpoint."""
        return self._skips.state()

    def load_skip_state(self, state: Iterable[Sequence[str | int]]) -> None:
        """Go on counting from a `skip_state`."""
        self._skips.load_state(state)

    def lost_regions_state(self) -> dict[str, Any]:
        """The counts of `lost_regions`, as JSON values for a checkpoint."""
        return self._lost_regions.state()

    def load_lost_regions_state(self, state: Mapping[str, Any]) -> None:
        """Go on counting from a `lost_regions_state`."""
        self._lost_regions.load_state(state)


def sample_keys(config: DataConfig, *, with_fields: bool = False) -> SampleKeys:
    """Names of the parts of a sample, in shards and in tables."""
    return SampleKeys(
        image=config.image_keys,
        caption=config.caption_keys,
        fields=with_fields,
        image_column=config.image_column,
        caption_column=config.caption_column,
    )


def build_train_loader(
    config: DataConfig, *, model: DualEncoder, regions: RegionsConfig | None, seed: int, start_step: int = 0
) -> TrainLoader:
    """The loader of a training run, for this process's rank; on all ranks together.

    Args:
        config: sources and batch size.
        model: for its tokenizer and the size of its images.
        regions: how regions are drawn, or None for a run without.
        seed: fixes order, caption choice and augmentation.
        start_step: steps already done.

    Raises:
        ValueError: a location or source that cannot be used, an epoch smaller than one batch, or regions that
            are missing or mostly unusable.
        FileNotFoundError: a location that matches nothing.
    """
    plan = BatchPlan(
        batch_size_per_rank=config.batch_size_per_rank,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        seed=seed,
        captions=config.captions,
    )
    sources = open_sources(config.sources, sample_keys(config, with_fields=regions is not None), show=True)
    transform = TrainTransform(model.preprocess_config, config.augment)
    sampler = None
    if regions is not None:
        check_regions(sources)
        sampler = RegionSampler(transform.with_window, regions.per_image, seed)
    return TrainLoader(
        sources,
        plan,
        tokenizer=model.tokenizer,
        transform=transform,
        regions=sampler,
        weights=config.weights,
        shuffle_window_samples=config.shuffle_window_samples,
        num_workers=config.num_workers,
        start_step=start_step,
    )
