"""`/search`, `/indexes` and `/image`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from clipkit.images import ImageError

from .answer_forms import IndexFacts, SearchAnswer
from .answers import hits
from .bodies import Budget, form_model, parse_form, parse_json
from .engine import Engine
from .forms import SearchRequest
from .openapi import answer, content, json_body
from .pictures import allowed_path, read_image_file, thumbnail
from .queries import query_vector
from .refusal import Refusal

_FILE_FIELD = "image"


def search_router(engine: Engine, budget: Budget) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.post(
        "/search",
        openapi_extra=json_body(SearchRequest, files=_FILE_FIELD),
        responses=answer(SearchAnswer),
    )
    async def search(request: Request) -> JSONResponse:
        """The rows nearest to a text, a picture, an embedding, a row, or a weighted sum of them.

        JSON, or a form of the same fields with files named `image`.
        """
        async with budget.body(request) as body:
            return JSONResponse(await _search(engine, *await _parse(request, body, engine)))

    @router.get("/indexes", responses=answer(list[IndexFacts]))
    async def indexes() -> JSONResponse:
        """What can be searched."""
        return JSONResponse(
            [
                {
                    "name": served.name,
                    "num_rows": served.index.num_rows,
                    "embed_dim": served.index.embed_dim,
                    "columns": list(served.index.columns),
                    "model_id": served.index.model_id,
                }
                for served in engine.catalog.all()
            ]
        )

    @router.get("/image/{index}/{row_id}", response_class=Response, responses=content("image/*"))
    async def image(index: str, row_id: int, small: bool = False) -> Response:
        """The image file of a row, if it lies below an `--image-root` folder; `small` makes a JPEG of it."""
        served = engine.catalog.get(index)
        with engine.admitted(1):
            (row,) = await engine.metadata(served, [row_id])
            data, media_type = await engine.in_pool(_file, engine, row)
            if small:
                data, media_type = await engine.in_pool(_small, engine, data), "image/jpeg"
        return Response(data, media_type=media_type, headers={"Cache-Control": "private, max-age=300"})

    return router


async def _parse(request: Request, body: bytes, engine: Engine) -> tuple[SearchRequest, list[bytes]]:
    """What is asked for, and the pictures that came as files."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await parse_json(SearchRequest, body), []
    form = await parse_form(request, body, engine.settings.max_inputs)
    wrong = [name for name, _ in form.files if name != _FILE_FIELD]
    if wrong:
        raise Refusal(400, f"a file is named {_FILE_FIELD}, got {wrong[0]!r}")
    return form_model(SearchRequest, form.fields), [data for _, data in form.files]


async def _search(engine: Engine, wanted: SearchRequest, files: list[bytes]) -> dict[str, Any]:
    settings = engine.settings
    if wanted.k > settings.max_results:
        raise Refusal(400, f"k is at most {settings.max_results}, got {wanted.k}")
    if wanted.where and len(wanted.where) > settings.max_text_chars:
        raise Refusal(400, f"where has at most {settings.max_text_chars} characters")
    served = engine.catalog.get(wanted.index)
    parts = wanted.parts()
    with engine.admitted(len(parts) + len(files) + 1):
        vector = await query_vector(engine, parts, served, files=files, file_weight=wanted.image_weight)
        ids, similarities = await engine.search(served, vector, wanted.k, wanted.where or None)
        rows = await engine.metadata(served, ids, wanted.columns)
    return {"index": served.name, "hits": hits(engine, served, ids, similarities, rows)}


def _file(engine: Engine, row: dict[str, Any]) -> tuple[bytes, str]:
    path = allowed_path(row, engine.settings.image_roots)
    try:
        if path is None:
            raise OSError("not below a root")
        return read_image_file(path, engine.settings.max_upload_bytes)
    except (OSError, ValueError) as error:
        # One answer for all: what is and is not on the disk is nobody's business.
        raise Refusal(404, "there is no picture to show for this row") from error


def _small(engine: Engine, data: bytes) -> bytes:
    try:
        return thumbnail(data, engine.settings.max_image_pixels)
    except ImageError as error:
        raise Refusal(404, "there is no picture to show for this row") from error
