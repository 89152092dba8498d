from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator

import pytest
from clipkit.retrieval.service.fetch import fetch_image, is_public

BODY = b"x" * 200_000


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/inside")
            self.end_headers()
        elif self.path.startswith("/hop"):
            left = int(self.path[4:])
            self.send_response(307)
            self.send_header("Location", f"/hop{left - 1}" if left else "/picture")
            self.end_headers()
        elif self.path == "/drip":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(200):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            except OSError:
                return
        elif self.path == "/picture":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(BODY)
        else:
            self.send_response(404)
            self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def anywhere(address: str) -> bool:
    return True


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "ff02::1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


def test_a_body_is_fetched(url: str) -> None:
    assert fetch_image(f"{url}/picture", len(BODY), 10, is_allowed=anywhere) == BODY
    assert fetch_image(f"{url}/hop2", len(BODY), 10, is_allowed=anywhere) == BODY


def test_limits_of_size_and_time(url: str) -> None:
    with pytest.raises(ValueError, match="larger than 199999 bytes"):
        fetch_image(f"{url}/picture", len(BODY) - 1, 10, is_allowed=anywhere)
    begin = time.monotonic()
    with pytest.raises(OSError, match="too long"):
        fetch_image(f"{url}/drip", 10_000, 0.4, is_allowed=anywhere)
    assert time.monotonic() - begin < 5  # the drip itself takes ten seconds


def test_private_addresses_are_refused_also_behind_names_and_redirects(url: str) -> None:
    for private in (url, url.replace("127.0.0.1", "localhost"), "http://2130706433/", "http://[::1]:80/"):
        with pytest.raises(ValueError, match="not a public address"):
            fetch_image(f"{private}/picture", 10, 10)
    asked: list[str] = []

    def once(address: str) -> bool:
        asked.append(address)
        return len(asked) == 1

    with pytest.raises(ValueError, match="not a public address"):
        fetch_image(f"{url}/away", 10, 10, is_allowed=once)
    assert len(asked) == 2


@pytest.mark.parametrize(
    "bad",
    [
        "file:///etc/passwd",
        "ftp://a.b/c",
        "gopher://a",
        "http://",
        "http://u:p@a.b/",
        "http://a.b/\r\nX: y",
        "x",
    ],
)
def test_urls_of_no_use(bad: str) -> None:
    with pytest.raises(ValueError, match=r"URL|expected http"):
        fetch_image(bad, 10, 10, is_allowed=anywhere)


def test_failures_are_named(url: str) -> None:
    with pytest.raises(OSError, match="answers 404"):
        fetch_image(f"{url}/none", 10, 10, is_allowed=anywhere)
    with pytest.raises(OSError, match="more than 3 redirects"):
        fetch_image(f"{url}/hop9", 10, 10, is_allowed=anywhere)
    with pytest.raises(ConnectionRefusedError):
        fetch_image("http://127.0.0.1:9/", 10, 10, is_allowed=anywhere)
