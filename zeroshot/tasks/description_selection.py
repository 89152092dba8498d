"""Selected descriptions (arXiv:2412.11917) beside unselected ones and beside selected noise.

The selection looks at labelled images, so none of these figures is zero-shot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..descriptions import DescriptionBank, PromptFormat
from ..selection import DescriptionPool
from .base import Measurement, Table, TextFeatures
from .compared import Comparison, Labelled, Method, verdict
from .counts import percent
from .selection_bench import NAMED, Bench, SelectionOptions, Swept, as_assigned, random_pool, selected

PREFIX = "not_zeroshot"
"""With which the names of all metrics begin."""

_HEADER = ("descriptions", "weight of the name", "top-1 [95 %]", "over seeds", "selected minus this [95 %]")
_SHOWN = {
    "selected": "selected",
    "assigned": "as assigned, among all classes",
    "assigned_likely": "as assigned, among the likely classes",
    "random": "random characters, selected",
}
"""Part of a metric's name -> what the report says."""
_CALLED = {
    "assigned": "all assigned descriptions among all classes",
    "assigned_likely": "the same among the likely classes",
    "random": "random characters that were selected in the same way",
}
"""The same in a sentence."""
_SHOWN_NAMED = {"named": "in prompts with the name", "named_max": "in prompts with the name, the best counts"}
_SHOWN_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def compare_selection(
    train: Labelled,
    test: Labelled,
    bank: DescriptionBank,
    prompt_format: PromptFormat,
    texts: TextFeatures,
    options: SelectionOptions,
) -> Measurement:
    """Top-1 by selected descriptions, by all of them, and by random characters selected in the same way.

    Args:
        train: labelled images to select on; at least one of each class.
        test: images to classify.
        bank: of the classes, in the order of the labels.
        prompt_format: of captions, which have no descriptor, and of prompts that hold both.
        texts: of the model.
        options: of the selection.

    Returns:
        Accuracies and differences whose names begin with `PREFIX`, and two tables.
    """
    bench = Bench.of(train, test, bank, prompt_format, texts, options)
    real = bench.candidates(DescriptionPool.of(bank.descriptors))
    noise = [bench.candidates(random_pool(real.pool, bank, seed)) for seed in range(options.seeds)]
    sweeps = {
        "selected": [bench.unnamed(real, selected)],
        "assigned": [bench.unnamed_everywhere(real)],
        "assigned_likely": [bench.unnamed(real, as_assigned)],
        "random": [bench.unnamed(one, selected) for one in noise],
    }
    methods = {source: _swept_method(source, of_seed) for source, of_seed in sweeps.items()}
    pairs = {f"difference_to_{other}": ("selected", other) for other in list(methods)[1:]}
    if "{c}" in prompt_format.template:
        named = {
            "selected": [bench.named(real, selected)],
            "assigned_likely": [bench.named(real, as_assigned)],
            "random": [bench.named(one, selected) for one in noise],
        }
        for kind in NAMED:
            methods |= {
                f"{kind}_{source}": _named_method(source, kind, rows) for source, rows in named.items()
            }
            for other in list(named)[1:]:
                pairs[f"{kind}_difference_to_{other}"] = (f"{kind}_selected", f"{kind}_{other}")
    comparison = Comparison(
        methods={_metric(name): method for name, method in methods.items()},
        pairs={f"{PREFIX}_{name}": (_metric(mine), _metric(other)) for name, (mine, other) in pairs.items()},
    )
    title = "Selection of descriptions, not zero-shot"
    return comparison.measurement(
        chance=1 / len(bank.names),
        tables=[comparison.table(title, _HEADER, _note(bench)), _sweep_table(sweeps)],
        notes=[_verdict(comparison)],
    )


def _metric(name: str) -> str:
    return f"{PREFIX}_{name}_acc1"


def _swept_method(source: str, of_seed: Sequence[Swept]) -> Method:
    weights = sorted({one.weight for one in of_seed})
    return Method(
        shown=_SHOWN[source],
        right=torch.stack([one.right for one in of_seed]),
        detail=f"{weights[0]:g}" if len(weights) == 1 else f"{weights[0]:g} to {weights[-1]:g}",
    )


def _named_method(source: str, kind: str, rows: Sequence[Mapping[str, Tensor]]) -> Method:
    return Method(
        shown=f"{_SHOWN[source]}, {_SHOWN_NAMED[kind]}", right=torch.stack([row[kind] for row in rows])
    )


def _sweep_table(sweeps: Mapping[str, Sequence[Swept]]) -> Table:
    """Accuracy by weight, in the mean over seeds, and the best on the test images."""
    header, columns = ["weight of the name"], []
    for source in ("selected", "assigned", "random"):
        of_seed = sweeps[source]
        header += [f"{_SHOWN[source]}: training images", "test images"]
        columns.append([_mean(one.on_train[weight] for one in of_seed) for weight in _SHOWN_WEIGHTS] + [""])
        columns.append([_mean(one.on_test[weight] for one in of_seed) for weight in _SHOWN_WEIGHTS])
        columns[-1].append(_mean(max(one.on_test.values()) for one in of_seed))
    labels = [f"{weight:g}" for weight in _SHOWN_WEIGHTS] + ["best on the test images"]
    return Table(
        title="Weights of the name, not zero-shot",
        header=tuple(header),
        rows=tuple(zip(labels, *columns, strict=True)),
        note="The last row has chosen among all weights by the answers, as published figures do: it is there "
        "for comparison with those.",
    )


def _mean(shares: Iterable[float]) -> str:
    values = list(shares)
    return percent(sum(values) / len(values))


def _note(bench: Bench) -> str:
    options = bench.options
    return (
        f"Selected on {len(bench.train.labels):,} labelled images: at most {options.num_kept} descriptions "
        f"that tell the {options.num_neighbours} likeliest classes by name apart. They name no class; "
        "their mean is added to the cosine with one caption that does, by the weight that is best on the "
        "training images. Random characters are as many as the descriptions, and a mean over seeds. "
        "Differences are between equal ways of scoring, in points over the same images."
    )


def _verdict(comparison: Comparison) -> str:
    return verdict(
        "Selected descriptions help (not zero-shot)",
        "Selected descriptions do not help (not zero-shot)",
        {
            _CALLED[other]: comparison.difference(f"{PREFIX}_difference_to_{other}")
            for other in ("assigned", "assigned_likely", "random")
        },
    )
