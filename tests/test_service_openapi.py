"""Requests of all kinds that the OpenAPI document allows, and forbids, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance, response_schema_conformance
from serve_jobs import TOKEN, Running, serving, small_model

MAX_EXAMPLES = 10
"""Requests an operation and mode; the same ones in every run."""
WITH_INPUT = {
    "/search",
    "/image/{index}/{row_id}",
    "/v1/embeddings",
    "/knn-service",
    "/metadata",
    "/admin/indexes/{index}/add",
    "/admin/indexes/{index}/remove",
}


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(small_model(), max_results=1_000_000) as running:
        yield running


@pytest.fixture(scope="module")
def document(running: Running) -> Any:
    return schemathesis.openapi.from_url(f"{running.url}/openapi.json")


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_answers_are_those_of_the_document(document: Any, mode: str) -> None:
    """Bodies and parameters that it allows, and such as it does not, get a status and a body that it names.

    `call_and_validate` raises where they do not, and on any status of 500 or more. That all of what is
    allowed is accepted is not held: no schema says how long an embedding must be, or what a filter may be.
    """
    tried = set()
    for found in document.get_all_operations():
        operation = found.ok()
        if mode == "NEGATIVE" and not (operation.body or operation.path_parameters or operation.query):
            continue
        tried.add(operation.path)
        generated = operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode])

        @settings(
            max_examples=MAX_EXAMPLES,
            derandomize=True,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=generated)
        def answers(case: Any) -> None:
            if mode == "POSITIVE":
                _name_the_index(case)
            case.call_and_validate(
                headers={"Authorization": f"Bearer {TOKEN}"},
                timeout=30,
                excluded_checks=[positive_data_acceptance],
            )

        answers()
    assert tried >= WITH_INPUT


def _name_the_index(case: Any) -> None:
    """Else all requests end at an index that is not there."""
    if "index" in case.path_parameters:
        case.path_parameters["index"] = "captions"
    if isinstance(case.body, dict):
        for name in {"index", "indice_name"} & case.body.keys():
            case.body[name] = None


GOOD = (
    ("POST", "/search", {"text": "a red star", "k": 3}),
    ("POST", "/search", {"queries": [{"id": 1}, {"text": "a ring", "weight": -0.5}], "where": "size > 30"}),
    ("POST", "/v1/embeddings", {"input": ["a star", "a ring"]}),
    ("POST", "/v1/embeddings", {"input": "a star", "encoding_format": "base64"}),
    ("POST", "/knn-service", {"text": "a star", "num_images": 2, "num_result_ids": 4}),
    ("POST", "/metadata", {"ids": [3, 1]}),
    ("POST", "/admin/indexes/{index}/add", {"items": [{"text": "a"}], "metadata": [{"caption": "a"}]}),
    ("POST", "/admin/indexes/{index}/remove", {"ids": [40]}),
    ("POST", "/admin/reload", None),
    ("GET", "/indexes", None),
    ("GET", "/indices-list", None),
    ("GET", "/v1/models", None),
    ("GET", "/health", None),
    ("GET", "/ready", None),
)
"""Requests of which each gets a 200 with content."""


def test_answers_with_content_have_the_form_of_the_document(document: Any) -> None:
    for method, path, body in GOOD:
        parameters = {"index": "captions"} if "{index}" in path else {}
        case = document[path][method].Case(
            path_parameters=parameters, body=body, media_type="application/json"
        )
        response = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
        assert (response.status_code, bool(response.json())) == (200, True), (path, response.text)
        case.validate_response(response, checks=[response_schema_conformance])


def test_each_answer_has_a_form_that_says_something(running: Running) -> None:
    with running.client() as client:
        found = client.get("/openapi.json").json()
    answers = {
        path: operation["responses"]["200"]["content"]["application/json"]["schema"]
        for path, operations in found["paths"].items()
        for operation in operations.values()
        if "application/json" in operation["responses"]["200"]["content"]
    }
    assert answers.keys() == {path for _, path, _ in GOOD}
    assert all(set(_references(form)) or form["items"] == {"type": "string"} for form in answers.values())
    assert found["components"]["schemas"]["SearchAnswer"]["required"] == ["index", "hits"]


def test_forms_of_bodies_can_be_looked_up(running: Running) -> None:
    with running.client() as client:
        found = client.get("/openapi.json").json()
    body = found["paths"]["/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = body["$ref"].removeprefix("#/components/schemas/")
    items = found["components"]["schemas"][name]["properties"]["queries"]["items"]
    assert items == {"$ref": "#/components/schemas/Part"}
    assert "Part" in found["components"]["schemas"]
    assert "422" not in found["paths"]["/image/{index}/{row_id}"]["get"]["responses"]
    for path, media_type in (("/metrics", "text/plain"), ("/image/{index}/{row_id}", "image/*")):
        assert found["paths"][path]["get"]["responses"]["200"]["content"].keys() == {media_type}


def test_every_reference_leads_somewhere(running: Running) -> None:
    with running.client() as client:
        found = client.get("/openapi.json").json()
    references = set(_references(found))
    assert {f"#/components/schemas/{name}" for name in ("AddRequest", "KnnRequest", "Part")} <= references
    for reference in references:
        place = found
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def _references(place: Any) -> Iterator[str]:
    if isinstance(place, Mapping):
        if isinstance(place.get("$ref"), str):
            yield place["$ref"]
        for value in place.values():
            yield from _references(value)
    elif isinstance(place, Sequence) and not isinstance(place, str):
        for value in place:
            yield from _references(value)
