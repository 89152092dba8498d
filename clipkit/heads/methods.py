"""The methods of adaptation by name, and heads made from names and settings."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from clipkit.heads.base import Head
from clipkit.suggestions import did_you_mean

if TYPE_CHECKING:
    from clipkit.model import DualEncoder

METHODS = {
    "coop": "clipkit.prompts.coop:Coop",
    "cocoop": "clipkit.prompts.cocoop:Cocoop",
    "vpt": "clipkit.prompts.vpt:Vpt",
    "ivlp": "clipkit.prompts.ivlp:Ivlp",
    "maple": "clipkit.prompts.maple:Maple",
    "promptsrc": "clipkit.prompts.promptsrc:PromptSrc",
    "promptkd": "clipkit.prompts.promptkd:PromptKd",
    "tip-adapter": "clipkit.adapters.tip_adapter:TipAdapter",
    "clip-adapter": "clipkit.adapters.clip_adapter:ClipAdapter",
    "lora": "clipkit.adapters.lora:Lora",
}
"""Where the class of each method is; imported when it is asked for."""


def method_class(name: str) -> type[Head]:
    """The class of a method.

    Raises:
        ValueError: there is no such method; the nearest is named.
    """
    if name not in METHODS:
        raise ValueError(f"no method {name!r}, there are {', '.join(METHODS)}{did_you_mean(name, METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    found: type[Head] = getattr(importlib.import_module(module), attribute)
    return found


def build_head(method: str, model: DualEncoder, settings: Mapping[str, Any]) -> Head:
    """An untrained head.

    Args:
        method: a key of `METHODS`.
        model: the frozen dual encoder that it stands beside.
        settings: some of the fields of the method's `Config`; lists serve as tuples.

    Raises:
        ValueError: an unknown method or setting, a value of another type or out of range, or a model that
            the method cannot serve.
    """
    found = method_class(method)
    config = found.Config(**checked_settings(found, settings))
    return found(model, config)  # type: ignore[call-arg] # the methods' constructors take the model first


def checked_settings(method: type[Head], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a method whose names and types are right.

    Raises:
        ValueError: a name or a type is not.
    """
    types = typing.get_type_hints(method.Config)
    known = {field.name for field in dataclasses.fields(method.Config)}
    for name in settings:
        if name not in known:
            raise ValueError(
                f"{method.method} has no setting {name!r}, it has {', '.join(sorted(known))}"
                f"{did_you_mean(name, known)}"
            )
    return {name: _checked(method.method, name, value, types[name]) for name, value in settings.items()}


def _checked(method: str, name: str, value: Any, wanted: Any) -> Any:
    if typing.get_origin(wanted) is Literal:
        choices = typing.get_args(wanted)
        fits, words = value in choices, " or ".join(repr(choice) for choice in choices)
    elif typing.get_origin(wanted) is tuple:
        fits = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        value, words = tuple(value) if fits else value, "a list of texts"
    elif wanted is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        value, words = float(value) if fits else value, "a number"
    else:
        fits = type(value) is wanted
        words = {int: "an integer", bool: "true or false", str: "a text"}.get(wanted, str(wanted))
    if not fits:
        raise ValueError(f"{method} needs {words} for {name}, got {value!r}")
    return value
