"""A small model, an exact index in memory, and services over them, for the tests of `clipkit serve`."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import torch
from clipkit.retrieval.serve_settings import ServeSettings
from clipkit.retrieval.service.access import Keys
from clipkit.retrieval.service.app import create_app
from clipkit.retrieval.service.catalog import Place
from clipkit.retrieval.service.engine import Engine
from clipkit.retrieval.service.server import Server, server_config
from clipkit.retrieval.service.towers import Towers
from PIL import Image

import clipkit

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
WORDS = ("circle", "square", "star", "ring", "cross")
KEY = "k" * 32
TOKEN = "t" * 32


@dataclass(frozen=True)
class Found:
    ids: np.ndarray
    similarities: np.ndarray


@dataclass
class ExactIndex:
    """Compares everything."""

    rows: np.ndarray
    table: list[dict[str, Any]]
    model_id: str | None = None
    delay_seconds: float = 0.0
    ids: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.ids = np.arange(len(self.rows))

    @property
    def embed_dim(self) -> int:
        return self.rows.shape[1]

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def columns(self) -> Sequence[str]:
        return tuple(self.table[0]) if self.table else ()

    def search(self, queries: np.ndarray, k: int, *, where: Any = None) -> Found:
        time.sleep(self.delay_seconds)
        mask = np.ones(len(self.rows), bool)
        if where is not None:
            where.check(self.columns)
            mask = where.mask(pa.Table.from_pylist(self.table))
        scores = np.where(mask, queries @ self.rows.T, -np.inf)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(scores, order, axis=1)
        return Found(np.where(np.isfinite(best), self.ids[order], -1), best.astype(np.float32))

    def metadata(self, ids: Sequence[int], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        return [
            {name: self._row(row)[name] for name in columns or self.columns}
            for row in np.asarray(ids).tolist()
        ]

    def vectors(self, ids: Sequence[int]) -> np.ndarray:
        for row in ids:
            self._row(row)
        return self.rows[np.asarray(ids)]

    def _row(self, row: int) -> dict[str, Any]:
        if not 0 <= row < len(self.table):
            raise ValueError(f"there is no row with id {row} in /secret/place")
        return self.table[row]


class Memory:
    """Storage whose indexes are made by functions, and changed by appending."""

    def __init__(self, make: Mapping[str, Callable[[], ExactIndex]]) -> None:
        self._make = make
        self.added: list[tuple[np.ndarray, list[dict[str, Any]]]] = []

    def open(self, place: Place) -> ExactIndex:
        index = self._make[place.path.name]()
        for vectors, table in self.added:
            index = ExactIndex(
                np.concatenate([index.rows, vectors]),
                index.table + table,
                index.model_id,
                index.delay_seconds,
            )
        return index

    def add(self, place: Place, vectors: np.ndarray, metadata: Sequence[dict[str, Any]]) -> list[int]:
        first = self.open(place).num_rows
        self.added.append((vectors, list(metadata)))
        return list(range(first, first + len(vectors)))

    def remove(self, place: Place, ids: Sequence[int]) -> None:
        for row in ids:
            self.open(place)._row(row)
        del self.added[-1:]


def captions() -> list[str]:
    return [f"a {colour} {word}" for colour in COLOURS for word in WORDS]


def small_model() -> Any:
    torch.manual_seed(0)
    return clipkit.create("test-vit")


def caption_index(model: Any, **options: Any) -> ExactIndex:
    """An index of the captions themselves, so that the best hit of a caption is the caption."""
    with torch.inference_mode():
        rows = model.encode_text(model.tokenizer(captions()), normalize=True).numpy()
    table = [
        {"caption": text, "size": number, "image_path": f"{number}.png", "ratio": float("nan")}
        for number, text in enumerate(captions())
    ]
    return ExactIndex(rows, table, **options)


def png(colour: Any = "red", size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


@dataclass(frozen=True)
class Running:
    url: str
    engine: Engine
    server: Server
    storage: Memory

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, **options)


@contextmanager
def serving(
    model: Any,
    *,
    make: Mapping[str, Callable[[], ExactIndex]] | None = None,
    keys: Sequence[str] = (),
    admin: Sequence[str] = (TOKEN,),
    fetch: Any = None,
    **settings: Any,
) -> Iterator[Running]:
    """A service over HTTP in a thread, with the index `captions` unless `make` says otherwise."""
    make = make or {"captions": lambda: caption_index(model)}
    storage = Memory(make)
    chosen = ServeSettings(**{"port": 0, "num_threads": 1, **settings})
    places = {name: Place(path=Path("/indexes") / name) for name in make}
    options = {} if fetch is None else {"fetch": fetch}
    engine = Engine(Towers(model, "fp32"), places, storage, chosen, **options)
    app = create_app(engine, model_name="small", keys=Keys(keys), admin=Keys(admin))
    server = Server(server_config(app, chosen), engine)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(f"http://127.0.0.1:{port}", engine, server, storage)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
