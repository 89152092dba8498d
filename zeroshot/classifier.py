"""Zero-shot classifiers: prompts of each class, their features, and scores of images by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .descriptions import DescriptionBank, PromptFormat
from .encoder import Encoder, Progress, no_progress
from .scoring import class_means


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts of classes, and how they make a score."""

    class_names: tuple[str, ...]
    """(C,)."""
    prompts: tuple[str, ...]
    """(P,), grouped by class."""
    class_of_prompt: Tensor
    """(P,) int64 in [0, C)."""
    shown: tuple[str, ...]
    """(P,), what an explanation shows of a prompt: its descriptor, or all of it."""
    renormalize: bool
    """Whether the mean of a class's prompts is made a unit vector again, so that scores are cosines; else a
    score is the mean of the cosines with the prompts."""


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """What classes look like in the joint space."""

    prompt_set: PromptSet
    prompt_features: Tensor
    """(P, D) fp32, rows L2-normalised."""
    weights: Tensor
    """(C, D) fp32."""

    def scores(self, image_features: Tensor) -> Tensor:
        """Scores of images: (N, D) unit vectors -> (N, C)."""
        return image_features @ self.weights.T


def prompts_of_names(class_names: Sequence[str], templates: Sequence[str]) -> PromptSet:
    """Classes by their names in templates (CLIP, arXiv:2103.00020, section 3.1.4).

    Args:
        class_names: C names.
        templates: prompts in which `{c}` stands for the name.
    """
    prompts = tuple(template.replace("{c}", name) for name in class_names for template in templates)
    return PromptSet(
        class_names=tuple(class_names),
        prompts=prompts,
        class_of_prompt=torch.arange(len(class_names)).repeat_interleave(len(templates)),
        shown=prompts,
        renormalize=True,
    )


def prompts_of_descriptions(
    class_names: Sequence[str], bank: DescriptionBank, prompt_format: PromptFormat
) -> PromptSet:
    """Classes by descriptions (DCLIP, arXiv:2210.07183); the bank may describe more than these classes.

    Raises:
        ValueError: a class is not in the bank, see `DescriptionBank.match`.
    """
    prompts, class_of_prompt = prompt_format.prompts(class_names, bank, allow_extra=True)
    descriptors = prompt_format.descriptors(class_names, bank, allow_extra=True)
    return PromptSet(
        class_names=tuple(class_names),
        prompts=tuple(prompts),
        class_of_prompt=class_of_prompt,
        shown=tuple(text or prompt for text, prompt in zip(descriptors, prompts, strict=True)),
        renormalize=False,
    )


def build_classifier(
    encoder: Encoder, prompt_set: PromptSet, *, progress: Progress = no_progress
) -> Classifier:
    """Encode the prompts of all classes in shared batches.

    Args:
        encoder: of the model.
        prompt_set: the classes.
        progress: called with the number of prompts that are done.
    """
    features = encoder.texts(prompt_set.prompts, progress=progress)
    means = class_means(features, prompt_set.class_of_prompt, len(prompt_set.class_names))
    return Classifier(
        prompt_set=prompt_set,
        prompt_features=features,
        weights=F.normalize(means, dim=-1) if prompt_set.renormalize else means,
    )
