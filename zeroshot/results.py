"""Result files: CLIP_benchmark's JSON, with intervals and all that the report shows beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipkit.json_files import canonical_json, read_json
from clipkit.version import __version__
from clipkit.whole_file import whole_file

from .tasks.base import Measurement, Table


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """What results of a model are reported under."""

    model: str
    pretrained: str
    model_id: str

    @property
    def shown(self) -> str:
        """For the head of a column."""
        return f"{self.model} ({self.pretrained})"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a task found of a model on a data set."""

    dataset: str
    task: str
    language: str
    model: ModelName
    settings: dict[str, Any]
    """See `Entry.describe`."""
    num_images: int
    """Those that could be used, of all sources of the task."""
    unreadable: dict[str, int]
    """Images that could not be used, by reason."""
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    plain: tuple[str, ...] = ()
    """Metrics that are no fractions."""
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    outcomes: dict[str, Tensor] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """The metric that stands in the table of all results."""
        return next(iter(self.metrics))


def result_name(dataset: str, model: ModelName, language: str, task: str) -> str:
    """CLIP_benchmark's name of a result file, with `_` for whatever a file name should not hold."""
    parts = (dataset, model.pretrained, model.model, language, task)
    return "_".join(re.sub(r"[^\w.@+-]", "_", part) for part in parts) + ".json"


def fingerprint(settings: dict[str, Any], sizes: dict[str, int], model_id: str, precision: str) -> str:
    """What a result must have in common with a request to answer it.

    Args:
        settings: see `Entry.describe`; the content of files that they name counts, but not of folders.
        sizes: samples of each source.
        model_id: of the model.
        precision: of the towers.
    """
    files = {name: _content(value) for name, value in settings["settings"].items() if isinstance(value, str)}
    facts = {"settings": settings, "files": files, "sizes": sizes, "model_id": model_id}
    facts |= {"precision": precision, "version": __version__}
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()


def _content(value: str) -> str:
    """Hash of the file that a setting names, empty for other settings."""
    path = Path(value)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    except (OSError, ValueError):  # no path at all, such as a long template
        return ""


def make_result(measurement: Measurement, intervals: dict[str, tuple[float, float]], **facts: Any) -> Result:
    """A result from what a task found, the intervals of its means, and the other fields of `Result`."""
    return Result(
        metrics=measurement.metrics,
        intervals={**intervals, **measurement.intervals},
        chance=measurement.chance,
        plain=measurement.plain,
        tables=measurement.tables,
        notes=measurement.notes,
        outcomes={name: values.double().contiguous() for name, values in measurement.outcomes.items()},
        **facts,
    )


def write_result(path: Path, result: Result, stamp: str) -> None:
    """Write a result; the JSON comes last, so that where it is there, all of it is.

    Args:
        path: of the JSON; its folder is made if it is not there.
        result: what to write.
        stamp: its `fingerprint`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole_file(_outcomes_of(path)) as temporary:
            save_file(result.outcomes, temporary)
    except SafetensorError as error:
        raise OSError(f"cannot write {_outcomes_of(path)}: {error}") from None
    content = {
        "dataset": result.dataset,
        "model": result.model.model,
        "pretrained": result.model.pretrained,
        "task": result.task,
        "metrics": result.metrics,
        "language": result.language,
        "intervals": result.intervals,
        "chance": result.chance,
        "plain": result.plain,
        "num_images": result.num_images,
        "unreadable": result.unreadable,
        "notes": result.notes,
        "tables": [dataclasses.asdict(table) for table in result.tables],
        "settings": result.settings,
        "model_id": result.model.model_id,
        "clipkit_version": __version__,
        "fingerprint": stamp,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def find_result(path: Path, stamp: str) -> Result | None:
    """The result in a file, if it answers the same request.

    Args:
        path: where it would be.
        stamp: the `fingerprint` that it must have.
    """
    try:
        content = read_json(path)
        if content.get("fingerprint") != stamp:
            return None
        return _from_json(content, load_file(_outcomes_of(path)))
    except (FileNotFoundError, ValueError, KeyError):
        return None  # not there, of another tool, or damaged: it is made anew


def read_results(folder: Path) -> list[Result]:
    """All results of a folder, by name; files of other tools are left out."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        if "fingerprint" in content:
            found.append(_from_json(content, load_file(_outcomes_of(path))))
    return found


def _from_json(content: dict[str, Any], outcomes: dict[str, Tensor]) -> Result:
    return Result(
        dataset=content["dataset"],
        task=content["task"],
        language=content["language"],
        model=ModelName(
            model=content["model"], pretrained=content["pretrained"], model_id=content["model_id"]
        ),
        settings=content["settings"],
        num_images=content["num_images"],
        unreadable=content["unreadable"],
        metrics=content["metrics"],
        intervals={name: (low, high) for name, (low, high) in content["intervals"].items()},
        chance=content["chance"],
        plain=tuple(content["plain"]),
        tables=tuple(_table(table) for table in content["tables"]),
        notes=tuple(content["notes"]),
        outcomes=outcomes,
    )


def _table(content: dict[str, Any]) -> Table:
    rows = tuple(tuple(row) for row in content["rows"])
    return Table(title=content["title"], header=tuple(content["header"]), rows=rows, note=content["note"])


def _outcomes_of(path: Path) -> Path:
    return path.with_suffix(".outcomes.safetensors")
