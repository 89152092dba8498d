"""What every request passes: the Host header, the key, and on the way out headers and metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access import Keys, key_of
from .bodies import discard
from .engine import Engine
from .refusal import Refusal

_log = logging.getLogger(__name__)

PUBLIC = ("/", "/health", "/ready")
ADMIN = "/admin/"
_CSP = "default-src 'none'; frame-ancestors 'none'"


class Guard:
    """ASGI middleware; what is not named public needs a key, so that no new route is open by mistake."""

    def __init__(
        self, app: ASGIApp, *, engine: Engine, keys: Keys, admin: Keys, allowed_hosts: Sequence[str]
    ) -> None:
        """Stand before `app`.

        Args:
            app: what answers.
            engine: whose metrics are kept.
            keys: without any, everybody is admitted to all but /admin.
            admin: the token of /admin; without one it is off.
            allowed_hosts: names in the Host header; empty admits all.
        """
        self._app, self._engine = app, engine
        self._keys, self._admin = keys, admin
        self._hosts = {host.lower() for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(MutableHeaders(scope=message))
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._app(scope, receive, send_with_headers)
            else:
                await discard(receive, self._engine.settings.max_upload_bytes)
                await refusal.response()(scope, receive, send_with_headers)
        except Exception as error:
            # Here and not in an exception handler: those of `Exception` end the connection too.
            _log.error("%s failed", scope.get("path"), exc_info=error)
            if status:
                raise
            failed = Refusal(500, "the service failed on this request; its log says why")
            await failed.response()(scope, receive, send_with_headers)
        finally:
            # The route's pattern, not the path: else anybody could make new series.
            route = getattr(scope.get("route"), "path", "none")
            meters = self._engine.meters
            meters.requests.labels(route, str(status)).inc()
            meters.seconds.labels(route).observe(time.perf_counter() - begin)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers, path = Headers(scope=scope), scope["path"]
        if self._hosts and _host(headers.get("host", "")) not in self._hosts:
            return Refusal(421, "this host name is not served here: see --allowed-host")
        if path.startswith(ADMIN):
            if not self._admin:
                return Refusal(403, "/admin is off: the service was started without --admin-token-file")
            admitted = self._admin.admit(key_of(headers))
        else:
            admitted = not self._keys or path in PUBLIC or self._keys.admit(key_of(headers))
        if admitted:
            return None
        return Refusal(401, "the key is missing or wrong", headers={"WWW-Authenticate": "Bearer"})

    def _add_headers(self, headers: MutableHeaders) -> None:
        headers.setdefault("content-security-policy", _CSP)
        headers.setdefault("cache-control", "no-store")
        headers["x-content-type-options"] = "nosniff"
        headers["referrer-policy"] = "no-referrer"
        headers["cross-origin-resource-policy"] = "same-origin"
        if self._engine.is_draining:
            headers["connection"] = "close"


def _host(header: str) -> str:
    """The name of a Host header without its port."""
    name = header.lower().rpartition(":")[0] if not header.endswith("]") and ":" in header else header.lower()
    return name.strip("[]")
