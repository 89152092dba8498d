"""Step number -> this rank's batch of that step: a pure function, whichever process computes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from clipkit.data.order import SampleOrder, stateless_hash
from clipkit.data.problems import Problems, SampleError, describe_counts
from clipkit.data.regions import SampleRegions
from clipkit.data.samples import Source
from clipkit.data.skips import Skip
from clipkit.images import ImageError, decode_pixels

from .regions import LostRegions, RegionSampler, collate

MAX_REDRAWS = 1_000
_CAPTION, _TRANSFORM = -1, -2  # purposes of a hash, beside the redraws 1, 2, ...

CaptionPolicy = Literal["random", "first", "longest"]
Tokenizer = Callable[[list[str]], Tensor]


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Which samples make up a batch, and how each is prepared."""

    batch_size_per_rank: int
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    captions: CaptionPolicy = "random"
    """One of a sample's captions is drawn evenly in every epoch, or always the first or the longest."""

    @property
    def batch_size_total(self) -> int:
        """Samples of one step over all ranks."""
        return self.batch_size_per_rank * self.world_size


class Made(NamedTuple):
    """A batch, and what was left out of it."""

    batch: dict[str, Any]
    skips: list[Skip]
    """Unusable samples that this process met for the first time."""
    lost_regions: LostRegions


class _Prepared(NamedTuple):
    image: Tensor
    caption: str
    key: str
    regions: SampleRegions | None


class TrainBatches:
    """Batch of step s: positions [s * B, (s + 1) * B) of the order, of which rank r has its r-th part.

    B is the batch of all ranks. Epochs have as many steps as they have whole batches; the rest of an epoch
    is left out, another rest in each. A sample that cannot be used is replaced by another of the same source,
    drawn by a hash of (seed, epoch, position, attempt), so that batches never change their shape.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        order: SampleOrder,
        plan: BatchPlan,
        *,
        tokenizer: Tokenizer,
        transform: Callable[[Tensor], Tensor],
        regions: RegionSampler | None = None,
    ) -> None:
        self._sources = tuple(sources)
        self._order = order
        self._plan = plan
        self._tokenizer = tokenizer
        self._transform = transform
        self._regions = regions
        self._bad: list[dict[int, str]] = [{} for _ in sources]
        """For each source, why the samples found unusable are."""

    def __getitem__(self, step: int) -> Made:
        """The batch of a step."""
        total = self._plan.batch_size_total
        epoch, number = divmod(step, self._order.num_samples_per_epoch // total)
        first = number * total + self._plan.rank * self._plan.batch_size_per_rank
        skips: list[Skip] = []
        lost: dict[str, Problems] = {}
        with _borrowed_generator():
            positions = range(first, first + self._plan.batch_size_per_rank)
            prepared = [self._draw(epoch, position, skips, lost) for position in positions]
        batch = {
            "image": torch.stack([one.image for one in prepared]),
            "text": self._tokenizer([one.caption for one in prepared]),
            "key": [one.key for one in prepared],
        }
        regions = [one.regions for one in prepared if one.regions is not None]
        if regions:
            batch |= collate(regions, self._tokenizer)
        return Made(batch, skips, lost)

    def _draw(self, epoch: int, position: int, skips: list[Skip], lost: dict[str, Problems]) -> _Prepared:
        number, sample = self._order.place(epoch, position)
        source = self._sources[number]
        for attempt in range(1, MAX_REDRAWS + 1):
            if sample not in self._bad[number]:
                try:
                    prepared = self._prepare(source, sample, epoch, position)
                except (SampleError, ImageError) as error:
                    self._bad[number][sample] = error.reason
                    skips.append(Skip(source.name, sample, error.reason, source.where(sample)))
                    self._check_any_left(number)
                else:
                    self._count_lost(source, sample, prepared.regions, lost)
                    return prepared
            sample = stateless_hash(self._plan.seed, epoch, position, attempt) % len(source)
        raise ValueError(
            f"{MAX_REDRAWS:,} samples drawn in a row from source {source.name!r} were unusable "
            f"({self._describe_bad(number)}); look at it with `clipkit inspect`"
        )

    def _prepare(self, source: Source, sample: int, epoch: int, position: int) -> _Prepared:
        raw = source.read(sample)
        pixels = decode_pixels(raw.image)
        seed = self._plan.seed
        torch.default_generator.manual_seed(stateless_hash(seed, epoch, position, _TRANSFORM))
        if self._regions is None:
            image, regions = self._transform(pixels), None
        else:
            image, regions = self._regions.prepare(pixels, raw.fields, epoch, position)
        chance = stateless_hash(seed, epoch, position, _CAPTION)
        caption = choose_caption(raw.captions, self._plan.captions, chance)
        return _Prepared(image, caption, raw.key, regions)

    @staticmethod
    def _count_lost(
        source: Source, sample: int, regions: SampleRegions | None, lost: dict[str, Problems]
    ) -> None:
        if regions is None or not regions.lost:
            return
        found = lost.setdefault(source.name, Problems())
        where = source.where(sample) + (f": {regions.hint}" if regions.hint else "")
        for reason, count in regions.lost.items():
            found.add(reason, [where], count)

    def _check_any_left(self, number: int) -> None:
        source = self._sources[number]
        if len(self._bad[number]) == len(source):
            raise ValueError(
                f"nothing usable in source {source.name!r} ({self._describe_bad(number)}); "
                "look at it with `clipkit inspect`"
            )

    def _describe_bad(self, number: int) -> str:
        return describe_counts(Counter(self._bad[number].values()))


def choose_caption(captions: Sequence[str], policy: CaptionPolicy, chance: int) -> str:
    """One of the captions: the first, the longest, or by `chance` >= 0 any of them."""
    if policy == "first":
        return captions[0]
    if policy == "longest":
        return max(captions, key=len)
    return captions[chance % len(captions)]


@contextmanager
def _borrowed_generator() -> Iterator[None]:
    """Leave torch's global CPU generator as it was; without workers it is the one of the run."""
    state = torch.default_generator.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
