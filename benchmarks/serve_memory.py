"""Does the memory of `clipkit serve` stay flat? Resident memory of the service over 20,000 requests.

    python benchmarks/serve_memory.py

The requests are what clients send, good and bad: different texts, pictures, filters, texts again, rows like a
row, broken and oversize pictures, unknown paths, connections that are dropped in the middle of a request,
and rows that are added and removed. There is no peer: the question is a slope.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from clipkit.retrieval.index_build import build_index
from PIL import Image
from report import write_result

import clipkit

NUM_ROWS = 10_000
TOKEN = "t" * 32
_KINDS = {"text": 8, "picture": 4, "filter": 2, "again": 2, "like": 1, "bad": 1, "dropped": 1, "change": 1}


def main() -> None:
    """Print resident memory as the requests go on, and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--no-result", action="store_true", help="print only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        index = prepare(Path(place))
        with service(index, Path(place) / "model") as (process, address):
            points, outcomes = watch(process.pid, address, options.requests, options.clients)
    body = describe(points, outcomes)
    if options.no_result:
        print(body)
    else:
        write_result("serve_memory", "Memory of the service", body, command=sys.argv)


def prepare(folder: Path) -> Path:
    """A small model and an index of random rows that clients can add to."""
    torch.manual_seed(0)
    model = clipkit.create("test-vit")
    model.save(folder / "model")
    rows = np.random.default_rng(0).standard_normal((NUM_ROWS, model.embed_dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for name in ("img_emb", "metadata"):
        (folder / "embeddings" / name).mkdir(parents=True)
    np.save(folder / "embeddings" / "img_emb" / "img_emb_0.npy", rows.astype(np.float16))
    table = pa.table(
        {"image_path": [f"{n}.jpg" for n in range(NUM_ROWS)], "size": [n % 100 for n in range(NUM_ROWS)]}
    )
    pq.write_table(table, folder / "embeddings" / "metadata" / "metadata_0.parquet")
    build_index(folder / "embeddings", folder / "index")
    return folder / "index"


@contextmanager
def service(index: Path, model: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`clipkit serve`, and its address."""
    command = [
        sys.executable,
        "-m",
        "clipkit",
        "serve",
        f"index={index}",
        "--model",
        str(model),
        "--port",
        "0",
    ]
    flags = ["--text-cache-size", "1000", "--max-upload-bytes", "1000000"]
    environment = {**os.environ, "CLIPKIT_SERVE_ADMIN_TOKEN": TOKEN}
    with subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def watch(
    pid: int, address: str, num_requests: int, num_clients: int
) -> tuple[list[tuple[int, float]], Counter[str]]:
    """Resident MiB after so many requests, and how many had which outcome."""
    counted = Counted()
    clients = [
        threading.Thread(target=Client(address, number, counted, num_requests).run)
        for number in range(num_clients)
    ]
    points = [(0, resident_mib(pid))]
    for client in clients:
        client.start()
    step = max(1, num_requests // 10)
    while any(client.is_alive() for client in clients):
        clients[0].join(0.05)
        if counted.total >= (len(points)) * step:
            points.append((counted.total, resident_mib(pid)))
    return points, counted.outcomes


@dataclass
class Counted:
    """What all clients have done."""

    total: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: str) -> int:
        """Count one more, and say how many there are."""
        with self.lock:
            self.total += 1
            self.outcomes[outcome] += 1
            return self.total


class Client:
    """Sends requests of all kinds until enough were sent by all."""

    def __init__(self, address: str, number: int, counted: Counted, num_requests: int) -> None:
        self._host = urlsplit(address).netloc
        self._random = random.Random(number)
        self._counted, self._num_requests = counted, num_requests
        self._connection = http.client.HTTPConnection(self._host, timeout=60)
        self._number = number

    def run(self) -> None:
        """Send them."""
        kinds: dict[str, Callable[[], str]] = {kind: getattr(self, f"_{kind}") for kind in _KINDS}
        while self._counted.total < self._num_requests:
            kind = self._random.choices(list(kinds), list(_KINDS.values()))[0]
            if kind == "change" and self._number:
                kind = "text"  # a writer takes the lock of the index for itself
            try:
                outcome = kinds[kind]()
            except (OSError, http.client.HTTPException) as error:
                outcome = type(error).__name__
                self._connection.close()
            self._counted.add(f"{kind}: {outcome}")

    def _words(self) -> str:
        return f"a {self._random.choice(('red', 'blue'))} thing number {self._random.random()}"

    def _ask(self, body: dict[str, object], path: str = "/search", **headers: str) -> str:
        text = json.dumps(body)
        self._connection.request("POST", path, text, {"Content-Type": "application/json", **headers})
        response = self._connection.getresponse()
        self._answer = response.read()
        return str(response.status)

    def _text(self) -> str:
        return self._ask({"text": self._words(), "k": 10})

    def _again(self) -> str:
        return self._ask({"text": "the same text", "k": 10})

    def _filter(self) -> str:
        return self._ask({"text": self._words(), "k": 10, "where": f"size < {self._random.randrange(100)}"})

    def _like(self) -> str:
        return self._ask({"id": self._random.randrange(NUM_ROWS), "k": 10})

    def _picture(self) -> str:
        buffer = io.BytesIO()
        colour = tuple(self._random.randrange(256) for _ in range(3))
        Image.new("RGB", (400, 300), colour).save(buffer, "JPEG")
        return self._ask({"image": base64.b64encode(buffer.getvalue()).decode(), "k": 10})

    def _bad(self) -> str:
        bodies = ({"image": "bm8gaW1hZ2U="}, {"image": "x" * 2_000_000}, {"text": 7}, {"where": "size <"}, {})
        return self._ask(self._random.choice(bodies))

    def _dropped(self) -> str:
        host, port = self._host.split(":")
        with socket.create_connection((host, int(port)), timeout=60) as peer:
            peer.sendall(
                b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n" + b"x" * 100
            )
        return "dropped"

    def _change(self) -> str:
        token = {"Authorization": f"Bearer {TOKEN}"}
        rows = {"items": [{"text": self._words()}], "metadata": [{"image_path": "new.jpg", "size": 1}]}
        added = self._ask(rows, "/admin/indexes/index/add", **token)
        if added != "200":
            return f"add {added}"
        return self._ask({"ids": json.loads(self._answer)["ids"]}, "/admin/indexes/index/remove", **token)


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def describe(points: list[tuple[int, float]], outcomes: Counter[str]) -> str:
    """The course of the memory and what was answered, as markdown."""
    half = points[len(points) // 2 :]
    slope = float(np.polyfit(*zip(*half, strict=True), 1)[0]) * 1024
    lines = ["| requests | resident MiB |", "|---|---|", *(f"| {n:,} | {mib:.1f} |" for n, mib in points)]
    lines += [
        "",
        f"Slope over the second half: {slope:+.2f} KiB a request.",
        "",
        "| request | outcome | number |",
    ]
    lines.append("|---|---|---|")
    for name, count in sorted(outcomes.items()):
        kind, _, outcome = name.partition(": ")
        lines.append(f"| {kind} | {outcome} | {count:,} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
