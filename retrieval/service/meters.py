"""What /metrics shows; in a registry of its own, so that importing this touches no other's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Meters:
    """The metrics of one service."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, namespace="clipkit", registry=self._registry)
        gauge = partial(Gauge, namespace="clipkit", registry=self._registry)
        seconds = partial(Histogram, namespace="clipkit", registry=self._registry, buckets=_SECONDS)
        self.requests = counter("requests", "Requests answered.", ["route", "status"])
        self.seconds = seconds("request_seconds", "From a request's head to its answer's end.", ["route"])
        self.stage_seconds = seconds("stage_seconds", "Time of one stage of a request.", ["stage"])
        self.batch_size = Histogram(
            "batch_size",
            "Jobs that were done together.",
            ["lane"],
            namespace="clipkit",
            registry=self._registry,
            buckets=_SIZES,
        )
        self.queue_length = gauge("queue_length", "Jobs that wait.", ["lane"])
        self.in_work = gauge("items_in_work", "Texts, pictures and searches accepted and not ended.")
        self.buffered = gauge("buffered_bytes", "Bodies of requests held in memory.")
        self.text_cache = counter("text_cache", "Texts looked up in the cache.", ["found"])
        self.reloads = counter("reloads", "Times that the indexes were opened anew.", ["result"])
        self.index_rows = gauge("index_rows", "Rows of an index.", ["index"])

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, whether it ends well or not."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.stage_seconds.labels(name).observe(time.perf_counter() - begin)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def waiting(self, lane: str, count: int) -> None:
        """So many jobs wait in a lane of the worker."""
        self.queue_length.labels(lane).set(count)

    def batch(self, lane: str, size: int, waited_seconds: float) -> None:
        """The worker begins a batch whose first job has waited so long."""
        self.batch_size.labels(lane).observe(size)
        self.stage_seconds.labels("queue").observe(waited_seconds)
