"""What the service does not do, over HTTP."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import select
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from clipkit.retrieval.serve_settings import ServeSettings
from clipkit.retrieval.service.access import Keys, key_of, read_keys
from clipkit.retrieval.service.server import check_exposure
from serve_jobs import KEY, TOKEN, Running, caption_index, png, serving, small_model
from test_service_search import refused

LIMIT = 200_000


@pytest.fixture(scope="module")
def model() -> Any:
    return small_model()


@pytest.fixture(scope="module")
def running(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("outer") / "root"
    root.mkdir()
    (root.parent / "secret.png").write_bytes(png("black"))
    (root / "0.png").write_bytes(png())
    (root / "2.png").symlink_to(root.parent / "secret.png")
    index = caption_index(model)
    index.table[1]["image_path"] = "../secret.png"
    index.table[3]["image_path"] = str(root.parent / "secret.png")
    with serving(
        model,
        make={"captions": lambda: index},
        image_roots=(root,),
        max_upload_bytes=LIMIT,
        max_image_pixels=1_000_000,
        body_timeout_seconds=1.0,
        max_buffered_bytes=2 * LIMIT,
    ) as running:
        yield running


@pytest.fixture
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as client:
        yield client


def bomb_png(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes whose header claims so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data))
            + kind
            + data
            + struct.pack(">I", zlib.crc32(kind + data) & 0xFFFFFFFF)
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 10_000))
        + chunk(b"IEND", b"")
    )


def connect(running: Running) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def head(path: str = "/search", length: int = 10, host: str = "127.0.0.1") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n".encode()


def works(client: httpx.Client) -> bool:
    return client.post("/search", json={"text": "a red star"}).status_code == 200


def test_bad_pictures(client: httpx.Client) -> None:
    whole = png("red", (300, 200), "JPEG")
    for data, status, word in (
        (whole[: len(whole) // 2], 400, "corrupt"),
        (b"", 400, "empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", 400, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 400, "not an image"),
        (bomb_png(60_000, 60_000), 413, "bomb"),
        (png("red", (1001, 1000)), 413, "bomb"),
        (png()[:40], 400, "corrupt"),
        (b"GIF89a", 400, "corrupt"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 50, 400, "corrupt"),
    ):
        refused(client.post("/search", files={"image": data}), status, word)
        encoded = base64.b64encode(data).decode()
        refused(client.post("/search", json={"image": encoded}), status, word)
        refused(
            client.post("/v1/embeddings", json={"input": f"data:image/png;base64,{encoded}"}), status, word
        )
    assert client.post("/search", files={"image": png("red", (1000, 1000))}).status_code == 200
    assert works(client)


def test_large_bodies(client: httpx.Client) -> None:
    refused(client.post("/search", files={"image": b"x" * LIMIT}), 413, str(LIMIT))
    refused(client.post("/search", json={"text": "x" * LIMIT}), 413)
    refused(client.post("/v1/embeddings", content=b"x" * (LIMIT + 1)), 413)
    refused(client.post("/search", content=b"x" * 20 * LIMIT), 413)
    refused(client.post("/search", files={"image": b"\0" * 100_000_000}), 413, str(LIMIT))

    def chunks() -> Iterator[bytes]:  # without a Content-Length
        for _ in range(5):
            yield b"x" * (LIMIT // 4)

    refused(client.post("/search", content=chunks()), 413)
    refused(client.post("/search", content=b"x" * LIMIT), 400)
    assert works(client)


def test_a_claimed_length_is_not_believed(running: Running) -> None:
    with connect(running) as peer:
        peer.sendall(head(length=10**15) + b"x" * 100)
        assert peer.recv(100).startswith(b"HTTP/1.1 413")


def test_image_urls_are_off(client: httpx.Client) -> None:
    refused(client.post("/search", json={"image_url": "http://1.1.1.1/x.png"}), 403)
    refused(client.post("/v1/embeddings", json={"input": "file:///etc/passwd", "modality": "image"}), 403)


def test_private_image_urls_are_refused_where_they_are_on(model: Any) -> None:
    with serving(model, image_urls=True) as running, running.client() as client:
        for url in (running.url, "http://localhost/", "http://169.254.169.254/latest", "file:///etc/passwd"):
            refused(client.post("/search", json={"image_url": url}), 400, "image_url")


def test_files_outside_of_the_roots(client: httpx.Client) -> None:
    assert client.get("/image/captions/0").content == png()
    for row in (1, 2, 3):
        response = client.get(f"/image/captions/{row}")
        refused(response, 404)
        assert "secret" not in response.text
        rows = client.post("/metadata", json={"ids": [row], "indice_name": "captions"}).json()
        assert "image" not in rows[0]["metadata"]


@pytest.mark.parametrize(
    "path",
    [
        "/image/captions/../../etc/passwd",
        "/image/captions/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/image/..%2f..%2fsecret.png/0",
        "/..%2f..%2fsetup.cfg",
        "//etc/passwd",
        "/image/captions/0%00",
    ],
)
def test_paths_lead_nowhere(running: Running, path: str) -> None:
    with connect(running) as peer:
        peer.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: peer.recv(65_536), b""))
    assert answer.split()[1] in (b"404", b"400")
    assert b"root:" not in answer


def test_an_unknown_row_shows_no_place(client: httpx.Client) -> None:
    for response in (
        client.post("/search", json={"id": 1000}),
        client.post("/metadata", json={"ids": [1000]}),
    ):
        refused(response, 404)
        assert "/secret/place" not in response.text


def test_keys(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    other = "o" * 32
    with serving(model, keys=(KEY, other)) as running, running.client() as client:
        body = {"text": "a red star"}
        for headers in (
            {},
            {"X-API-Key": KEY + "x"},
            {"Authorization": f"Basic {KEY}"},
            {"X-API-Key": TOKEN},
        ):
            for path in ("/search", "/v1/embeddings", "/knn-service", "/metadata"):
                refused(client.post(path, json=body, headers=headers), 401)
            for path in ("/metrics", "/indexes", "/indices-list", "/v1/models", "/image/captions/0", "/no"):
                refused(client.get(path, headers=headers), 401)
        for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {other}"}):
            assert client.post("/search", json=body, headers=headers).status_code == 200
        assert client.get("/openapi.json").status_code == 401
        for path in ("/", "/health", "/ready"):
            assert client.get(path).status_code == 200
        refused(client.post("/search", content=b"x" * 10**6), 401)
        for headers in ({}, {"X-API-Key": KEY}):
            refused(client.post("/admin/reload", headers=headers), 401)
        assert client.post("/admin/reload", headers={"X-API-Key": TOKEN}).status_code == 200
    assert KEY not in caplog.text


def test_admin_is_off_without_a_token(model: Any) -> None:
    with serving(model, admin=()) as running, running.client() as client:
        for headers in ({}, {"X-API-Key": TOKEN}, {"X-API-Key": ""}):
            refused(client.post("/admin/reload", headers=headers), 403, "--admin-token-file")


def test_keys_of_files_and_variables(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# a comment\n{KEY}\n\n  {TOKEN}  \n")
    keys = read_keys(path, "V", {"V": f"{'e' * 16}, {'f' * 16}"})
    assert len(keys) == 4
    assert [keys.admit(key) for key in (KEY, TOKEN, "e" * 16, "f" * 16)] == [True] * 4
    assert [keys.admit(key) for key in ("", None, KEY[:-1], KEY + "x", "# a comment")] == [False] * 5
    assert not Keys([]).admit("")
    assert not read_keys(None, "V", {})
    path.write_text("\n# nothing\n")
    with pytest.raises(ValueError, match="holds no key"):
        read_keys(path, "V", {})
    with pytest.raises(ValueError, match="16 characters") as error:
        Keys(["short-secret"])
    assert "short-secret" not in str(error.value)
    assert key_of({"authorization": "Bearer  abc "}) == "abc"
    assert key_of({"authorization": "Basic abc", "x-api-key": "def"}) == "def"


def test_a_public_address_needs_keys() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        check_exposure(ServeSettings(host=host), Keys([]))
    with pytest.raises(ValueError, match="--open"):
        check_exposure(ServeSettings(host="0.0.0.0"), Keys([]))
    check_exposure(ServeSettings(host="0.0.0.0"), Keys([KEY]))
    check_exposure(ServeSettings(host="0.0.0.0", open=True), Keys([]))


def test_foreign_host_names_are_refused(running: Running, client: httpx.Client) -> None:
    """A web page whose name was made to point at 127.0.0.1 gets no answers."""
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        refused(client.get("/indexes", headers={"Host": host}), 421)
    for host in ("localhost", "127.0.0.1:1", "[::1]:8000", "[::1]", "LOCALHOST:80"):
        assert client.get("/indexes", headers={"Host": host}).status_code == 200


def test_other_origins(model: Any, client: httpx.Client) -> None:
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    for response in (client.options("/search", headers=asked), client.get("/indexes", headers=asked)):
        assert not [name for name in response.headers if name.startswith("access-control")]
    with (
        serving(model, keys=(KEY,), cors_origins=("https://a.example",)) as running,
        running.client() as other,
    ):
        response = other.options("/search", headers=asked)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://a.example"
        refused_one = other.options("/search", headers={**asked, "Origin": "https://b.example"})
        assert "access-control-allow-origin" not in refused_one.headers


def test_no_traces_in_answers(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(type(caption_index(model))):  # type: ignore[misc]
        def search(self, *args: Any, **options: Any) -> Any:
            raise KeyError("/secret/place")

    whole = caption_index(model)
    with (
        serving(model, make={"x": lambda: Broken(whole.rows, whole.table)}) as running,
        running.client() as client,
    ):
        response = client.post("/search", json={"text": "a"})
        refused(response, 500)
        assert "secret" not in response.text
        assert "/secret/place" in caplog.text
        assert client.get("/health").status_code == 200
        assert "clipkit_items_in_work 0.0" in client.get("/metrics").text


def test_slow_clients_hold_up_nobody(running: Running, client: httpx.Client) -> None:
    peers = [connect(running) for _ in range(20)]
    for peer in peers:
        peer.sendall(head(length=1000) + b"x")
    assert works(client)
    assert not select.select(peers, [], [], 0)[0]  # none of them has been given up yet
    for peer in peers:
        assert peer.recv(100).startswith(b"HTTP/1.1 408")
        peer.close()


def test_dropped_connections(running: Running, client: httpx.Client) -> None:
    body = json.dumps({"text": "something else entirely"}).encode()
    for sent in (head()[:20], head(), head(length=len(body)) + body[:5], head(length=len(body)) + body):
        for _ in range(5):
            peer = connect(running)
            peer.sendall(sent)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
    assert works(client)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        metrics = client.get("/metrics").text
        if "clipkit_items_in_work 0.0" in metrics and "clipkit_buffered_bytes 0.0" in metrics:
            return
        time.sleep(0.05)
    raise AssertionError("something is still held")


def test_bodies_of_all_requests_have_a_limit(running: Running, client: httpx.Client) -> None:
    peers = [connect(running) for _ in range(3)]
    for peer in peers:
        peer.sendall(head(length=LIMIT) + b"x" * (LIMIT * 3 // 4))
    answers = [peer.recv(1000) for peer in peers]
    for peer in peers:
        peer.close()
    assert sorted(answer.split()[1] for answer in answers) == [b"408", b"408", b"429"]
    assert works(client)


def test_no_http(running: Running, client: httpx.Client) -> None:
    for sent in (b"\x16\x03\x01\x02\0\x01\0", b"GET\r\n\r\n", b"GET /" + b"x" * 100_000):
        with connect(running) as peer, contextlib.suppress(ConnectionError):
            peer.sendall(sent + b"\r\n\r\n")
            assert peer.recv(100)[:12] in (b"HTTP/1.1 400", b"")
    assert works(client)


def test_settings_of_no_use() -> None:
    for settings in (
        {"max_waiting": 0},
        {"port": -1},
        {"precision": "fp8"},
        {"image_roots": (Path("/none"),)},
    ):
        with pytest.raises(ValueError, match="--"):
            ServeSettings(**settings)  # type: ignore[arg-type]
