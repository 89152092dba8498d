"""Questions to an OpenAI-compatible endpoint: one POST each, tried again where that can help."""

from __future__ import annotations

import email.utils
import http.client
import json
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import IO, Any

_LONGEST_BACKOFF_SECONDS = 60.0
_LONGEST_WAIT_SECONDS = 600.0
_MAX_ANSWER_BYTES = 2**22
_SHOWN_OF_ERROR = 200
_SHOWN_OF_TEXT = 60

_PASSING_STATUSES = frozenset({408, 425, 429})
"""Worth another try, as all from 500 on are."""
_FINAL_STATUSES = {
    401: "the key is missing or not accepted",
    402: "the account has no credit",
    404: "there is no such path or LLM",
    405: "there is no such path",
}
"""The same would come for every class."""

Wait = Callable[[float], None]


class EndpointError(OSError):
    """The endpoint is of no use for any class."""


class NoAnswer(Exception):  # noqa: N818 - what it is to the job
    """One class got no usable answer."""


class NoList(NoAnswer):
    """The LLM has answered, but not with a list: this says nothing of other classes."""


class _TryAgain(Exception):  # noqa: N818
    def __init__(self, reason: str, *, after_seconds: float = 0.0, end: type[Exception] = NoAnswer) -> None:
        super().__init__(reason)
        self.after_seconds = after_seconds
        self.end = end
        """What is raised when all tries have gone."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where questions go, and how often each is tried."""

    base_url: str
    """Up to and with the version: `https://api.openai.com/v1`, `http://localhost:11434/v1`."""
    key: str = field(default="", repr=False)
    """Sent as a bearer token unless empty."""
    num_tries: int = 5
    """Requests about a class before it is given up."""
    timeout_seconds: float = 120.0
    """Silence that ends a request."""
    wait_seconds: float = 1.0
    """Before the second try; doubles from try to try up to a minute. `Retry-After` makes it longer."""

    def __post_init__(self) -> None:
        if not _is_http_url(self.base_url):
            raise ValueError(
                "the base URL must look like https://HOST/v1, without a user name or blanks, got "
                f"{_without_secrets(self.base_url)!r}"
            )
        # http.client would show the key in its own message.
        if not (self.key.isascii() and self.key.isprintable()) or " " in self.key:
            raise ValueError("the key of the endpoint must be one word of ASCII characters")
        if self.num_tries < 1 or self.timeout_seconds <= 0 or self.wait_seconds < 0:
            raise ValueError(
                "expected a try or more, a timeout above 0 s and a wait of 0 s or more, got "
                f"{self.num_tries}, {self.timeout_seconds} and {self.wait_seconds}"
            )

    @property
    def url(self) -> str:
        """Where requests are posted."""
        parts = urllib.parse.urlsplit(self.base_url)
        path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))

    @property
    def shown(self) -> str:
        """The URL for messages, without its query."""
        return _without_secrets(self.url)


def ask(
    endpoint: Endpoint,
    body: Mapping[str, Any],
    parse: Callable[[str, bool], tuple[str, ...]],
    *,
    wait: Wait = time.sleep,
) -> tuple[str, ...]:
    """The list that an LLM answers with.

    Args:
        endpoint: where it is.
        body: of the request.
        parse: text of the answer, and whether it was cut at the limit of tokens -> the items of its list.
        wait: called with the seconds between tries.

    Raises:
        NoAnswer: every try failed, or the endpoint refuses this question; `NoList` if it was the LLM's doing.
        EndpointError: the endpoint cannot be reached or used at all.
    """
    for number in range(endpoint.num_tries):
        try:
            return _items(endpoint, _post(endpoint, body), parse)
        except _TryAgain as error:
            if number + 1 == endpoint.num_tries:
                tries = f"{endpoint.num_tries} tries" if endpoint.num_tries > 1 else "one try"
                raise error.end(f"{error} ({tries})") from None
            backoff = min(endpoint.wait_seconds * 2**number, _LONGEST_BACKOFF_SECONDS)
            wait(max(backoff, error.after_seconds))
    raise AssertionError("num_tries is 1 or more")


def _post(endpoint: Endpoint, body: Mapping[str, Any]) -> bytes:
    headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "clipkit"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    request = urllib.request.Request(endpoint.url, json.dumps(body).encode(), headers, method="POST")
    try:
        opener = urllib.request.build_opener(_NoRedirects)
        with opener.open(request, timeout=endpoint.timeout_seconds) as response:
            content: bytes = response.read(_MAX_ANSWER_BYTES)
            return content
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(endpoint, error) from None
    except TimeoutError:
        raise _TryAgain(f"no answer in {endpoint.timeout_seconds:g} s") from None
    except urllib.error.URLError as error:
        reason = error.reason
        what = f"{endpoint.shown} cannot be reached: {reason}"
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise EndpointError(what) from None
        raise _TryAgain(what, end=EndpointError) from None
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgain(f"the connection broke: {str(error) or type(error).__name__}") from None


def _refusal(endpoint: Endpoint, error: urllib.error.HTTPError) -> Exception:
    """What an HTTP status other than 200 means for the job."""
    said = _said(endpoint, _read_some(error))
    what = f"HTTP {error.code}" + (f": {said}" if said else "")
    if error.code in _PASSING_STATUSES or error.code >= 500:
        after = _retry_after(error.headers.get("Retry-After"))
        if after > _LONGEST_WAIT_SECONDS:
            return EndpointError(f"{endpoint.shown} asks to come back in {after:.0f} s ({what})")
        return _TryAgain(what, after_seconds=after)
    if error.code < 400:
        target = _without_secrets(error.headers.get("Location") or "elsewhere")
        return EndpointError(f"{endpoint.shown} redirects to {target}; name that one as the base URL")
    if error.code in _FINAL_STATUSES:
        return EndpointError(f"{endpoint.shown}: {_FINAL_STATUSES[error.code]} ({what})")
    return NoAnswer(what)


def _items(
    endpoint: Endpoint, content: bytes, parse: Callable[[str, bool], tuple[str, ...]]
) -> tuple[str, ...]:
    """The items in the body of an answer with status 200."""
    try:
        choice = json.loads(content)["choices"][0]
        text, end = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        said = _said(endpoint, content)[:_SHOWN_OF_TEXT]
        raise _TryAgain(f"expected a chat completion, got {said!r}") from None
    if not isinstance(text, str) or not text.strip():
        raise _TryAgain("the answer is empty", end=NoList)
    items = parse(text, end == "length")
    if not items:
        raise _TryAgain(f"no list in the answer {_one_line(text)[:_SHOWN_OF_TEXT]!r}", end=NoList)
    return items


def _said(endpoint: Endpoint, content: bytes) -> str:
    """The message in the body of an error, in one line and without the key, which some servers repeat."""
    text = content.decode("utf-8", "replace")
    try:
        found = json.loads(text)
        error = found.get("error", found)
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, LookupError, AttributeError, RecursionError):
        pass
    line = _one_line(str(text))
    return (line.replace(endpoint.key, "[key]") if endpoint.key else line)[:_SHOWN_OF_ERROR]


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _read_some(stream: IO[bytes]) -> bytes:
    try:
        return stream.read(_MAX_ANSWER_BYTES)
    except (OSError, http.client.HTTPException):
        return b""


def _retry_after(value: str | None) -> float:
    """Seconds by a `Retry-After` header (RFC 9110, section 10.2.3), a number or a date; 0 for none."""
    if not value:
        return 0.0
    if re.fullmatch(r"\s*\d{1,9}(\.\d*)?\s*", value):
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return 0.0
    now = datetime.now(timezone.utc)
    return max(0.0, (date.replace(tzinfo=date.tzinfo or timezone.utc) - now).total_seconds())


def _is_http_url(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0  # `port` refuses what is no number
    except ValueError:
        return False
    is_plain = url.isascii() and url.isprintable() and " " not in url
    return parts.scheme in ("http", "https") and has_host and "@" not in parts.netloc and is_plain


def _without_secrets(url: str) -> str:
    """A URL without its user, query and fragment, where keys are put."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "something else"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET and take the key to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None
