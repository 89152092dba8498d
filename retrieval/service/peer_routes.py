"""The API of clip-retrieval's back end, so that its ClipClient and its front end work."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from .answer_forms import KnnHit, MetadataRow
from .answers import json_safe
from .bodies import Budget, parse_json
from .catalog import Served
from .engine import Engine
from .forms import KnnRequest, MetadataRequest, Part
from .openapi import answer, json_body
from .pictures import allowed_path, read_image_file, thumbnail
from .queries import query_vector
from .refusal import Refusal
from .towers import Vector

_DUPLICATE = 0.94
"""Cosine above which clip-retrieval takes two results for one."""


def peer_router(engine: Engine, budget: Budget) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.post("/knn-service", openapi_extra=json_body(KnnRequest), responses=answer(list[KnnHit]))
    async def knn_service(request: Request) -> JSONResponse:
        """`[{id, similarity, and the metadata of the first num_images}]`."""
        async with budget.body(request) as body:
            return JSONResponse(await _knn(engine, await parse_json(KnnRequest, body)))

    @router.post("/metadata", openapi_extra=json_body(MetadataRequest), responses=answer(list[MetadataRow]))
    async def metadata(request: Request) -> JSONResponse:
        """`[{id, metadata}]`."""
        async with budget.body(request) as body:
            wanted = await parse_json(MetadataRequest, body)
            if len(wanted.ids) > engine.settings.max_results:
                raise Refusal(400, f"at most {engine.settings.max_results} ids, got {len(wanted.ids)}")
            served = engine.catalog.get(wanted.indice_name)
            with engine.admitted(1):
                rows = await _rows(engine, served, wanted.ids)
            return JSONResponse(
                [{"id": row_id, "metadata": row} for row_id, row in zip(wanted.ids, rows, strict=True)]
            )

    @router.get("/indices-list", responses=answer(list[str]))
    async def indices_list() -> JSONResponse:
        """The names of the indexes."""
        return JSONResponse([served.name for served in engine.catalog.all()])

    return router


async def _knn(engine: Engine, wanted: KnnRequest) -> list[dict[str, Any]]:
    if wanted.use_mclip:
        raise Refusal(400, "use_mclip: this service has one model, and no mclip")
    k = wanted.num_result_ids or max(wanted.num_images, 1)
    if k > engine.settings.max_results:
        raise Refusal(400, f"num_result_ids is at most {engine.settings.max_results}, got {k}")
    served = engine.catalog.get(_index_name(engine, wanted))
    with engine.admitted(2):
        vector = await query_vector(engine, [_query(wanted)], served)
        ids, similarities = await engine.search(served, vector, k, None)
        if wanted.deduplicate and ids:
            kept = distinct(await engine.vectors(served, ids))
            ids, similarities = [ids[place] for place in kept], [similarities[place] for place in kept]
        rows: list[dict[str, Any]] = await _rows(engine, served, ids[: wanted.num_images])
    rows += [{} for _ in ids[len(rows) :]]
    return [
        {**row, "id": row_id, "similarity": similarity}
        for row_id, similarity, row in zip(ids, similarities, rows, strict=True)
    ]


def distinct(vectors: Vector) -> list[int]:
    """The first of each group of rows that are linked by cosines above 0.94, in their order.

    Args:
        vectors: (N, D), best first; need not be normalised.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    is_near = unit @ unit.T > _DUPLICATE
    kept: list[int] = []
    is_seen = np.zeros(len(unit), bool)
    for place in range(len(unit)):
        if is_seen[place]:
            continue
        kept.append(place)
        front = np.zeros(len(unit), bool)
        front[place] = True
        while front.any():
            is_seen |= front
            front = is_near[front].any(axis=0) & ~is_seen
    return kept


def _index_name(engine: Engine, wanted: KnnRequest) -> str | None:
    """An index has one kind of vectors here and two in clip-retrieval: those of texts are `NAME-text`."""
    if wanted.modality == "image":
        return wanted.indice_name
    return f"{wanted.indice_name or engine.catalog.get(None).name}-text"


def _query(wanted: KnnRequest) -> Part:
    """The first kind that is given, in clip-retrieval's order."""
    if wanted.text:
        return Part(text=wanted.text)
    if wanted.image is not None:
        return Part(image=wanted.image)
    if wanted.image_url is not None:
        return Part(image_url=wanted.image_url)
    if wanted.embedding_input is not None:
        return Part(embedding=wanted.embedding_input)
    raise Refusal(400, "give one of text, image, image_url, embedding_input")


async def _rows(engine: Engine, served: Served, ids: Sequence[int]) -> list[dict[str, Any]]:
    """Metadata of rows, with a small JPEG in base64 where the picture's file may be sent."""
    rows = [json_safe(row) for row in await engine.metadata(served, ids)]
    if engine.settings.image_roots:
        await engine.in_pool(_put_images, engine, rows)
    return rows


def _put_images(engine: Engine, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        path = allowed_path(row, engine.settings.image_roots)
        if path is None:
            continue
        try:
            data, _ = read_image_file(path, engine.settings.max_upload_bytes)
            row["image"] = base64.b64encode(thumbnail(data, engine.settings.max_image_pixels)).decode()
        except (OSError, ValueError):
            continue
