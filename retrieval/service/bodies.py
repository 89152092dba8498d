"""Bodies of requests: read within a size and a time, and taken apart."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from .engine import Engine
from .refusal import Refusal

Model = TypeVar("Model", bound=BaseModel)

_LINGER_SECONDS = 2.0
_MAX_FIELDS = 32
_LARGE_JSON = 65_536


@dataclass(frozen=True, kw_only=True)
class Form:
    """A multipart body."""

    fields: dict[str, str]
    """Plain fields; of several with one name the last."""
    files: list[tuple[str, bytes]]
    """(field name, content)."""


class Budget:
    """Bytes of bodies that all requests together may hold."""

    def __init__(self, engine: Engine) -> None:
        """Start with none; the limit is `max_buffered_bytes`."""
        self._engine = engine
        self._held = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body of a request, which counts as held until the block ends.

        Raises:
            Refusal: 413, too large; 408, too slow; 429, too much is held; 400, the client has gone.
        """
        limit = self._engine.settings.max_upload_bytes
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            await discard(request.receive, 2 * limit)
            raise _too_large(limit)
        chunks: list[bytes] = []
        try:
            await self._read_in_time(request, limit, chunks)
            yield b"".join(chunks)
        finally:
            self._hold(-sum(map(len, chunks)))

    async def _read_in_time(self, request: Request, limit: int, chunks: list[bytes]) -> None:
        seconds = self._engine.settings.body_timeout_seconds
        try:
            with self._engine.meters.stage("read"):
                is_cut = await asyncio.wait_for(self._read(request.receive, limit, chunks), seconds)
        except asyncio.TimeoutError as error:
            raise Refusal(408, f"the body took longer than {seconds:g} s") from error
        if is_cut:
            await discard(request.receive, limit)
        if sum(map(len, chunks)) > limit:
            raise _too_large(limit)

    async def _read(self, receive: Receive, limit: int, chunks: list[bytes]) -> bool:
        """Read up to the limit and a chunk more; True where there is still more."""
        size, has_more = 0, True
        while has_more and size <= limit:
            message = await receive()
            if message["type"] != "http.request":
                raise Refusal(400, "the client went away")
            chunk, has_more = message.get("body", b""), message.get("more_body", False)
            chunks.append(chunk)
            size += len(chunk)
            self._hold(len(chunk))
            if self._held > self._engine.settings.max_buffered_bytes:
                # At once: until the refusal has made its way, others would be refused for these bytes too.
                self._hold(-size)
                chunks.clear()
                raise self._engine.busy()
        return has_more

    def _hold(self, num_bytes: int) -> None:
        self._held += num_bytes
        self._engine.meters.buffered.set(self._held)


async def discard(receive: Receive, max_bytes: int) -> None:
    """Read and drop what a refused client still sends, up to a size and a time.

    A connection that is closed with unread bytes is reset, and the client never sees why.
    """

    async def drop() -> None:
        size = 0
        while size <= max_bytes:
            message = await receive()
            size += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body"):
                return

    try:
        await asyncio.wait_for(drop(), _LINGER_SECONDS)
    except asyncio.TimeoutError:
        return


async def parse_json(model: type[Model], body: bytes) -> Model:
    """A body as a model, whatever its Content-Type says (some clients name none).

    Raises:
        Refusal: 400, it is no JSON or not of this form; the first mistake is named.
    """
    try:
        if len(body) > _LARGE_JSON:
            return await asyncio.to_thread(model.model_validate_json, body)
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _first_mistake(error) from error


async def parse_form(request: Request, body: bytes, max_inputs: int) -> Form:
    """A multipart body that was read before.

    Raises:
        Refusal: 400, it is damaged or has too many parts.
    """

    async def replay() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        parts = Request(request.scope, replay)
        async with parts.form(max_files=max_inputs, max_fields=_MAX_FIELDS) as form:
            fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
            files = [
                (name, await value.read())
                for name, value in form.multi_items()
                if isinstance(value, UploadFile)
            ]
    except HTTPException as error:
        raise Refusal(400, f"the form: {error.detail}") from error
    return Form(fields=fields, files=files)


def form_model(model: type[Model], fields: dict[str, str]) -> Model:
    """The plain fields of a form as a model; a field `request` holds the rest as JSON.

    Raises:
        Refusal: 400, a field is not of its form.
    """
    plain = dict(fields)
    try:
        given = json.loads(plain.pop("request", "{}"))
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the field request: {error}") from error
    if not isinstance(given, dict):
        raise Refusal(400, "the field request must be a JSON object")
    try:
        return model.model_validate({**given, **plain})
    except ValidationError as error:
        raise _first_mistake(error) from error


def image_bytes(text: str) -> bytes:
    """A picture in base64, bare or as a `data:` URL.

    Raises:
        Refusal: 400, it is neither.
    """
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise Refusal(400, "expected data:image/...;base64,...")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, f"the picture is no base64: {error}") from error


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the body is larger than {limit} bytes")


def _first_mistake(error: ValidationError) -> Refusal:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return Refusal(400, f"{place}: {first['msg']}" if place else first["msg"])
