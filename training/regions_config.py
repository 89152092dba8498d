"""Settings of region-text training; like the rest of the configuration free of torch."""

from __future__ import annotations

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
    weights: dict[str, float] = field(default_factory=dict)
    """Of the losses `region_text`, `grounding`, `box` and `image_query`, by name; 1 where none is given."""

    def __post_init__(self) -> None:
        # Flags and files give numbers as floats; a number of heads is none.
        whole = {name: int(value) for name, value in self.settings.items() if float(value).is_integer()}
        numbers = {name: value for name, value in whole.items() if not isinstance(self.settings[name], bool)}
        object.__setattr__(self, "settings", {**self.settings, **numbers})
        if self.per_image < 1:
            raise ValueError(f"regions.per_image must be >= 1, got {self.per_image}")
        if self.head == "none" and (self.settings or self.weights):
            raise ValueError("regions.settings and regions.weights need regions.head, got regions.head=none")
        for name, weight in self.weights.items():
            if name not in LOSSES[self.head]:
                there = ", ".join(LOSSES[self.head])
                raise ValueError(
                    f"regions.weights has no {name!r}, the losses of a {self.head} are {there}"
                    f"{did_you_mean(name, LOSSES[self.head])}"
                )
            if weight < 0:
                raise ValueError(f"regions.weights.{name} must be >= 0, got {weight}")
        if self.settings.get("with_grounding") is False and "grounding" in self.weights:
            raise ValueError(
                "regions.weights.grounding needs regions.settings.with_grounding, got with_grounding=False"
            )

    def weight(self, loss: str) -> float:
        """The factor of a loss."""
        return self.weights.get(loss, 1.0)

    @property
    def is_trained(self) -> bool:
        """Whether regions take part in the run: there is a head, and a loss of it counts."""
        return any(self.weight(loss) > 0 for loss in LOSSES[self.head])
