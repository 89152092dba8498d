"""The page, health and metrics."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, JSONResponse, Response

from .answer_forms import Status
from .engine import Engine
from .openapi import answer, content

PAGE = "page.html"


def page_router(engine: Engine) -> APIRouter:
    """The routes."""
    router = APIRouter()
    page = (resources.files(__package__) / PAGE).read_text(encoding="utf-8")
    policy = page_policy(page)

    @router.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})

    @router.get("/health", responses=answer(Status))
    async def health() -> JSONResponse:
        """200 as long as the process answers."""
        return JSONResponse({"status": "ok"})

    @router.get(
        "/ready", responses={**answer(Status), 503: {"model": Status, "description": "Shutting down."}}
    )
    async def ready() -> JSONResponse:
        """200 where new requests are welcome; 503 while shutting down."""
        if engine.is_ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready"}, 503)

    @router.get("/metrics", response_class=Response, responses=content("text/plain"))
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(engine.meters.text(), media_type=engine.meters.content_type)

    return router


def page_policy(page: str) -> str:
    """A Content-Security-Policy that runs the page's own script and style, by their hashes, and no other."""
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style)}",
            "img-src 'self' blob: data:",
            "connect-src 'self'",
            "form-action 'none'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
