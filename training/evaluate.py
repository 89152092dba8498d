"""Evaluation during a run, on the user's own data and spread over all ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch

from clipkit.data.evaluation import EvalSource, build_eval_loader, open_eval_source
from clipkit.data.skips import SkipReport
from clipkit.evaluation import DEFAULT_TEMPLATES, EncodedSet, class_features, encode_set

from .config import TrainConfig
from .data.loader import sample_keys
from .export import averaged_weights
from .parallel import unsharded
from .step import Trainer, autocast


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """The evaluation sets of a run."""

    retrieval: list[EvalSource]
    zero_shot: list[EvalSource]
    skip_reports: dict[str, SkipReport] = field(default_factory=dict)
    """What the latest evaluation could not use, by set."""

    def __bool__(self) -> bool:
        return bool(self.retrieval or self.zero_shot)


def open_evaluations(config: TrainConfig) -> Evaluations:
    """Index the evaluation sets, so that a wrong location is found before training.

    Raises:
        ValueError: a set has nothing usable or no class names.
        FileNotFoundError: a location matches nothing.
    """
    keys = sample_keys(config.data)
    return Evaluations(
        retrieval=[
            open_eval_source(n, place, "retrieval", keys) for n, place in config.eval.retrieval.items()
        ],
        zero_shot=[
            open_eval_source(n, place, "zero_shot", keys) for n, place in config.eval.zero_shot.items()
        ],
    )


def evaluate(trainer: Trainer, evaluations: Evaluations) -> dict[str, float]:
    """Metrics `NAME/METRIC` of all sets, the same on every rank.

    With a weight average it is the average that is measured.
    """
    results: dict[str, float] = {}
    with averaged_weights(trainer), unsharded(trainer.model):
        for source in evaluations.retrieval:
            metrics = _encode(trainer, evaluations, source, with_text=True).retrieval_metrics()
            results |= {f"{source.name}/{name}": value for name, value in metrics.items()}
        for source in evaluations.zero_shot:
            metrics = _zero_shot(trainer, evaluations, source)
            results |= {f"{source.name}/{name}": value for name, value in metrics.items()}
    return results


def _zero_shot(trainer: Trainer, evaluations: Evaluations, source: EvalSource) -> dict[str, float]:
    encoded = _encode(trainer, evaluations, source, with_text=False)
    classes = class_features(
        trainer.model.eval(),
        source.classnames,
        source.templates or DEFAULT_TEMPLATES,
        device=trainer.device,
        autocast=partial(autocast, trainer),
    )
    trainer.model.train()
    return encoded.classification_metrics(classes)


def _encode(trainer: Trainer, evaluations: Evaluations, source: EvalSource, *, with_text: bool) -> EncodedSet:
    loader = build_eval_loader(
        source,
        transform=trainer.model.preprocess(dtype=torch.uint8),
        batch_size=trainer.config.eval.batch_size,
        num_workers=trainer.config.data.num_workers,
    )
    encoded = encode_set(
        trainer.model,
        loader,
        device=trainer.device,
        autocast=partial(autocast, trainer),
        with_text=with_text,
    )
    loader.gather_skips()
    report = evaluations.skip_reports[source.name] = loader.skip_report()
    if len(encoded.index) == 0:
        raise ValueError(f"nothing in evaluation set {source.name!r} is usable: {report.summary()}")
    return encoded
