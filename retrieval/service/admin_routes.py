"""`/admin`: open the indexes anew, add and remove rows. The guard asks for the token."""

from __future__ import annotations

from functools import partial

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from .answer_forms import Added, NumRows
from .bodies import Budget, parse_json
from .engine import Engine
from .forms import AddRequest, RemoveRequest
from .openapi import answer, json_body
from .queries import part_vectors
from .refusal import Refusal


def admin_router(engine: Engine, budget: Budget) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/admin")

    @router.post("/reload", responses=answer(dict[str, NumRows]))
    async def reload() -> JSONResponse:
        """Open all indexes anew, all or none; also on SIGHUP."""
        served = await engine.reload()
        return JSONResponse({one.name: {"num_rows": one.index.num_rows} for one in served})

    @router.post("/indexes/{index}/add", openapi_extra=json_body(AddRequest), responses=answer(Added))
    async def add(index: str, request: Request) -> JSONResponse:
        """Embed items and add them with their metadata."""
        served = engine.catalog.get(index)
        async with budget.body(request) as body:
            wanted = await parse_json(AddRequest, body)
            if len(wanted.metadata) != len(wanted.items):
                raise Refusal(
                    400, f"metadata has {len(wanted.metadata)} rows for {len(wanted.items)} items: one each"
                )
            with engine.admitted(len(wanted.items)):
                vectors = np.stack(await part_vectors(engine, wanted.items, served))
                add_rows = partial(engine.catalog.storage.add, vectors=vectors, metadata=wanted.metadata)
                ids = await engine.edit(served, add_rows)
        return JSONResponse({"ids": ids, "num_rows": engine.catalog.get(index).index.num_rows})

    @router.post("/indexes/{index}/remove", openapi_extra=json_body(RemoveRequest), responses=answer(NumRows))
    async def remove(index: str, request: Request) -> JSONResponse:
        """Remove rows by id."""
        served = engine.catalog.get(index)
        async with budget.body(request) as body:
            wanted = await parse_json(RemoveRequest, body)
            await engine.edit(served, partial(engine.catalog.storage.remove, ids=wanted.ids))
        return JSONResponse({"num_rows": engine.catalog.get(index).index.num_rows})

    return router
