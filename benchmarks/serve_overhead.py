"""What a request costs besides the tower and the index: parsing, queues, dispatch and JSON.

    python serve_overhead.py

The application of `clipkit serve` with a tower and an index that cost nothing, called as an ASGI server calls
it, by 32 clients in the same process. Prints JSON: seconds of processor time and of clock time per request.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from clipkit.retrieval.serve_settings import ServeSettings
from clipkit.retrieval.service.access import Keys
from clipkit.retrieval.service.app import create_app
from clipkit.retrieval.service.catalog import Place
from clipkit.retrieval.service.engine import Engine

NUM_CLIENTS, NUM_REQUESTS, TOP_K, EMBED_DIM = 32, 200, 10, 512


class FreeTowers:
    """Towers that give the same vector for everything."""

    model_id, embed_dim = "free", EMBED_DIM
    vector = np.full(EMBED_DIM, EMBED_DIM**-0.5, np.float32)

    def text_key(self, text: str) -> str:
        """The text."""
        return text

    def texts(self, texts: Sequence[str]) -> list[Any]:
        """The vector for each."""
        return [self.vector] * len(texts)

    images = texts

    def count(self, texts: Sequence[str]) -> list[int]:
        """None."""
        return [0] * len(texts)


@dataclass(frozen=True)
class Found:
    """The same rows for every query."""

    ids: Any
    similarities: Any


class FreeIndex:
    """An index that finds the first rows."""

    model_id, embed_dim, num_rows, columns = "free", EMBED_DIM, 100_000, ("image_path", "caption")

    def search(self, queries: Any, k: int, *, where: Any = None) -> Found:
        """Rows 0 to k - 1."""
        return Found(np.tile(np.arange(k), (len(queries), 1)), np.full((len(queries), k), 0.25, np.float32))

    def metadata(self, ids: Any, columns: Any = None) -> list[dict[str, Any]]:
        """A path and a caption."""
        return [{"image_path": f"{row}.jpg", "caption": "a red star left of a ring"} for row in ids.tolist()]


class FreeStorage:
    """Opens a `FreeIndex`."""

    def open(self, place: Place) -> FreeIndex:
        """One."""
        return FreeIndex()


async def ask(app: Any, text: str) -> None:
    """One request to `/knn-service`, as uvicorn would pass it on."""
    asked = {"text": text, "modality": "image", "num_images": TOP_K, "num_result_ids": TOP_K}
    body = json.dumps({**asked, "indice_name": "index"}).encode()
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/knn-service",
        "raw_path": b"/knn-service",
        "query_string": b"",
        "root_path": "",
        "headers": [*headers, (b"content-length", str(len(body)).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Mapping[str, Any]] = []

    async def receive() -> Mapping[str, Any]:
        return messages.pop()

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert sent[0]["status"] == 200
    assert len(json.loads(sent[1]["body"])) == TOP_K


async def measure(app: Any) -> tuple[float, float]:
    """Seconds of processor and of clock per request, of 32 clients."""

    async def client(number: int) -> None:
        for request in range(NUM_REQUESTS):
            await ask(app, f"text {number} {request}")

    processor, clock = time.process_time(), time.perf_counter()
    await asyncio.gather(*map(client, range(NUM_CLIENTS)))
    total = NUM_CLIENTS * NUM_REQUESTS
    return (time.process_time() - processor) / total, (time.perf_counter() - clock) / total


def main() -> None:
    """Measure three times, after a warm-up, and print the median."""
    settings = ServeSettings(text_cache_size=0, max_waiting=1000)
    engine = Engine(FreeTowers(), {"index": Place(path=Path("free"))}, FreeStorage(), settings)  # type: ignore[arg-type]
    app = create_app(engine, model_name="free", keys=Keys(()), admin=Keys(()))

    async def run() -> list[tuple[float, float]]:
        return [await measure(app) for _ in range(4)]

    processor, clock = np.median(asyncio.run(run())[1:], axis=0).tolist()
    engine.close()
    print(json.dumps({"processor_ms": processor * 1e3, "clock_ms": clock * 1e3}))


if __name__ == "__main__":
    main()
