"""Recipes: how a method learns, by name (the published ones) or from a YAML file."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from clipkit.heads.methods import METHODS
from clipkit.suggestions import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a method and of its optimiser."""

    method: str
    """A key of `clipkit.heads.methods.METHODS`."""
    lr: float
    """Highest learning rate."""
    batch_size: int
    """Images a step, over all ranks."""
    epochs: int | dict[int, int]
    """Passes over the images; by the number of shots up to which an entry holds, where there are several."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the method."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD has momentum 0.9."""
    weight_decay: float = 5e-4
    """Of all parameters of the head."""
    warmup_epochs: int = 1
    """At a constant rate of 1e-5."""
    min_scale: float = 0.08
    """Least share of an image's area that a training crop has."""
    flip: float = 0.5
    """Probability of a mirror image."""
    shots: int = 16
    """Training images a class, or as many as there are; 0 for all."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"no method {self.method!r}{did_you_mean(self.method, METHODS)}")
        for name in ("batch_size", "lr", "min_scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        epochs = self.epochs.values() if isinstance(self.epochs, dict) else [self.epochs]
        if not epochs or min(epochs) < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if self.shots < 0 or self.warmup_epochs < 0 or self.weight_decay < 0:
            raise ValueError("shots, warmup_epochs and weight_decay must not be negative")

    def num_epochs(self, shots: int) -> int:
        """Epochs for so many shots; 0 shots, all images, is more than any number."""
        if isinstance(self.epochs, int):
            return self.epochs
        fitting = [limit for limit in sorted(self.epochs) if shots and shots <= limit]
        return self.epochs[fitting[0] if fitting else max(self.epochs)]


def recipe_names() -> list[str]:
    """The recipes that come with clipkit."""
    found = (entry.name for entry in _folder().iterdir())
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))


def read_recipe(name: str) -> Recipe:
    """A recipe by its name, or from a `.yaml` file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such recipe (the nearest is named), or the file is no recipe.
    """
    if name.endswith((".yaml", ".yml")):
        text = Path(name).read_text(encoding="utf-8")
    elif name in recipe_names():
        text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        known = recipe_names()
        raise ValueError(f"no recipe {name!r}, there are {', '.join(known)}{did_you_mean(name, known)}")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} does not parse as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"recipe {name} must hold settings by name")
    return recipe_of(content, name)


def recipe_of(content: Mapping[str, Any], name: str) -> Recipe:
    """A recipe from its fields.

    Raises:
        ValueError: a field is unknown, missing, of another type or out of range.
    """
    fields = {entry.name: entry for entry in dataclasses.fields(Recipe)}
    types = typing.get_type_hints(Recipe)
    for key, value in content.items():
        if key not in fields:
            raise ValueError(f"recipe {name} has an unknown field {key!r}{did_you_mean(str(key), fields)}")
        if not _fits(value, types[key]):
            raise ValueError(f"recipe {name}: {key} must be {fields[key].type}, got {value!r}")
    missing = [key for key in ("method", "lr", "batch_size", "epochs") if key not in content]
    if missing:
        raise ValueError(f"recipe {name} has no {', '.join(missing)}")
    return Recipe(**content)


def _fits(value: Any, wanted: Any) -> bool:
    if typing.get_origin(wanted) is Literal:
        return value in typing.get_args(wanted)
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted in (int, str):
        return type(value) is wanted
    if isinstance(value, dict):
        return wanted == dict[str, Any] or all(type(x) is int for pair in value.items() for x in pair)
    return type(value) is int and wanted != dict[str, Any]


def _folder() -> Any:
    return files("clipkit.training.adapt") / "recipes"
