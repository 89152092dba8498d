"""Settings of region-text training; like the rest of the configuration free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from clipkit.suggestions import did_you_mean

LOSSES = {
    "none": (),
    "prompter": ("region_text", "grounding"),
    "query-decoder": ("region_text", "box", "image_query"),
    "roi-align": ("region_text",),
}
"""Of each head, the losses that are added to that of images and captions."""


@dataclass(frozen=True, kw_only=True)
class RegionsConfig:
    """Training on `regions: [{box, phrase}]` of the json members of the data."""

    head: Literal["none", "prompter", "query-decoder", "roi-align"] = "none"
    """What answers about parts of images: CLOC's `prompter`, GRAIN's `query-decoder`, or the control
    `roi-align`."""
    settings: dict[str, float | bool] = field(default_factory=dict)
    """Of the head, by name, such as `mlp_ratio` or `max_text_similarity`."""
    per_image: int = 4
    """Regions drawn of each image and step; an image that has fewer gives those."""

    def __post_init__(self) -> None:
        # Flags and files give numbers as floats; a number of heads is none.
        whole = {name: int(value) for name, value in self.settings.items() if float(value).is_integer()}
        numbers = {name: value for name, value in whole.items() if not isinstance(self.settings[name], bool)}
        object.__setattr__(self, "settings", {**self.settings, **numbers})
        if self.per_image < 1:
            raise ValueError(f"regions.per_image must be >= 1, got {self.per_image}")
        if self.head == "none" and self.settings:
            raise ValueError("regions.settings need regions.head, got regions.head=none")

    def check_weights(self, weights: Mapping[str, float]) -> None:
        """Refuse weights of losses that the head has not.

        Raises:
            ValueError: it names one.
        """
        losses = LOSSES[self.head]
        for name in weights:
            if not losses:
                raise ValueError(f"loss.weights.{name} needs regions.head, got regions.head=none")
            if name not in losses:
                raise ValueError(
                    f"loss.weights has no {name!r}, the losses of a {self.head} are {', '.join(losses)}"
                    f"{did_you_mean(name, losses)}"
                )
        if self.settings.get("with_grounding") is False and "grounding" in weights:
            raise ValueError(
                "loss.weights.grounding needs regions.settings.with_grounding, got with_grounding=False"
            )
