"""The OpenAPI document: what bodies may hold, and what answers and refusals look like.

Routes read their bodies themselves, within a size and a time, so FastAPI cannot see of what form they are;
the forms are named here, once, under `components`. Answers are not checked when they are sent.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .forms import AddRequest, EmbeddingsRequest, KnnRequest, MetadataRequest, RemoveRequest, SearchRequest

_BODIES = (SearchRequest, EmbeddingsRequest, KnnRequest, MetadataRequest, AddRequest, RemoveRequest)
_TEMPLATE = "#/components/schemas/{model}"


class Error(BaseModel):
    """What went wrong, as OpenAI words it."""

    message: str
    type: str
    code: int


class ErrorAnswer(BaseModel):
    """The body of a refusal."""

    error: Error


REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "Refused: the message says why."},
    "5XX": {"model": ErrorAnswer, "description": "The service failed on this request, or is shutting down."},
}
"""Of every route."""


def json_body(model: type[BaseModel], *, files: str | None = None) -> dict[str, Any]:
    """What a route says of the body that it reads itself.

    Args:
        model: one of the forms.
        files: the name of the files of a multipart form, where that is understood too.
    """
    form = {"$ref": _TEMPLATE.format(model=model.__name__)}
    kinds: dict[str, Any] = {"application/json": {"schema": form}}
    if files:
        upload = {"type": "array", "items": {"type": "string", "format": "binary"}}
        parts = {
            "type": "object",
            "description": "`request` holds the fields; plain ones may also stand in the form itself.",
            "properties": {files: upload, "request": form},
        }
        kinds["multipart/form-data"] = {"schema": parts}
    return {"requestBody": {"required": True, "content": kinds}}


def answer(form: Any) -> dict[int | str, dict[str, Any]]:
    """What a route says of its success.

    Args:
        form: one of `answer_forms`, or a list or dict of it.
    """
    return {200: {"model": form, "description": "Success."}}


def content(media_type: str) -> dict[int | str, dict[str, Any]]:
    """What a route says of a success that is no JSON."""
    return {200: {"description": "Success.", "content": {media_type: {"schema": {"type": "string"}}}}}


def describe(app: FastAPI) -> None:
    """Let an application serve a document that holds the forms of its bodies."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
    _, forms = models_json_schema([(body, "validation") for body in _BODIES], ref_template=_TEMPLATE)
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    components.update(forms["$defs"])
    return schema
