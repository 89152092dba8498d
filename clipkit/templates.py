"""Prompt templates: named sets, and files of the user's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from clipkit.evaluation import DEFAULT_TEMPLATES
from clipkit.suggestions import did_you_mean

NAMED = {"openai": "OPENAI_IMAGENET_TEMPLATES", "openai-simple": "SIMPLE_IMAGENET_TEMPLATES"}
"""Sets that open_clip ships: the 80 prompts of CLIP for ImageNet, and 7 of them."""


def load_templates(source: str | None) -> tuple[str, ...]:
    """Templates by the name of a set, or from a file.

    Args:
        source: None for "a photo of a {c}."; `openai` or `openai-simple`; a text file with a template a line;
            a JSON file with a list of them; `FILE.json:NAME` for one of the lists of a JSON object, which is
            the format of CLIP_benchmark. `{}` means `{c}`.

    Returns:
        Templates in which `{c}` stands for the class name.

    Raises:
        ValueError: there is no such set, or the file holds no templates or one without a place for the name.
        FileNotFoundError: there is no such file.
    """
    if source is None:
        return DEFAULT_TEMPLATES
    if source in NAMED:
        from open_clip import zero_shot_metadata

        return tuple(template("{c}") for template in getattr(zero_shot_metadata, NAMED[source]))
    path, _, name = source.partition(".json:")
    path = f"{path}.json" if name else path
    if not Path(path).is_file():
        hint = did_you_mean(source, NAMED) if not Path(path).suffix else ""
        raise FileNotFoundError(
            f"templates {source!r} are neither a file nor one of {', '.join(NAMED)}{hint}"
        )
    text = Path(path).read_text(encoding="utf-8-sig")
    lines = _from_json(path, name, text) if path.endswith(".json") else text.splitlines()
    return _checked([line.strip() for line in lines if line.strip()], source)


def _from_json(path: str, name: str, text: str) -> Sequence[str]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if isinstance(value, dict):
        if name not in value:
            choices = ", ".join(list(value)[:8])
            what = f"has no {name!r}{did_you_mean(name, value)}" if name else "holds several sets"
            raise ValueError(f"{path} {what}; name one as {path}:NAME, such as {choices}")
        value = value[name]
    if not isinstance(value, list) or not all(isinstance(line, str) for line in value):
        raise ValueError(f"{path} must hold a list of templates, got {type(value).__name__}")
    return value


def _checked(lines: Sequence[str], source: str) -> tuple[str, ...]:
    templates = tuple(line if "{c}" in line else line.replace("{}", "{c}") for line in lines)
    lacking = [template for template in templates if "{c}" not in template]
    if not templates or lacking:
        found = f"{lacking[0]!r}" if lacking else "no line"
        raise ValueError(f"templates of {source} need {{c}} where the class name goes, got {found}")
    return templates
