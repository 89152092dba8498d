"""A picture from the web, from a public address only, within a size and a time.

The name is resolved once and the connection goes to the very address that was checked, so that a name that
changes its address between check and use leads nowhere. Redirects are followed only through the same checks.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urljoin, urlsplit

Fetch = Callable[[str, int, float], bytes]
_MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK_BYTES = 65_536
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def fetch_image(
    url: str,
    max_bytes: int,
    timeout_seconds: float,
    *,
    is_allowed: Callable[[str], bool] | None = None,
) -> bytes:
    """The body behind a URL.

    Args:
        url: http or https.
        max_bytes: larger bodies are refused.
        timeout_seconds: for everything together.
        is_allowed: address -> whether to connect to it; by default `is_public`.

    Raises:
        ValueError: the URL is of no use, its address is not public, or the body is too large.
        OSError: it cannot be had in time.
    """
    deadline = time.monotonic() + timeout_seconds
    for _ in range(_MAX_REDIRECTS + 1):
        parts = _checked(url)
        connection = _connect(parts, deadline, is_allowed or is_public)
        clock = threading.Timer(_left(deadline), _shut, (connection.sock,))
        clock.daemon = True
        clock.start()
        try:
            target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
            connection.request("GET", target, headers={"User-Agent": "clipkit", "Accept": "image/*"})
            response = connection.getresponse()
            if response.status in _REDIRECTS and response.headers.get("Location"):
                url = urljoin(url, response.headers["Location"])
                continue
            if response.status != 200:
                raise OSError(f"{parts.hostname} answers {response.status}")
            return _body(response, max_bytes, deadline)
        except http.client.HTTPException as error:
            _left(deadline)
            raise OSError(f"{parts.hostname} does not speak HTTP: {type(error).__name__}") from error
        finally:
            clock.cancel()
            connection.close()
    raise OSError(f"more than {_MAX_REDIRECTS} redirects")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open Internet, in every form that it can be written in."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64 or ip.sixtofour is not None or ip.teredo is not None:
            return False
        ip = ip.ipv4_mapped or ip
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _checked(url: str) -> SplitResult:
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("a URL has printable ASCII characters only")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected http://... or https://...")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a user name in a URL is refused")
    return parts


def _connect(
    parts: SplitResult, deadline: float, is_allowed: Callable[[str], bool]
) -> http.client.HTTPConnection:
    """A connection to an address of the host, all of whose addresses are allowed."""
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not addresses or not all(is_allowed(address) for address in addresses):
        raise ValueError(f"{host} is not a public address")
    connection = http.client.HTTPConnection(host, port, timeout=_left(deadline))
    opened = socket.create_connection((addresses[0], port), timeout=_left(deadline))
    if parts.scheme == "https":
        try:
            opened = ssl.create_default_context().wrap_socket(opened, server_hostname=host)
        except BaseException:
            opened.close()
            raise
    connection.sock = opened
    return connection


def _body(response: http.client.HTTPResponse, max_bytes: int, deadline: float) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := response.read1(_CHUNK_BYTES):
        size += len(chunk)
        if size > max_bytes:
            raise ValueError(f"larger than {max_bytes} bytes")
        chunks.append(chunk)
    _left(deadline)
    return b"".join(chunks)


def _shut(opened: socket.socket) -> None:
    """End a connection whatever it is doing; the timeouts of sockets begin anew with each byte."""
    with contextlib.suppress(OSError):
        opened.shutdown(socket.SHUT_RDWR)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("it took too long")
    return left
