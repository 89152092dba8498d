"""From the options of `clipkit classify` to pictures, prompts and the question that is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import clipkit
from clipkit.console import progress
from clipkit.data.image_files import ImageFiles, find_images
from clipkit.data.problems import describe_counts
from clipkit.data.prompted_images import Region
from clipkit.feature_cache import FeatureCache
from clipkit.regions.answers import region_head_of
from clipkit.templates import load_templates

from .box_files import BoxFile, read_boxes
from .classifier import Classifier, PromptSet, build_classifier, prompts_of_descriptions, prompts_of_names
from .classnames import checked_class_names, parse_class_names, read_class_names
from .descriptions import DescriptionBank, PromptFormat
from .encoder import Encoder
from .head_encoder import HeadEncoder
from .questions import ByHead, ByPrompts, InBoxes, Question, WithRegions
from .region_encoder import RegionEncoder
from .stored_heads import read_head

if TYPE_CHECKING:
    from .cli import ClassifyOptions


@dataclass(frozen=True, kw_only=True)
class AskedBoxes:
    """The boxes of the pictures that are asked about."""

    file: BoxFile
    regions: Sequence[tuple[Region, ...]]
    """Of each picture, one or more."""
    num_without: int
    """Other pictures."""

    def to_text(self) -> str:
        """How they were understood, and what was left out."""
        unit = "pixels" if self.file.in_pixels else "fractions of the picture"
        parts = [f"{sum(map(len, self.regions))} boxes in {unit}"]
        if self.num_without:
            parts.append(f"{self.num_without} pictures without boxes")
        if self.file.problems:
            parts.append(f"left out: {describe_counts(self.file.problems)}")
        return "; ".join(parts)


def open_files(places: Sequence[str], options: ClassifyOptions) -> tuple[ImageFiles, AskedBoxes | None]:
    """The pictures, and the boxes of each if boxes are asked about.

    Args:
        places: where pictures are; none for those of the file of boxes.
        options: of the command.
    """
    if options.boxes is None:
        return ImageFiles(find_images(places)), None
    file = read_boxes(options.boxes)
    if not any(file.regions.values()):
        raise ValueError(f"{options.boxes} has no usable box (left out: {describe_counts(file.problems)})")
    paths = find_images(places) if places else file.paths()
    regions = file.of(paths) if places else list(file.regions.values())
    asked = [(path, own) for path, own in zip(paths, regions, strict=True) if own]
    return ImageFiles([path for path, _ in asked]), AskedBoxes(
        file=file, regions=[own for _, own in asked], num_without=len(paths) - len(asked)
    )


def read_prompts(options: ClassifyOptions) -> PromptSet | None:
    """Prompts of the classes that were asked for, None for those that come with a head or as features."""
    if options.head is not None:
        return None
    bank = None if options.descriptions is None else DescriptionBank.read(options.descriptions)
    names = class_names(options)
    if not names:
        assert bank is not None
        names = checked_class_names(bank.names, str(options.descriptions))
    if bank is None:
        return prompts_of_names(names, load_templates(options.templates))
    prompt_format = PromptFormat() if options.templates is None else PromptFormat(options.templates)
    return prompts_of_descriptions(names, bank, prompt_format)


def class_names(options: ClassifyOptions) -> tuple[str, ...]:
    """The classes that were named, none where they come with something else."""
    if options.classes is not None:
        return parse_class_names(options.classes)
    return () if options.classes_file is None else read_class_names(options.classes_file)


def build_question(
    prompt_set: PromptSet | None, boxes: AskedBoxes | None, options: ClassifyOptions
) -> Question:
    """Load the model, and encode the classes."""
    model = clipkit.load(options.model)
    cache = None if options.no_cache else FeatureCache.of_model(model.model_id, model.embed_dim)
    if options.has_head_of_model:
        assert options.head is not None
        adapted = model.with_head(options.head)
        names = class_names(options) or adapted.class_names
        return ByHead(HeadEncoder(adapted, cache), adapted, names)
    encoder = RegionEncoder(model, cache)
    if boxes is not None:
        region_head_of(model)  # before anything is encoded
        return InBoxes(encoder, _classifier(encoder, prompt_set, options), boxes.regions)
    classifier = _classifier(encoder, prompt_set, options)
    if options.image_weight is not None:
        return WithRegions(encoder, classifier, options.image_weight)
    return ByPrompts(encoder, classifier)


def _classifier(encoder: Encoder, prompt_set: PromptSet | None, options: ClassifyOptions) -> Classifier:
    """From the prompts, or as it is stored."""
    if prompt_set is None:
        assert options.head is not None
        return read_head(options.head, embed_dim=encoder.model.embed_dim)
    with progress("prompts", len(prompt_set.prompts)) as meter:
        return build_classifier(encoder, prompt_set, progress=meter.advance)
