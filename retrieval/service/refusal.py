"""What a client is told when it does not get what it asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse


class Refusal(Exception):  # noqa: N818 -- most are no errors of the service
    """Ends a request with a status and one line of text."""

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = " ".join(message.split())
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """The answer, in the form of OpenAI's errors."""
        return JSONResponse(error_body(self.status, self.message), self.status, headers=self.headers)


def error_body(status: int, message: str) -> dict[str, Any]:
    """`{"error": {"message", "type", "code"}}`."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": _TYPES.get(status, kind), "code": status}}


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
