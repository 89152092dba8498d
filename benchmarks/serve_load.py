"""The clients of `benchmarks/serve.py`.

    python serve_load.py URL NUM_CLIENTS SECONDS SEED [one]

Each client keeps a connection and asks `/knn-service` for ten rows, one query after another, until the time
is up; with `one` all ask the same text. Prints JSON: rate, latencies, and the ids found for each text.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
import time
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


def texts_of(client: int, seed: int) -> list[str]:
    """Texts that no other client asks, of 3 to 14 words."""
    rng = random.Random(f"{seed} {client}")
    return [
        f"{' '.join(rng.choices(WORDS, k=rng.randint(2, 13)))} {client * 10_000 + n}" for n in range(10_000)
    ]


class Client(threading.Thread):
    """Asks until the time is up."""

    def __init__(self, url: str, texts: list[str], until: float) -> None:
        super().__init__()
        self._host = urlsplit(url).netloc
        self._texts, self._until = texts, until
        self.latencies: list[float] = []
        self.ids: dict[str, list[int]] = {}
        self.num_errors = 0

    def run(self) -> None:
        """Ask one query after another."""
        connection = http.client.HTTPConnection(self._host, timeout=120)
        for text in self._texts:
            begin = time.perf_counter()
            if begin >= self._until:
                break
            asked = {"text": text, "modality": "image", "num_images": TOP_K, "num_result_ids": TOP_K}
            body = json.dumps({**asked, "indice_name": "index"})
            connection.request("POST", "/knn-service", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            rows = json.loads(response.read())
            if response.status != 200:
                self.num_errors += 1
                continue
            self.latencies.append(time.perf_counter() - begin)
            self.ids[text] = [row["id"] for row in rows]
        connection.close()


def main() -> None:
    """Run all clients and print what they saw."""
    url, num_clients, seconds, seed = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    one = ["a big red star"] * 1_000_000 if sys.argv[5:] == ["one"] else None
    texts = [one or texts_of(client, seed) for client in range(num_clients)]
    begin = time.perf_counter()
    clients = [Client(url, some, begin + seconds) for some in texts]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    took = time.perf_counter() - begin
    latencies = sorted(latency for client in clients for latency in client.latencies)
    ids = {text: found for client in clients for text, found in client.ids.items()}
    print(
        json.dumps(
            {
                "queries_per_second": len(latencies) / took,
                "p50_ms": latencies[len(latencies) // 2] * 1e3,
                "p99_ms": latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))] * 1e3,
                "num_errors": sum(client.num_errors for client in clients),
                "ids": ids,
            }
        )
    )


if __name__ == "__main__":
    main()
