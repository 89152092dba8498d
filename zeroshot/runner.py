"""Run the entries of a suite on models: features once, then what each task makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from clipkit.console import progress
from clipkit.data.samples import Source
from clipkit.distributed import all_gather_objects, rank
from clipkit.feature_cache import FeatureCache
from clipkit.regions.heads import head_id

from .encoder import EncodedImages, Encoder
from .intervals import mean_interval
from .region_encoder import RegionEncoder
from .region_source import RegionSet, RegionSource
from .results import (
    ModelName,
    Result,
    find_result,
    fingerprint,
    make_result,
    result_name,
    write_result,
)
from .suite import Entry
from .tasks.base import Features, ImageSet

_TEXTS_WITH_BAR = 1000


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How, not what, is computed; the precision apart, none of it changes a figure."""

    output: Path
    batch_size: int = 64
    num_workers: int = 0
    precision: str = "fp32"
    with_cache: bool = True
    overwrite: bool = False
    device: torch.device | str = "cpu"
    quiet: bool = False


def open_sources(entries: Sequence[Entry]) -> dict[str, dict[str, Source]]:
    """Open the data of all entries before any model is loaded, so that what is wrong is known at once.

    Returns:
        By the name of the entry, the sources of its task.

    Raises:
        ValueError, OSError: with the name of the entry.
    """
    opened = {}
    for entry in entries:
        try:
            opened[entry.name] = entry.settings.sources()
        except ValueError as error:
            raise ValueError(f"{entry.name}: {error}") from error
        except OSError as error:
            raise OSError(f"{entry.name}: {error}") from error
    return opened


def run_model(
    name: str, entries: Sequence[Entry], sources: Mapping[str, Mapping[str, Source]], options: RunOptions
) -> Iterator[Result]:
    """Results of one model, each written as soon as it is there; those of an earlier run are taken over.

    Args:
        name: whatever `clipkit.load` takes.
        entries: with different names.
        sources: from `open_sources`.
        options: how.
    """
    import clipkit

    model = clipkit.load(name, device=options.device)
    named = name_model(name, model.model_id)
    cache = FeatureCache.of_model(named.model_id, model.embed_dim) if options.with_cache else None
    encoder = RegionEncoder(model, cache, precision=options.precision)
    for entry in entries:
        yield _run_entry(entry, sources[entry.name], encoder, named, options)


def name_model(source: str, model_id: str) -> ModelName:
    """What results of a model are reported under: open_clip's name and tag, or a folder and its model id."""
    if not Path(source).exists():
        model, _, tag = source.rpartition("/") if ":" not in source else (source, "", "")
        return ModelName(model=model or source, pretrained=tag or model_id[:12], model_id=model_id)
    # A training run keeps its model in a folder called `model`, and the demo its run in one called `run`.
    path = Path(source).absolute()
    names = (name for name in reversed(path.parts) if name not in ("model", "run"))
    return ModelName(model=next(names, path.name), pretrained=model_id[:12], model_id=model_id)


def _run_entry(
    entry: Entry,
    sources: Mapping[str, Source],
    encoder: RegionEncoder,
    named: ModelName,
    options: RunOptions,
) -> Result:
    sizes = {name: len(source) for name, source in sources.items()}
    stamp = fingerprint(entry.describe(), sizes, _answering_id(sources, encoder, named), options.precision)
    path = options.output / result_name(entry.name, named, entry.language, entry.task)
    # Rank 0 decides, because folders need not be shared.
    own = None if options.overwrite or rank() else find_result(path, stamp)
    found: Result | None = all_gather_objects(own)[0]
    if found is not None:
        return found
    show = rank() == 0 and not options.quiet
    encoded: dict[str, EncodedImages] = {}
    regions: dict[str, RegionSet] = {}
    for name, source in sources.items():
        if isinstance(source, RegionSource):
            encoded[name], regions[name] = _encode_regions(entry.name, source, encoder, options, show)
        else:
            encoded[name] = _encode_images(entry.name, source, encoder, options, show)
    features = Features(
        images={name: _image_set(source, encoded[name]) for name, source in sources.items()},
        texts=partial(_encode_texts, entry.name, encoder, show),
        logit_scale=float(encoder.model.logit_scale.detach().exp()),
        regions=regions,
    )
    try:
        measurement = entry.settings.measure(features)
    except ValueError as error:
        raise ValueError(f"{entry.name}: {error}") from error
    result = make_result(
        measurement,
        {name: mean_interval(values) for name, values in measurement.outcomes.items()},
        dataset=entry.name,
        task=entry.task,
        language=entry.language,
        model=named,
        settings=entry.describe(),
        num_images=sum(len(one.samples) for one in encoded.values()),
        unreadable=_unreadable(sources, encoded),
    )
    if rank() == 0:
        write_result(path, result, stamp)
    return result


def _encode_images(
    title: str, source: Source, encoder: Encoder, options: RunOptions, show: bool
) -> EncodedImages:
    with progress(f"{title}: images", len(source), show=show) as meter:
        return encoder.images(
            source, batch_size=options.batch_size, num_workers=options.num_workers, progress=meter.advance
        )


def _encode_regions(
    title: str, source: RegionSource, encoder: RegionEncoder, options: RunOptions, show: bool
) -> tuple[EncodedImages, RegionSet]:
    with progress(f"{title}: regions of images", len(source), show=show) as meter:
        return encoder.regions(
            source, batch_size=options.batch_size, num_workers=options.num_workers, progress=meter.advance
        )


def _answering_id(sources: Mapping[str, Source], encoder: RegionEncoder, named: ModelName) -> str:
    """The model id; where regions are asked about, with that of the region head, which is no part of it."""
    head = encoder.model.region_head
    if head is None or not any(isinstance(source, RegionSource) for source in sources.values()):
        return named.model_id
    return f"{named.model_id}/{head_id(head)}"


def _encode_texts(title: str, encoder: Encoder, show: bool, texts: Sequence[str]) -> Tensor:
    num_distinct = len(set(texts))
    is_long = num_distinct >= _TEXTS_WITH_BAR
    with progress(f"{title}: texts", num_distinct, show=show and is_long) as meter:
        return encoder.texts(texts, progress=meter.advance)


def _unreadable(sources: Mapping[str, Source], encoded: Mapping[str, EncodedImages]) -> dict[str, int]:
    """What could not be used, when indexing and when reading, by reason."""
    counts = Counter(reason for one in encoded.values() for reason in one.unreadable.values())
    for source in sources.values():
        counts.update(source.problems.counts)
    return dict(sorted(counts.items()))


def _image_set(source: Source, encoded: EncodedImages) -> ImageSet:
    if not encoded.samples:
        reasons = Counter(encoded.unreadable.values())
        raise ValueError(f"no image of {source.name!r} can be used: {dict(reasons)}")
    return ImageSet(
        name=source.name,
        features=encoded.features,
        samples=encoded.samples,
        classnames=source.classnames or (),
        templates=source.templates,
    )
