"""The application: routes, what stands before them, and what errors look like."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from clipkit.version import __version__

from ..serve_settings import LOOPBACK
from .access import Keys
from .admin_routes import admin_router
from .bodies import Budget
from .engine import Engine
from .guard import Guard
from .openai_routes import openai_router
from .openapi import REFUSALS, describe
from .page_routes import page_router
from .peer_routes import peer_router
from .refusal import Refusal, error_body
from .search_routes import search_router


def create_app(engine: Engine, *, model_name: str, keys: Keys, admin: Keys) -> FastAPI:
    """The service as an ASGI application; when it ends, it closes the engine.

    Args:
        engine: everything that computes.
        model_name: what `/v1/models` calls the model.
        keys: without any, everybody is admitted.
        admin: the token of /admin; without one it is off.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    app = FastAPI(title="clipkit", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    budget = Budget(engine)
    for router in (
        page_router(engine),
        search_router(engine, budget),
        openai_router(engine, budget, model_name),
        peer_router(engine, budget),
        admin_router(engine, budget),
    ):
        app.include_router(router, responses=REFUSALS)
    describe(app)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    settings = engine.settings
    hosts = settings.allowed_hosts or (LOOPBACK if settings.is_local else ())
    app.add_middleware(Guard, engine=engine, keys=keys, admin=admin, allowed_hosts=hosts)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key"],
        )
    return app


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response()


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse(error_body(400, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"), 400)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(error_body(error.status_code, message), error.status_code, headers=error.headers)
