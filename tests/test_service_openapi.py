"""Requests of all kinds that the OpenAPI document allows, and forbids, over HTTP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from serve_jobs import TOKEN, Running, serving, small_model

schemathesis: Any = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

REFUSED: Any = pytest.importorskip("schemathesis.specs.openapi.checks").positive_data_acceptance
"""Not held: no schema says how long an embedding must be, or what a filter may be."""
EXAMPLES = os.environ.get("CLIPKIT_SCHEMA_EXAMPLES")
"""Requests an operation and mode, new ones each time, to search a change for mistakes; else the same ten."""


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(small_model(), max_results=20) as running:
        yield running


@pytest.fixture(scope="module")
def document(running: Running) -> Any:
    return schemathesis.openapi.from_url(f"{running.url}/openapi.json")


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_answers_are_those_of_the_document(document: Any, mode: str) -> None:
    """Bodies and parameters that it allows, and such as it does not."""
    for found in document.get_all_operations():
        operation = found.ok()
        if mode == "NEGATIVE" and not (operation.body or operation.path_parameters or operation.query):
            continue
        generated = operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode])

        @settings(
            max_examples=int(EXAMPLES or 10),
            derandomize=not EXAMPLES,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=generated)
        def answers(case: Any) -> None:
            case.call_and_validate(
                headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30, excluded_checks=[REFUSED]
            )

        answers()


def test_forms_of_bodies_can_be_looked_up(running: Running) -> None:
    with running.client() as client:
        found = client.get("/openapi.json").json()
    body = found["paths"]["/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = body["$ref"].removeprefix("#/components/schemas/")
    items = found["components"]["schemas"][name]["properties"]["queries"]["items"]
    assert items == {"$ref": "#/components/schemas/Part"}
    assert "Part" in found["components"]["schemas"]
    assert "422" not in found["paths"]["/image/{index}/{row_id}"]["get"]["responses"]
