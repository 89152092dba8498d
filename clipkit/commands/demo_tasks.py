"""What `clipkit evaluate` has found of the demo's model, and the sections of the page that show it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipkit.json_files import read_json
from clipkit.page import Page

CAPTIONS, VARIETIES, OBJECTS = "captions", "varieties", "objects"
RECOGNITION, GROUNDING = "recognition", "grounding"
"""Names of the entries of the demo's suite."""

DESCRIPTION_SETTINGS = {"template": "a {c}, {d}", "joiner": "none"}
"""Prompts that read like the captions that the model has learnt from."""

TaskResults = Mapping[str, Mapping[str, Any]]
"""By the name of an entry, what its result file holds."""


def suite_entries(
    *, val: Path, objects: Path, object_descriptions: Path, varieties: Path
) -> dict[str, dict[str, str]]:
    """What the suite measures.

    Args:
        val: held-out scenes with foils and boxes.
        objects: single objects in CLIP_benchmark's layout.
        object_descriptions: of their classes.
        varieties: from `write_varieties`.
    """
    return {
        CAPTIONS: {"task": "caption_choice", "data": str(val)},
        VARIETIES: {
            "task": "descriptions",
            "data": str(varieties),
            "train": str(varieties / "train"),
            "descriptions": str(varieties / "descriptions.json"),
            **DESCRIPTION_SETTINGS,
        },
        OBJECTS: {
            "task": "descriptions",
            "data": str(objects),
            "descriptions": str(object_descriptions),
            **DESCRIPTION_SETTINGS,
        },
        RECOGNITION: {"task": "region_recognition", "data": str(val)},
        GROUNDING: {"task": "region_grounding", "data": str(val)},
    }


def read_task_results(folder: Path, model_id: str) -> TaskResults:
    """The result files of a model; the folder may hold those of earlier ones."""
    found = [read_json(path) for path in sorted(folder.glob("*.json"))]
    return {one["dataset"]: one for one in found if one["model_id"] == model_id}


def figures(results: TaskResults) -> dict[str, str]:
    """The figures to print."""
    metrics = results[VARIETIES]["metrics"]
    return {
        f"top-1 over varieties of shapes {by}": f"{metrics[metric]:.1%}"
        for by, metric in (
            ("by their names", "names_acc1"),
            ("by descriptions", "acc1"),
            ("by noise in their place", "noise_acc1"),
            ("by selected descriptions", "not_zeroshot_selected_acc1"),
        )
    }


def show_captions(report: Page, results: TaskResults) -> None:
    """How well the model tells captions from those that one exchange makes false."""
    report.section(
        "Captions with one exchange",
        "How often the true caption of a scene scores higher than one that a single exchange makes false: of "
        "colours between objects (binding), of sizes, of places (cell), of a relation or a count; chance is "
        "50 %. A model of this size that pools its image by maximum knows what is in a scene but hardly "
        "where, or what belongs to what: this table is for those who want to do better.",
    )
    show_result(report, results[CAPTIONS])


def show_descriptions(report: Page, results: TaskResults) -> None:
    """Whether descriptions help, where names leave something to them and where they do not."""
    report.section(
        "Classification by descriptions",
        "Descriptions make an ensemble of prompts, and an ensemble may help whatever it says: they say "
        "something to the model as far as they beat noise of the same number. A class is described here by "
        "what one specimen shows: its colour, size, place and background.",
    )
    report.subsection(
        "Varieties of shapes: names say the shape alone",
        "A field star is red or brown, a river star yellow or green, and so on for three varieties of each "
        "shape. A specimen shows one of the two colours; its size, place and background vary within every "
        "variety, so most of a description tells nothing apart.",
    )
    show_result(report, results[VARIETIES])
    report.subsection(
        "Objects: names say colour and shape",
        "The 64 combinations of colour and shape, by the same kind of description.",
    )
    show_result(report, results[OBJECTS])


def show_result(report: Page, result: Mapping[str, Any]) -> None:
    """The notes and tables of a result file."""
    for note in result["notes"]:
        report.note(note)
    for table in result["tables"]:
        report.subsection(table["title"], table["note"])
        report.table(table["header"], table["rows"])
