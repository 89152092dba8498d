"""A suite: named tasks with their settings, from a YAML file or from the command line."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clipkit.suggestions import did_you_mean

from .tasks.base import Task
from .tasks.caption_choice import CaptionChoice
from .tasks.classification import ZeroshotClassification
from .tasks.descriptions import Descriptions
from .tasks.diagnostics import Diagnostics
from .tasks.linear_probe import LinearProbe
from .tasks.multilingual import Multilingual
from .tasks.multiple_choice import MultipleChoice
from .tasks.paired import MmvpVlm, Winoground
from .tasks.referring import Referring
from .tasks.region_boxes import RegionBoxes
from .tasks.region_grounding import RegionGrounding
from .tasks.region_recognition import RegionRecognition
from .tasks.region_retrieval import RegionRetrieval
from .tasks.retrieval import ZeroshotRetrieval
from .tasks.robustness import Robustness

TASKS: dict[str, type[Task]] = {
    "zeroshot_classification": ZeroshotClassification,
    "zeroshot_retrieval": ZeroshotRetrieval,
    "linear_probe": LinearProbe,
    "descriptions": Descriptions,
    "caption_choice": CaptionChoice,
    "winoground": Winoground,
    "mmvp_vlm": MmvpVlm,
    "multiple_choice": MultipleChoice,
    "multilingual": Multilingual,
    "region_recognition": RegionRecognition,
    "region_retrieval": RegionRetrieval,
    "region_grounding": RegionGrounding,
    "region_boxes": RegionBoxes,
    "referring": Referring,
    "robustness": Robustness,
    "diagnostics": Diagnostics,
}
"""By the name in a suite and in the result files."""

_LANGUAGE = "en"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the report."""

    name: str
    """What results are reported under: the data set."""
    task: str
    """A key of `TASKS`."""
    settings: Task
    language: str = _LANGUAGE

    def describe(self) -> dict[str, Any]:
        """All that the figures depend on besides the model and the content of the data; JSON-ready."""
        fields = dataclasses.asdict(self.settings)
        return {
            "task": self.task,
            "settings": {name: _plain(value) for name, value in fields.items()},
            "language": self.language,
        }


def read_suite(path: Path) -> list[Entry]:
    """The entries of a YAML file `NAME: {task: ..., data: ..., ...}`, in its order.

    Raises:
        ValueError: it is no YAML, an entry is incomplete, or a setting is unknown or of another type.
        OSError: it cannot be read.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_EachOnce)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} must hold entries NAME: {{task: ..., data: ...}}, got {content!r:.60}")
    try:
        return [make_entry(str(name), settings) for name, settings in content.items()]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def make_entry(name: str, settings: Any) -> Entry:
    """An entry from its settings.

    Args:
        name: what results are reported under.
        settings: `task`, perhaps `language`, and the fields of the task; values as YAML gives them.

    Raises:
        ValueError: see `read_suite`.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"{name} must be a mapping such as {{task: ..., data: ...}}, got {settings!r:.60}")
    rest = dict(settings)
    task, language = rest.pop("task", None), str(rest.pop("language", _LANGUAGE))
    if task is None:
        raise ValueError(f"{name}: name a task, one of {', '.join(TASKS)}")
    if task not in TASKS:
        hint = did_you_mean(str(task), TASKS) or f"; choose from {', '.join(TASKS)}"
        raise ValueError(f"{name}: {task!r} is no task{hint}")
    kind = TASKS[task]
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key in rest:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise ValueError(f"{name}: {task} has no setting {key!r}{hint}; it has {', '.join(known)}")
    missing = [key for key, field in known.items() if key not in rest and not _has_default(field)]
    if missing:
        raise ValueError(f"{name}: {task} needs the setting {missing[0]!r}")
    hints = typing.get_type_hints(kind)
    values = {key: _converted(f"{name}: {key}", hints[key], value) for key, value in rest.items()}
    return Entry(name=name, task=task, settings=kind(**values), language=language)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)


def _converted(where: str, hint: Any, value: Any) -> Any:
    """A value of the type of a field, or a ValueError that says what was expected."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is tuple:
        element = typing.get_args(hint)[0]
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_converted(where, element, item) for item in items)
    if hint is Path and isinstance(value, str):
        return Path(value).expanduser()
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (str, int, bool) and type(value) is hint:
        return value
    raise ValueError(f"{where} must be {_type_name(hint)}, got {value!r:.60}")


def _type_name(hint: Any) -> str:
    names = {str: "a text", Path: "a path", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(hint, str(hint))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


class _EachOnce(yaml.SafeLoader):
    """Refuses a key that occurs twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See yaml.SafeLoader."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} occurs twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)
