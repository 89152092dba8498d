"""What tasks on classes share: names, labels that fit them, and a unit vector for each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.templates import load_templates

from ..classifier import PromptSet
from ..classnames import read_class_names
from ..descriptions import normalized_name
from ..scoring import class_means
from .base import ImageSet, TextFeatures

_MAX_NAMED = 5


def known_names(source: str, found: Sequence[str] | None, file: Path | None) -> tuple[str, ...]:
    """Names of classes by label: those of a file, else those that the data knows.

    Args:
        source: what the data is called.
        found: the names that lie beside the data.
        file: a name a line, in the order of the labels.

    Raises:
        ValueError: there are no names, or the file has fewer than the data.
        OSError: the file cannot be read.
    """
    names = tuple(found or ()) if file is None else read_class_names(file, each_once=False)
    if len(names) < 2:
        raise ValueError(f"{source} has no names of classes; give a file with a name a line as class_names")
    if len(names) < len(found or ()):
        raise ValueError(f"{file} names {len(names)} classes, {source} has {len(found or ())}")
    return names


def checked_labels(images: ImageSet, num_classes: int) -> Tensor:
    """(N,) int64 labels.

    Raises:
        ValueError: an image has no label, or one that is no class.
    """
    labels = images.labels
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{images.name}: labels must be 0 to {num_classes - 1} for {num_classes} class names, got {low} "
            f"to {high}; give a file with a name for each label as class_names"
        )
    return labels


def labels_by_name(images: ImageSet, class_names: Sequence[str]) -> Tensor:
    """(N,) int64 labels of images as places in a list of names; data without names has them in its order.

    Raises:
        ValueError: the two have different classes, or a label is none of them.
    """
    if not images.classnames:
        return checked_labels(images, len(class_names))
    own = [normalized_name(name) for name in images.classnames]
    wanted = [normalized_name(name) for name in class_names]
    labels = checked_labels(images, len(own))
    if own == wanted:
        return labels
    repeated = [name for name, count in Counter(own).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{images.name} has several classes {repeated[0]!r}, which cannot be matched by name"
        )
    there, elsewhere = set(own) - set(wanted), set(wanted) - set(own)
    if there or elsewhere:
        found = [f"{name!r} only there" for name in sorted(there)]
        found += [f"{name!r} only elsewhere" for name in sorted(elsewhere)]
        more = f" and {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
        raise ValueError(
            f"the classes of {images.name} must be those of the other data; "
            f"{', '.join(found[:_MAX_NAMED])}{more}"
        )
    place = {key: index for index, key in enumerate(wanted)}
    return torch.tensor([place[key] for key in own])[labels]


def templates_for(wanted: str | None, beside: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Templates, and a sentence on where they are from.

    Args:
        wanted: see `templates.load_templates`; None for those beside the data, if any, else the default.
        beside: those that lie beside the data.
    """
    is_beside = wanted is None and bool(beside)
    templates = tuple(beside) if is_beside else load_templates(wanted)
    shown = f"{len(templates)} templates" if len(templates) > 1 else f"the template {templates[0]!r}"
    return (
        templates,
        f"prompts: {shown}{' beside the data' if is_beside else f' of {wanted}' if wanted else ''}",
    )


def class_vectors(texts: TextFeatures, prompts: PromptSet) -> Tensor:
    """Per class, the mean of its prompts' unit vectors, normalised again (CLIP, section 3.1.4).

    Returns:
        (C, D) fp32 unit vectors.
    """
    means = class_means(texts(prompts.prompts), prompts.class_of_prompt, len(prompts.class_names))
    return F.normalize(means, dim=-1)


def notes_on_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """A sentence on names that several classes have, and which no model can tell apart."""
    repeated = [name for name, count in Counter(class_names).items() if count > 1]
    if not repeated:
        return ()
    return (
        f"{len(repeated)} names are those of several classes, such as {repeated[0]!r}, which look the same",
    )


def with_headline(metrics: Mapping[str, float], headline: str) -> dict[str, float]:
    """The metrics with one of them first."""
    return {headline: metrics[headline], **metrics}
