"""Run a protocol: accuracies of a model's heads and of zero-shot classifiers, as results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clipkit.console import progress
from clipkit.data.class_splits import ClassSplits, open_class_splits
from clipkit.distributed import all_gather_objects, rank
from clipkit.feature_cache import FeatureCache
from clipkit.heads.adapted import AdaptedEncoder
from clipkit.heads.files import head_names, read_facts
from clipkit.prompts.deep import TEMPLATE

from ..classifier import build_classifier, prompts_of_descriptions, prompts_of_names
from ..descriptions import DescriptionBank, PromptFormat
from ..encoder import EncodedImages, Encoder
from ..head_encoder import HeadEncoder, head_logits
from ..results import ModelName, Result, find_result, fingerprint, make_result, result_name, write_result
from ..runner import RunOptions, name_model
from ..tasks.base import Measurement
from . import few_shot_table, transfer_table
from .base_to_new import Score, accuracy, base_and_new_accuracy
from .chosen_heads import Facts, by_seed, check_source, fewest_images, heads_of_data, heads_that_begin
from .published import AVERAGE
from .table import Accuracies, Row, measurement, over_all, pairs_of, with_fewest_images

if TYPE_CHECKING:
    from torch import Tensor

    from clipkit.model import DualEncoder

BASE_TO_NEW = "base-to-new"
TRANSFER = ("cross-dataset", "domain")


@dataclass(frozen=True, kw_only=True)
class ProtocolData:
    """A data set with the name that it is reported under."""

    name: str
    place: str
    """As `open_class_splits` takes it."""
    splits: ClassSplits


def open_data(places: Sequence[str]) -> list[ProtocolData]:
    """Open data sets.

    Args:
        places: each `NAME=PLACE`, or a place alone, which is named by its folder or split file.

    Raises:
        ValueError: two have the same name, or one cannot be used.
        OSError: there is nothing at a place.
    """
    named = [_named(place) for place in places]
    twice = [name for name, count in Counter(name for name, _ in named).items() if count > 1]
    if twice or AVERAGE in dict(named):
        raise ValueError(
            f"data sets need names of their own, and none is {AVERAGE!r}, got "
            f"{(twice or [AVERAGE])[0]!r}: give --data NAME=PLACE"
        )
    return [ProtocolData(name=name, place=place, splits=open_class_splits(place)) for name, place in named]


def _named(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if equals and "/" not in name:
        return name, place
    path = Path(text.partition("::")[0])
    return (path.stem if path.suffix == ".json" else path.absolute().name), text


def run_protocol(
    protocol: str,
    source: str,
    data: Sequence[ProtocolData],
    wanted: Sequence[str],
    descriptions: Path | None,
    options: RunOptions,
) -> Iterator[Result]:
    """Results of a model: of each data set, and of several their average.

    Args:
        protocol: `base-to-new`, `few-shot`, `cross-dataset` or `domain`.
        source: a model directory with heads.
        data: to test on.
        wanted: names of heads, or beginnings of names.
        descriptions: of the classes of all data sets, to also measure the classifier by descriptions.
        options: how.

    Raises:
        ValueError: heads, data sets and descriptions do not fit each other.
    """
    import clipkit

    model = clipkit.load(source, device=options.device)
    if model.directory is None:
        raise ValueError(f"--protocol needs a model directory with heads, {source} is none")
    names = heads_that_begin(wanted, head_names(model.directory))
    facts: dict[str, Facts] = {name: read_facts(model.directory, name) for name in names}
    classes = {one.name: one.splits.names for one in data}
    if protocol in TRANSFER:
        check_source(facts, protocol, classes)
        belonging = dict.fromkeys(classes, facts)
    else:
        places = {one.name: one.place for one in data}
        belonging = heads_of_data(facts, classes, places, base=protocol == BASE_TO_NEW)
    groups = {name: by_seed(own) for name, own in belonging.items()}
    bank = None if descriptions is None else DescriptionBank.read(descriptions)
    run = _Run(protocol, model, name_model(source, model.model_id), bank, str(descriptions or ""), options)
    found: dict[str, Accuracies] = {}
    for one in data:
        result = run.result(one, groups[one.name], belonging[one.name])
        found[one.name] = pairs_of(result.metrics)
        yield result
    if len(data) > 1:
        yield run.average(found, data, facts)


class _Run:
    """A model with all that its data sets share."""

    def __init__(
        self,
        protocol: str,
        model: DualEncoder,
        named: ModelName,
        bank: DescriptionBank | None,
        descriptions: str,
        options: RunOptions,
    ) -> None:
        self.model, self.named, self.bank, self.options = model.requires_grad_(False), named, bank, options
        self.protocol, self.descriptions = protocol, descriptions
        self.cache = FeatureCache.of_model(named.model_id, model.embed_dim) if options.with_cache else None

    def result(
        self, data: ProtocolData, groups: Mapping[Row, Mapping[int, str]], heads: Mapping[str, Facts]
    ) -> Result:
        """Of one data set; that of an earlier run is taken over."""
        settings = self._settings({data.name: data.place}, heads)
        sizes = {"test": len(data.splits.test)}
        stamp = fingerprint(settings, sizes, self.named.model_id, self.options.precision)
        path = self._path(data.name)
        # Rank 0 decides, because folders need not be shared.
        own = None if self.options.overwrite or rank() else find_result(path, stamp)
        known: Result | None = all_gather_objects(own)[0]
        if known is not None:
            return known
        encoder = Encoder(self.model, self.cache, precision=self.options.precision)
        plain = self._images(encoder, data, "images")
        labels = _labels(plain, data)
        rows: Accuracies = {}
        for row, by_number in groups.items():
            rows[row] = {seed: self._of_head(data, name, labels) for seed, name in by_number.items()}
        zero_shot = partial(self._of_prompts, encoder, None)
        names = data.splits.names
        rows["zero-shot", None] = {0: self._measured(zero_shot, plain.features, labels, names)}
        if self.bank is not None:
            described = partial(self._of_prompts, encoder, self.bank)
            rows["descriptions", None] = {0: self._measured(described, plain.features, labels, names)}
        problems = Counter(plain.unreadable.values()) + Counter(data.splits.test.problems.counts)
        measured = self._measurement(rows, data.name, [data.name])
        measured = with_fewest_images(measured, fewest_images(heads.values()))
        return self._written(data.name, measured, settings, stamp, len(plain.index), problems)

    def average(
        self, found: Mapping[str, Accuracies], data: Sequence[ProtocolData], heads: Mapping[str, Facts]
    ) -> Result:
        """Of several data sets, of the methods that all have."""
        settings = self._settings({one.name: one.place for one in data}, heads)
        sizes = {one.name: len(one.splits.test) for one in data}
        stamp = fingerprint(settings, sizes, self.named.model_id, self.options.precision)
        if self.protocol in TRANSFER:
            trained_on = {own.get("data") for own in heads.values()}
            sources = [one.name for one in data if one.place in trained_on]
            measured = transfer_table.measurement(self.protocol, found, sources)
        else:
            measured = self._measurement(over_all(found), AVERAGE, list(found))
        measured = with_fewest_images(measured, fewest_images(heads.values()))
        return self._written(AVERAGE, measured, settings, stamp, sum(sizes.values()), Counter())

    def _measurement(self, rows: Accuracies, dataset: str, datasets: Sequence[str]) -> Measurement:
        if self.protocol == BASE_TO_NEW:
            return measurement(rows, dataset, datasets)
        return few_shot_table.measurement(rows, dataset, self.protocol)

    def _of_head(self, data: ProtocolData, name: str, labels: Tensor) -> tuple[float, ...]:
        adapted: AdaptedEncoder = self.model.with_head(name)
        encoder = HeadEncoder(adapted, self.cache, precision=self.options.precision)
        features = self._images(encoder, data, name).features
        score: Score = partial(head_logits, self.model, adapted.head)
        try:
            return self._measured(score, features, labels, data.splits.names)
        except ValueError as error:
            raise ValueError(f"head {name!r} on {data.name}: {error}") from error

    def _measured(
        self, score: Score, features: Tensor, labels: Tensor, names: Sequence[str]
    ) -> tuple[float, ...]:
        if self.protocol == BASE_TO_NEW:
            return base_and_new_accuracy(score, features, labels, names)
        return (accuracy(score, features, labels, names),)

    def _of_prompts(
        self, encoder: Encoder, bank: DescriptionBank | None, features: Tensor, names: Sequence[str]
    ) -> Tensor:
        if bank is None:
            prompts = prompts_of_names(names, (TEMPLATE,))
        else:
            prompts = prompts_of_descriptions(names, bank, PromptFormat())
        return build_classifier(encoder, prompts).scores(features)

    def _images(self, encoder: Encoder, data: ProtocolData, what: str) -> EncodedImages:
        source, options = data.splits.test, self.options
        show = rank() == 0 and not options.quiet
        with progress(f"{data.name}: {what}", len(source), show=show) as meter:
            return encoder.images(
                source,
                batch_size=options.batch_size,
                num_workers=options.num_workers,
                progress=meter.advance,
            )

    def _settings(self, places: Mapping[str, str], heads: Mapping[str, Facts]) -> dict[str, Any]:
        checksums = {name: heads[name]["tensors_sha256"] for name in heads}
        configs = {name: heads[name]["config"] for name in heads}
        settings = {"data": dict(places), "heads": checksums, "configs": configs}
        return {
            "task": self.protocol,
            "settings": {**settings, "descriptions": self.descriptions},
            "language": "en",
        }

    def _path(self, dataset: str) -> Path:
        return self.options.output / result_name(dataset, self.named, "en", self.protocol)

    def _written(
        self,
        dataset: str,
        measured: Measurement,
        settings: dict[str, Any],
        stamp: str,
        num_images: int,
        unreadable: Mapping[str, int],
    ) -> Result:
        result = make_result(
            measured,
            {},
            dataset=dataset,
            task=self.protocol,
            language="en",
            model=self.named,
            settings=settings,
            num_images=num_images,
            unreadable=dict(sorted(unreadable.items())),
        )
        if rank() == 0:
            write_result(self._path(dataset), result, stamp)
        return result


def _labels(images: EncodedImages, data: ProtocolData) -> Tensor:
    if not images.samples:
        raise ValueError(
            f"no test image of {data.name} can be read: {dict(Counter(images.unreadable.values()))}"
        )
    return torch.tensor([sample.label for sample in images.samples], dtype=torch.int64)
