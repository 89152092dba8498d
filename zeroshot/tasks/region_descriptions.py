"""Description classification with the regions that a query decoder finds (GRAIN), beside its controls."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipkit.metrics import label_ranks

from ..controls import WaffleNoise, alphabet_of, matched_count
from ..descriptions import DescriptionBank, PromptFormat
from ..region_source import RegionSet, no_queries
from ..scoring import mean_scores, region_scores
from .base import Measurement, TextFeatures
from .compared import Comparison, Method
from .description_controls import ControlOptions

_HEADER = ("scores", "a class", "top-1 [95 %]", "over seeds", "mixed minus this [95 %]")
_NOTE = (
    "The image query's cosines, and each region that a query found with the descriptor that fits it best "
    "(arXiv:2412.04429); mixed, {weight:g} of the first and {rest:g} of the second. Noise is the same mix "
    "with as many random descriptors."
)


def compare_regions(
    found: RegionSet,
    labels: Tensor,
    bank: DescriptionBank,
    prompt_format: PromptFormat,
    texts: TextFeatures,
    image_weight: float,
    options: ControlOptions,
) -> Measurement:
    """Top-1 by the image query and by regions, alone and mixed.

    Args:
        found: with what queries found in each image.
        labels: (N,) of the same images.
        bank: of the classes, in the order of the labels.
        prompt_format: of descriptions and noise alike.
        texts: of the model.
        image_weight: of the image query, in [0, 1].
        options: how noise is drawn.

    Returns:
        `regions_mixed_acc1`, `image_query_acc1`, `regions_alone_acc1`, `noise_regions_mixed_acc1`, and the
        differences of the first to the others.

    Raises:
        ValueError: the model has no query decoder.
    """
    if found.lacking:
        raise ValueError(no_queries(found.lacking))
    queries = [image.queries for image in found.images if image.queries is not None]
    images = torch.stack([one.image_feature for one in queries])
    regions = torch.stack([one.features for one in queries])

    def right(banks: Sequence[DescriptionBank], weight: float, form: PromptFormat) -> Tensor:
        rows = []
        for one in banks:
            prompts, class_of_prompt = form.prompts(one.names, one)
            features, num_classes = texts(prompts), len(one.names)
            whole = mean_scores(images, features, class_of_prompt, num_classes)
            scores = region_scores(whole, regions, features, class_of_prompt, weight)
            rows.append((label_ranks(scores, labels) == 0).double())
        return torch.stack(rows)

    noise_form = prompt_format if "{c}" in prompt_format.template else PromptFormat()
    noise = [
        WaffleNoise(matched_count(bank), seed, options.words, alphabet_of(bank)).bank(bank.names)
        for seed in range(options.seeds)
    ]
    num_prompts = f"{len(prompt_format.prompts(bank.names, bank)[0]) / len(bank.names):.3g}"
    num_noise = f"{len(noise_form.prompts(bank.names, noise[0])[0]) / len(bank.names):.3g}"

    def of_bank(shown: str, weight: float) -> Method:
        return Method(shown=shown, detail=num_prompts, right=right([bank], weight, prompt_format))

    methods = {
        "regions_mixed_acc1": of_bank("image query and regions mixed", image_weight),
        "image_query_acc1": of_bank("image query alone", 1.0),
        "regions_alone_acc1": of_bank("regions alone", 0.0),
        "noise_regions_mixed_acc1": Method(
            shown="noise, mixed", detail=num_noise, right=right(noise, image_weight, noise_form)
        ),
    }
    mixed, *others = methods
    pairs = {f"regions_mixed_difference_to_{name.removesuffix('_acc1')}": (mixed, name) for name in others}
    comparison = Comparison(methods=methods, pairs=pairs)
    note = _NOTE.format(weight=image_weight, rest=1 - image_weight)
    return comparison.measurement(
        chance=1 / len(bank.names),
        tables=[comparison.table("With the regions that queries found", _HEADER, note)],
        notes=(),
    )
