"""Published accuracies of prompt learning, to stand beside one's own: ViT-B/16 of CLIP, 16 shots."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

PROTOCOLS = ("base-to-new", "cross-dataset", "domain")
AVERAGE = "average"


@cache
def _content() -> dict[str, Any]:
    text = (files("clipkit.zeroshot.protocols") / "published.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def published_rows(protocol: str, dataset: str) -> dict[str, Any]:
    """What papers print for a data set, in percent, by method.

    Args:
        protocol: one of `PROTOCOLS`.
        dataset: its name, or `average`; hyphens, spaces, underscores and case do not matter.

    Returns:
        `[base, new, harmonic mean]` of base-to-new, else a number; empty where nothing was published.

    Raises:
        ValueError: there is no such protocol.
    """
    methods = _table(protocol)["methods"]
    wanted = _key(dataset)
    return {
        method: value
        for method, values in methods.items()
        for name, value in values.items()
        if _key(name) == wanted and value is not None
    }


def published_datasets(protocol: str) -> frozenset[str]:
    """Names of the data sets that published averages are of, without case and separators.

    Raises:
        ValueError: there is no such protocol.
    """
    methods = _table(protocol)["methods"]
    return frozenset(_key(name) for values in methods.values() for name in values if name != AVERAGE)


def is_all_published(protocol: str, datasets: Iterable[str]) -> bool:
    """Whether these are just the data sets that published averages are of."""
    return frozenset(_key(name) for name in datasets) == published_datasets(protocol)


def published_source(protocol: str) -> str:
    """Where the figures of a protocol come from, and for what they hold.

    Raises:
        ValueError: there is no such protocol.
    """
    content = _content()
    return f"{_table(protocol)['source']}; {content['backbone']}, {content['shots']} shots"


def is_transductive(method: str) -> bool:
    """Whether a published method saw unlabelled images of the new classes: it is no fair comparison."""
    return method in _content()["transductive"]


def _table(protocol: str) -> dict[str, Any]:
    if protocol not in PROTOCOLS:
        raise ValueError(f"nothing is published for {protocol!r}, there are {', '.join(PROTOCOLS)}")
    table: dict[str, Any] = _content()[protocol]
    return table


def _key(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
