"""Evaluation data in a fixed order, with batches that do not depend on the number of ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from clipkit import distributed
from clipkit.data.locations import resolve
from clipkit.data.problems import SampleError
from clipkit.data.samples import SampleKeys, Source, check_usable
from clipkit.data.skips import Skip, SkipLog, SkipReport
from clipkit.data.sources import open_sources
from clipkit.data.workers import produce
from clipkit.images import ImageError, decode_image

Task = Literal["retrieval", "zero_shot"]
ImageTransform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class EvalSource:
    """An evaluation set: captioned images, or labelled ones with the names of their classes."""

    source: Source
    classnames: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    """Prompts with `{c}` for the class name that lie beside the data; empty where there are none."""

    @property
    def name(self) -> str:
        """What results are reported under."""
        return self.source.name


def open_eval_source(
    name: str, location: str | Path, task: Task, keys: SampleKeys | None = None
) -> EvalSource:
    """Open an evaluation set; on all ranks together.

    Args:
        name: what results are reported under.
        location: see `open_source`. For `zero_shot` a folder of class folders, or tars with a `cls` member
            and a `classnames.txt` beside them or one folder up (CLIP_benchmark's layout, whose
            `zeroshot_classification_templates.txt` is read too).
        task: whether captions or labels are required.
        keys: names of the parts of a sample; what is required follows from `task`.

    Raises:
        ValueError: nothing is usable, or the class names are missing or too few.
        FileNotFoundError: there is nothing at `location`.
    """
    require = ("caption",) if task == "retrieval" else ("label",)
    keys = dataclasses.replace(keys or SampleKeys(), require=require)
    source = open_sources({name: location}, keys)[0]
    check_usable(source)
    if task == "retrieval":
        return EvalSource(source)
    folder = resolve(location).paths[0].parent
    classnames = source.classnames or _lines_near(folder, "classnames.txt")
    if not classnames:
        raise ValueError(
            f"zero-shot set {name!r} needs class names: write {folder / 'classnames.txt'}, one a line"
        )
    return EvalSource(source, classnames, _lines_near(folder, "zeroshot_classification_templates.txt"))


def _lines_near(folder: Path, name: str) -> tuple[str, ...]:
    for candidate in (folder / name, folder.parent / name):
        if candidate.is_file():
            lines = candidate.read_text(encoding="utf-8").splitlines()
            return tuple(line.strip() for line in lines if line.strip())
    return ()


class EvalLoader:
    """This rank's batches of an evaluation set; can be gone through any number of times."""

    def __init__(
        self,
        source: Source,
        *,
        transform: ImageTransform,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        check_usable(source)
        self._chunks = _Chunks(source, transform, batch_size)
        self._numbers = range(rank, -(-len(source) // batch_size), world_size)
        self._num_workers = min(num_workers, len(self._numbers))
        self._skips = SkipLog([source])

    def __len__(self) -> int:
        """Batches of this rank; one that has nothing usable is left out when iterating."""
        return len(self._numbers)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch, skips in produce(self._chunks, self._numbers, self._num_workers):
            self._skips.add(skips)
            if batch is not None:
                yield batch

    def skips(self) -> list[Skip]:
        """The samples that could not be used so far: of this rank, or of all once gathered."""
        return self._skips.skips()

    def skip_report(self) -> SkipReport:
        """What could not be used so far: of this rank, and of all since the last `gather_skips`."""
        return self._skips.report()

    def gather_skips(self) -> None:
        """Make the report that of all ranks. All ranks must call it together."""
        self._skips.gather()


def build_eval_loader(
    source: Source | EvalSource,
    *,
    transform: ImageTransform,
    batch_size: int,
    num_workers: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
) -> EvalLoader:
    """Batches with everything a sample has.

    Batch c holds samples [c * batch_size, (c + 1) * batch_size) without the unusable ones, and rank r takes
    batches r, r + W, r + 2W ...: all ranks together have the same batches for any W.

    Args:
        source: what to go through.
        transform: Pillow image of mode RGB -> tensor.
        batch_size: samples in a batch.
        num_workers: processes that decode; 0 decodes in this one.
        rank: default: this process's.
        world_size: default: the world's.

    Returns:
        Iterable of `image` (b, ...) stacked, `captions` list of b tuples, `label` int64 (b,) or None where
        the source has no labels, `key` list of b, `index` int64 (b,) each sample's place in the source.

    Raises:
        ValueError: nothing in the source is usable.
    """
    return EvalLoader(
        source.source if isinstance(source, EvalSource) else source,
        transform=transform,
        batch_size=batch_size,
        rank=distributed.rank() if rank is None else rank,
        world_size=distributed.world_size() if world_size is None else world_size,
        num_workers=num_workers,
    )


class _Chunks:
    """Chunk number -> its batch, or None where no sample of it is usable, and what was skipped."""

    def __init__(self, source: Source, transform: ImageTransform, batch_size: int) -> None:
        self._source = source
        self._transform = transform
        self._batch_size = batch_size

    def __getitem__(self, number: int) -> tuple[dict[str, Any] | None, list[Skip]]:
        first = number * self._batch_size
        indexes, samples, images = [], [], []
        skips: list[Skip] = []
        for index in range(first, min(first + self._batch_size, len(self._source))):
            try:
                sample = self._source.read(index)
                images.append(self._transform(decode_image(sample.image)))
            except (SampleError, ImageError) as error:
                skips.append(Skip(self._source.name, index, error.reason, self._source.where(index)))
                continue
            indexes.append(index)
            samples.append(sample)
        if not samples:
            return None, skips
        labels = [sample.label for sample in samples]
        batch = {
            "image": torch.stack(images),
            "captions": [sample.captions for sample in samples],
            "label": None if None in labels else torch.tensor(labels),
            "key": [sample.key for sample in samples],
            "index": torch.tensor(indexes),
        }
        return batch, skips
