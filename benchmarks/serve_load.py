"""The clients of `benchmarks/serve.py`.

    python serve_load.py URL --clients 32 --seconds 20 [--texts FILE] [--one]
    python serve_load.py URL --rate 100 --seconds 20 [--texts FILE]

Asks `/knn-service` for ten rows. Closed loop: each client asks the next text when its last is answered. Open
loop (`--rate`): texts come at random times, so many a second on average, whether or not earlier ones are
answered, and a latency counts from the time at which a text was due. Every text is asked once; with `--one`
always the same. Prints JSON: rate, latencies, and the ids found for each text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

COLOURS = ("red", "green", "blue", "yellow", "purple", "brown", "pink")
SHAPES = ("circle", "square", "star", "heart", "ring", "cross", "triangle")
OTHERS = (
    "a",
    "the",
    "one",
    "two",
    "big",
    "small",
    "tiny",
    "left",
    "right",
    "top",
    "of",
    "on",
    "near",
    "plain",
)
WORDS = COLOURS + SHAPES + OTHERS
TOP_K = 10


def made_texts() -> Iterator[str]:
    """Texts of 3 to 14 words, the last of which no other has."""
    rng = random.Random(0)
    number = 0
    while True:
        yield f"{' '.join(rng.choices(WORDS, k=rng.randint(2, 13)))} {number}"
        number += 1


def texts_of(file: Path) -> Iterator[str]:
    """The lines of a file that differ, as often as there are."""
    yield from dict.fromkeys(line for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    raise ValueError(f"{file} has too few lines for this rate and time")


class Connection:
    """HTTP/1.1 by hand: what a library would do for each answer is time that the service would lack."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        host = "{}:{}".format(*self._address)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines()
        fields = dict(line.split(": ", 1) for line in lines if line)
        answer = await reader.readexactly(int(fields["content-length"]))
        if status.startswith("http/1.0") or fields.get("connection") == "close":
            self.close()
        return int(status.split()[1]), answer

    def close(self) -> None:
        """The next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


class Load:
    """Asks a service and keeps what it answered."""

    def __init__(self, url: str, texts: Iterator[str], seconds: float) -> None:
        """Ask the service at `url` each of `texts` once, for so long."""
        address = urlsplit(url)
        assert address.hostname
        assert address.port
        self._address = (address.hostname, address.port)
        self._texts, self._seconds = texts, seconds
        self._latencies: list[float] = []
        self._answers: list[tuple[str, bytes]] = []
        self._num_errors = 0

    async def closed(self, num_clients: int) -> dict[str, object]:
        """Every client asks one text after the other."""
        begin = time.perf_counter()

        async def client() -> None:
            connection = Connection(*self._address)
            while (due := time.perf_counter()) < begin + self._seconds:
                await self._ask(connection, due)
            connection.close()

        await asyncio.gather(*(client() for _ in range(num_clients)))
        return self._result(time.perf_counter() - begin)

    async def open(self, rate: float) -> dict[str, object]:
        """Texts come as a Poisson process of so many a second."""
        rng = random.Random(0)
        begin = due = time.perf_counter()
        idle: list[Connection] = []
        asked = []

        async def ask(due: float) -> None:
            connection = idle.pop() if idle else Connection(*self._address)
            await self._ask(connection, due)
            idle.append(connection)

        while (due := due + rng.expovariate(rate)) < begin + self._seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked.append(asyncio.ensure_future(ask(due)))
        await asyncio.gather(*asked)
        took = time.perf_counter() - begin
        for connection in idle:
            connection.close()
        return self._result(took)

    async def _ask(self, connection: Connection, due: float) -> None:
        text = next(self._texts)
        asked = {"text": text, "modality": "image", "num_images": TOP_K, "num_result_ids": TOP_K}
        body = json.dumps({**asked, "indice_name": "index"}).encode()
        status, answer = await connection.post("/knn-service", body)
        if status == 200:
            self._latencies.append(time.perf_counter() - due)
            self._answers.append((text, answer))
        else:
            self._num_errors += 1

    def _result(self, took: float) -> dict[str, object]:
        latencies = sorted(self._latencies)
        return {
            "queries_per_second": len(latencies) / took,
            "p50_ms": latencies[len(latencies) // 2] * 1e3,
            "p99_ms": latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))] * 1e3,
            "num_errors": self._num_errors,
            "ids": {text: [row["id"] for row in json.loads(answer)] for text, answer in self._answers},
        }


def main() -> None:
    """Ask and print what came."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rate", type=float, help="texts a second; open loop")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--texts", type=Path, help="a text a line")
    parser.add_argument("--one", action="store_true")
    options = parser.parse_args()
    texts = made_texts() if options.texts is None else texts_of(options.texts)
    if options.one:
        text = next(texts)
        texts = iter(lambda: text, None)
    load = Load(options.url, texts, options.seconds)
    print(json.dumps(asyncio.run(load.open(options.rate) if options.rate else load.closed(options.clients))))


if __name__ == "__main__":
    main()
