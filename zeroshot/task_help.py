"""What the tasks measure and what their settings mean, from their own docstrings."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Any

from .suite import TASKS
from .tasks.base import Task

_WIDTH = 100


def describe_tasks() -> str:
    """All tasks with their settings, as text."""
    return "\n".join(_describe(name, task) for name, task in TASKS.items())


def _describe(name: str, task: type[Task]) -> str:
    texts = field_docs(task)
    lines = [f"{name}: {task.summary}"]
    for field in dataclasses.fields(task):
        default = "" if field.default is dataclasses.MISSING else f" [{_shown(field.default)}]"
        text = " ".join(f"{field.name}{default}: {texts[field.name]}".split())
        lines += textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines) + "\n"


def field_docs(kind: type[Any]) -> dict[str, str]:
    """The docstring under each field of a dataclass, by the name of the field, inherited ones included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found.update(_own_field_docs(base))
    return found


def _own_field_docs(kind: type[Any]) -> dict[str, str]:
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, after in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[statement.target.id] = str(after.value.value)
    return found


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)
