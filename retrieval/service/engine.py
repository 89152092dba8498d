"""Everything that answers need: towers, indexes, the worker that owns them, and how much may be in work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

from clipkit.images import ImageError

from ..filters import Filter
from ..serve_settings import ServeSettings
from .catalog import Catalog, Int64s, Place, SearchJob, Served, Storage, run_searches
from .fetch import Fetch, fetch_image
from .meters import Meters
from .refusal import Refusal
from .towers import TextCache, Towers, Vector
from .worker import Lane, Worker

T = TypeVar("T")


class Engine:
    """Used from the event loop; the methods that compute are coroutines."""

    def __init__(
        self,
        towers: Towers,
        places: Mapping[str, Place],
        storage: Storage,
        settings: ServeSettings,
        fetch: Fetch = fetch_image,
    ) -> None:
        """Open the indexes and start the threads.

        Raises:
            OSError, ValueError: an index cannot be opened, or is of another model.
        """
        self.settings = settings
        self.meters = Meters()
        self.towers = towers
        self.catalog = Catalog(places, storage, model_id=towers.model_id, embed_dim=towers.embed_dim)
        self._cache = TextCache(settings.text_cache_size)
        self._fetch = fetch
        self._in_work = 0
        self._pool = ThreadPoolExecutor(settings.num_decode_threads, "clipkit-decode")
        self._fetch_pool = ThreadPoolExecutor(4, "clipkit-fetch")
        self._workers = self._start_workers()
        self._worker_of = {lane: worker for lanes, worker in self._workers for lane in lanes}
        self.is_draining = False
        self._show_rows()

    def _start_workers(self) -> list[tuple[list[str], Worker]]:
        """A thread for towers and one for indexes: a search does not wait for the next batch of texts."""
        settings = self.settings
        encode = {
            "text": Lane(
                run=self._timed("encode_text", self._encode_texts), max_batch=settings.max_text_batch
            ),
            "tokens": Lane(run=self.towers.count, max_batch=settings.max_text_batch),
            "image": Lane(
                run=self._timed("encode_image", self.towers.images), max_batch=settings.max_image_batch
            ),
        }
        search = {
            "search": Lane(run=self._timed("search", run_searches), max_batch=settings.max_search_batch)
        }
        set_up = _set_up(settings.num_threads)
        return [
            (list(lanes), Worker(f"clipkit-{next(iter(lanes))}", lanes, self.meters, set_up))
            for lanes in (encode, search)
        ]

    @property
    def is_ready(self) -> bool:
        """Whether new requests are welcome."""
        return not self.is_draining and all(worker.is_alive for _, worker in self._workers)

    def close(self) -> None:
        """Do what is in work, then end all threads."""
        for _, worker in self._workers:
            worker.close()
        for pool in (self._pool, self._fetch_pool):
            pool.shutdown()

    @contextmanager
    def admitted(self, num_items: int) -> Iterator[None]:
        """Take room for so many texts, pictures and searches, for as long as they are in work.

        Raises:
            Refusal: 429, there is none at present; 400, there never is so much.
        """
        limit = self.settings.max_waiting
        if num_items > limit:
            raise Refusal(400, f"at most {limit} items a request, got {num_items}")
        if self._in_work + num_items > limit:
            raise self.busy()
        self._in_work += num_items
        self.meters.in_work.set(self._in_work)
        try:
            yield
        finally:
            self._in_work -= num_items
            self.meters.in_work.set(self._in_work)

    def busy(self) -> Refusal:
        """The answer to one request too many."""
        seconds = self.settings.retry_after_seconds
        return Refusal(
            429, f"the service is busy: try again in {seconds} s", headers={"Retry-After": str(seconds)}
        )

    async def texts(self, texts: Sequence[str]) -> list[Vector]:
        """Unit vectors (D,) of texts."""
        keys = [self.towers.text_key(text) for text in texts]
        known = {key: self._cache.get(key) for key in dict.fromkeys(keys)}
        missing = [key for key, vector in known.items() if vector is None]
        self.meters.text_cache.labels("yes").inc(len(known) - len(missing))
        self.meters.text_cache.labels("no").inc(len(missing))
        # A query has one text as a rule, and a task for it costs more than the rest of this function.
        waits = [self._job("text", key) for key in missing]
        found = [await waits[0]] if len(waits) == 1 else await asyncio.gather(*waits)
        vectors = {**known, **dict(zip(missing, found, strict=True))}
        return [vectors[key] for key in keys]

    async def count_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that the tower reads of all texts together."""
        return sum(await asyncio.gather(*(self._job("tokens", text) for text in texts)))

    async def image(self, data: bytes) -> Vector:
        """Unit vector (D,) of an image file.

        Raises:
            Refusal: 400 or 413, it cannot be used.
        """
        try:
            with self.meters.stage("decode"):
                pixels = await self.in_pool(self.towers.pixels, data, self.settings.max_image_pixels)
        except ImageError as error:
            raise Refusal(413 if "bomb" in error.reason else 400, f"the picture: {error}") from error
        vector: Vector = await self._job("image", pixels)
        return vector

    async def image_at(self, url: str) -> Vector:
        """Unit vector (D,) of a picture on the web.

        Raises:
            Refusal: 403, the service fetches none; 400, this one cannot be had.
        """
        settings = self.settings
        if not settings.image_urls:
            raise Refusal(403, "this service fetches no pictures: send the picture itself")
        try:
            with self.meters.stage("fetch"):
                data = await asyncio.get_running_loop().run_in_executor(
                    self._fetch_pool,
                    self._fetch,
                    url,
                    settings.max_upload_bytes,
                    settings.url_timeout_seconds,
                )
        except (OSError, ValueError) as error:
            raise Refusal(400, f"image_url: {error}") from error
        return await self.image(data)

    async def search(
        self, served: Served, vector: Vector, k: int, where: str | None
    ) -> tuple[list[int], list[float]]:
        """Ids and cosines of the best k that `where` lets through.

        Raises:
            Refusal: 400, the filter means nothing.
        """
        try:
            condition = None if where is None else Filter.parse(where)
            k = min(k, served.index.num_rows)
            if k == 0:
                return [], []
            job = SearchJob(index=served.index, vector=vector, k=k, where=condition)
            ids, similarities = await self._job("search", job)
        except ValueError as error:
            raise Refusal(400, str(error)) from error
        return ids.tolist(), similarities.tolist()

    async def metadata(
        self, served: Served, ids: Sequence[int], columns: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """A dict a row.

        Raises:
            Refusal: 404, an id is not there; 400, a column is not.
        """
        unknown = sorted(set(columns or ()) - set(served.index.columns))
        if unknown:
            raise Refusal(
                400, f"there is no column {unknown[0]!r}; there are {', '.join(served.index.columns)}"
            )
        if not ids:
            return []
        with self.meters.stage("metadata"), _missing_ids(served):
            return await self.in_pool(served.index.metadata, _int64s(ids), columns)

    async def vectors(self, served: Served, ids: Sequence[int]) -> Vector:
        """(N, D) of the rows of some ids.

        Raises:
            Refusal: 404, an id is not there.
        """
        with _missing_ids(served):
            return await self.in_pool(served.index.vectors, _int64s(ids))

    async def reload(self) -> list[Served]:
        """Open all indexes anew; requests under way end with the old ones.

        Raises:
            Refusal: 500, one cannot be opened; all stay as they are.
        """
        try:
            served = await asyncio.to_thread(self.catalog.reload)
        except (OSError, ValueError) as error:
            self.meters.reloads.labels("failed").inc()
            raise Refusal(500, f"not reloaded, the old indexes stay: {error}") from error
        self.meters.reloads.labels("done").inc()
        self._show_rows()
        return served

    async def edit(self, served: Served, change: Callable[[Place], T]) -> T:
        """Change an index and serve what it became; requests under way end with what it was.

        Raises:
            Refusal: 400, the change is of no use; 409, the index cannot be written.
        """
        try:
            result = await asyncio.to_thread(self.catalog.edit, served.name, change)
        except ValueError as error:
            raise Refusal(400, str(error)) from error
        except OSError as error:
            raise Refusal(409, f"index {served.name} cannot be changed: {error}") from error
        self._show_rows()
        return result

    async def in_pool(self, function: Callable[..., T], *args: Any) -> T:
        """Run what decodes or reads files."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    async def _job(self, lane: str, job: Any) -> Any:
        try:
            future = self._worker_of[lane].submit(lane, job)
        except RuntimeError as error:
            raise Refusal(503, str(error)) from error
        return await asyncio.wrap_future(future)

    def _encode_texts(self, keys: Sequence[str]) -> Sequence[Vector | Exception]:
        vectors = self.towers.texts(keys)
        for key, vector in zip(keys, vectors, strict=True):
            if not isinstance(vector, Exception):
                self._cache.put(key, vector)
        return vectors

    def _timed(
        self, stage: str, run: Callable[[Sequence[Any]], Sequence[Any]]
    ) -> Callable[..., Sequence[Any]]:
        def timed(jobs: Sequence[Any]) -> Sequence[Any]:
            with self.meters.stage(stage):
                return run(jobs)

        return timed

    def _show_rows(self) -> None:
        for served in self.catalog.all():
            self.meters.index_rows.labels(served.name).set(served.index.num_rows)


@contextmanager
def _missing_ids(served: Served) -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, ValueError) as error:
        raise Refusal(404, f"index {served.name} has no such row") from error


def _int64s(ids: Sequence[int]) -> Int64s:
    try:
        return np.asarray(ids, dtype=np.int64)
    except OverflowError as error:
        raise Refusal(404, "an id is out of range") from error


def _set_up(num_threads: int | None) -> Callable[[], None]:
    """What the worker's thread does first: OpenMP counts its threads for each thread that calls it."""

    def set_up() -> None:
        if num_threads is None:
            return
        torch.set_num_threads(num_threads)
        try:
            import faiss
        except ImportError:
            return
        faiss.omp_set_num_threads(num_threads)

    return set_up
