"""Settings that are whole numbers are not rounded to one."""

from __future__ import annotations

import json
from types import EllipsisType, NoneType
from typing import Any, get_args

from cyclopts import App, ArgumentCollection
from cyclopts.exceptions import CoercionError


def refuse_fractions(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse `2.5`, from a flag, a file or the environment, for an int, for which cyclopts would take 2.

    One of the functions of an app's `config`, the last. `2.0` is 2.

    Raises:
        CoercionError: in the words that cyclopts has for what is no number at all.
    """
    for argument in arguments:
        if not _is_whole(argument.hint):
            continue
        for token in argument.tokens:
            if any(map(_is_fraction, _items(token.value))):
                raise CoercionError(argument=argument, token=token, target_type=int)


def _is_whole(hint: Any) -> bool:
    """Whether this is int, or holds or allows nothing else, such as `int | None` and `tuple[int, ...]`."""
    inner = [part for part in get_args(hint) if part not in (NoneType, EllipsisType, Ellipsis)]
    return all(map(_is_whole, inner)) if inner else hint is int


def _items(value: str) -> list[Any]:
    """What a value stands for: itself, or the items of a JSON list."""
    try:
        parsed = json.loads(value) if value.startswith("[") else None
    except ValueError:
        parsed = None
    return parsed if isinstance(parsed, list) else [value]


def _is_fraction(value: Any) -> bool:
    try:
        return not float(value).is_integer()
    except (TypeError, ValueError):  # no number, or 0x10: for cyclopts to read
        return False
