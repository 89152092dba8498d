"""`/v1/embeddings` and `/v1/models` of OpenAI, for texts and pictures."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from .answer_forms import EmbeddingsAnswer, ModelsAnswer
from .bodies import Budget, parse_json
from .engine import Engine
from .forms import EmbeddingsRequest, Part
from .openapi import answer, json_body
from .queries import part_vectors
from .refusal import Refusal
from .towers import Vector


def openai_router(engine: Engine, budget: Budget, model_name: str) -> APIRouter:
    """The routes.

    Args:
        engine: what encodes.
        budget: of bodies.
        model_name: what the model is called; its id is understood too.
    """
    router = APIRouter(prefix="/v1")
    names = (model_name, engine.towers.model_id)

    @router.post(
        "/embeddings", openapi_extra=json_body(EmbeddingsRequest), responses=answer(EmbeddingsAnswer)
    )
    async def embeddings(request: Request) -> JSONResponse:
        """Unit vectors of texts, or of pictures as `data:` URLs (and http URLs where they are allowed)."""
        async with budget.body(request) as body:
            wanted = await parse_json(EmbeddingsRequest, body)
            return JSONResponse(await _embed(engine, wanted, names))

    @router.get("/models", responses=answer(ModelsAnswer))
    async def models() -> JSONResponse:
        """The one model."""
        model = {"id": model_name, "object": "model", "created": 0, "owned_by": "clipkit"}
        return JSONResponse({"object": "list", "data": [{**model, "model_id": engine.towers.model_id}]})

    return router


async def _embed(engine: Engine, wanted: EmbeddingsRequest, names: tuple[str, str]) -> dict[str, Any]:
    if wanted.model is not None and wanted.model not in names:
        raise Refusal(404, f"there is no model {wanted.model!r}; this is {names[0]}")
    if wanted.dimensions not in (None, engine.towers.embed_dim):
        raise Refusal(
            400, f"dimensions: the model's embeddings have {engine.towers.embed_dim}, they are not cut"
        )
    inputs = [wanted.input] if isinstance(wanted.input, str) else wanted.input
    if not inputs:
        raise Refusal(400, "input is empty")
    parts = [_part(text, wanted.modality) for text in inputs]
    texts = [part.text for part in parts if part.text is not None]
    with engine.admitted(len(parts)):
        vectors, num_tokens = await asyncio.gather(
            part_vectors(engine, parts, None), engine.count_tokens(texts[: engine.settings.max_inputs])
        )
    data = [
        {"object": "embedding", "index": place, "embedding": _encoded(vector, wanted.encoding_format)}
        for place, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return {"object": "list", "data": data, "model": names[0], "usage": usage}


def _part(text: str, modality: str | None) -> Part:
    """A `data:` URL of a picture is a picture, unless the request says that everything is text."""
    is_data = text.startswith("data:")
    if modality == "image" and not is_data:
        return Part(image_url=text)
    if modality == "image" or (modality is None and text.startswith("data:image/")):
        return Part(image=text)
    return Part(text=text)


def _encoded(vector: Vector, encoding_format: str) -> str | list[float]:
    if encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    values: list[float] = vector.tolist()
    return values
