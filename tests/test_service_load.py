"""The service under load, over HTTP: nothing that was accepted is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clipkit.retrieval.index_build import build_index
from serve_jobs import TOKEN, ExactIndex, caption_index, captions, png, serving, small_model

ADMIN = {"X-API-Key": TOKEN}


@pytest.fixture(scope="module")
def model() -> Any:
    return small_model()


def together(count: int, do: Callable[[int], Any]) -> list[Any]:
    """Call `do` from so many threads that begin at once."""
    barrier = threading.Barrier(count)

    def one(number: int) -> Any:
        barrier.wait(20)
        return do(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_64_clients(model: Any) -> None:
    def client_of(number: int) -> list[bool]:
        """Texts, pictures and embeddings, each answered as if it were alone."""
        right = []
        with running.client() as client:
            for turn in range(4):
                place = (number * 7 + turn * 13) % len(captions())
                response = client.post("/search", json={"text": f"{captions()[place]}", "k": 2})
                right.append(response.json()["hits"][0]["id"] == place)
            picture = client.post("/search", files={"image": png((number, 0, 9))}, data={"k": "1"})
            right.append(picture.json()["hits"][0]["id"] == nearest[number])
            vectors = client.post("/v1/embeddings", json={"input": captions()[:3]}).json()["data"]
            right.append(np.allclose([item["embedding"] for item in vectors], index.rows[:3], atol=1e-5))
        return right

    import torch

    from clipkit.images import decode_image

    index = caption_index(model)
    transform = model.preprocess()
    with torch.inference_mode():
        pictures = torch.stack([transform(decode_image(png((number, 0, 9)))) for number in range(64)])
        nearest = (model.encode_image(pictures, normalize=True).numpy() @ index.rows.T).argmax(axis=1)
    with serving(model, text_cache_size=0, max_waiting=1000) as running:
        answers = together(64, client_of)
        with running.client() as client:
            metrics = client.get("/metrics").text
    assert len(answers) == 64
    assert all(all(right) for right in answers)
    sizes = re.search(r'clipkit_batch_size_sum\{lane="text"\} (\S+)', metrics)
    counts = re.search(r'clipkit_batch_size_count\{lane="text"\} (\S+)', metrics)
    assert sizes
    assert counts
    assert float(sizes[1]) == 64 * 7
    assert float(counts[1]) < 64 * 7 / 1.5  # requests were encoded together
    assert "clipkit_items_in_work 0.0" in metrics


def test_a_full_queue_answers_429(model: Any) -> None:
    slow = {"captions": lambda: caption_index(model, delay_seconds=0.3)}
    with serving(model, make=slow, max_waiting=8, retry_after_seconds=7, max_search_batch=1) as running:

        def ask(number: int) -> httpx.Response:
            with running.client() as client:
                return client.post("/search", json={"text": f"text {number}", "k": 1})

        answers = together(16, ask)
        counts = Counter(answer.status_code for answer in answers)
        assert set(counts) == {200, 429}
        assert counts[200] >= 4  # a text and a search each: four have room at once
        for answer in answers:
            if answer.status_code == 429:
                assert answer.headers["retry-after"] == "7"
                assert "busy" in answer.json()["error"]["message"]
        with running.client() as client:
            assert client.get("/health").status_code == 200  # also while it is busy
            assert client.post("/search", json={"text": "after", "k": 1}).status_code == 200
            never = client.post("/search", json={"queries": [{"text": "a"}] * 9})
            assert never.status_code == 400


def test_reload_under_load(model: Any) -> None:
    """Every answer is wholly of one generation: ids, similarities and captions belong together."""
    generation = [0]

    def make() -> ExactIndex:
        index = caption_index(model)
        number = generation[0]
        index.table = [{**row, "caption": f"{number}: {row['caption']}"} for row in index.table]
        if number % 2:
            index.rows, index.table = index.rows[::-1].copy(), index.table[::-1]
        return index

    stop = threading.Event()
    seen: set[str] = set()

    def ask(number: int) -> int:
        count = 0
        with running.client() as client:
            while not stop.is_set():
                place = (number + count) % len(captions())
                response = client.post("/search", json={"text": captions()[place], "k": 1})
                assert response.status_code == 200, response.text
                (hit,) = response.json()["hits"]
                number_of, caption = hit["metadata"]["caption"].split(": ")
                assert caption == captions()[place]
                assert hit["id"] == (len(captions()) - 1 - place if int(number_of) % 2 else place)
                seen.add(number_of)
                count += 1
        return count

    with serving(model, make={"captions": make}) as running, ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(ask, number) for number in range(8)]
        with running.client() as client:
            for number in range(1, 6):
                generation[0] = number
                assert client.post("/admin/reload", headers=ADMIN).json() == {"captions": {"num_rows": 40}}
                time.sleep(0.1)
        stop.set()
        assert all(future.result(20) > 0 for future in futures)
    assert seen >= {"0", "5"}


def test_a_failed_reload_leaves_everything_as_it_was(model: Any) -> None:
    broken = []

    def make() -> ExactIndex:
        if broken:
            raise ValueError(broken[0])
        return caption_index(model)

    with (
        serving(model, make={"a": make, "b": lambda: caption_index(model)}) as running,
        running.client() as client,
    ):
        broken.append("image.index is damaged")
        response = client.post("/admin/reload", headers=ADMIN)
        assert response.status_code == 500
        assert "damaged" in response.json()["error"]["message"]
        assert client.post("/search", json={"text": captions()[3], "k": 1}).json()["hits"][0]["id"] == 3
        assert 'clipkit_reloads_total{result="failed"} 1.0' in client.get("/metrics").text


def test_an_index_of_another_model_is_refused(model: Any) -> None:
    for options, words in (({"model_id": "f" * 64}, "made by model ffff"), ({}, "width 8")):
        index = caption_index(model, **options)
        if not options:
            index.rows = index.rows[:, :8]
        with pytest.raises(ValueError, match=words), serving(model, make={"x": lambda index=index: index}):
            pass


@pytest.fixture(scope="module")
def folders(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory and an index of clipkit's, for services in processes of their own."""
    folder = tmp_path_factory.mktemp("serve")
    model.save(folder / "model")
    embeddings = folder / "embeddings"
    (embeddings / "img_emb").mkdir(parents=True)
    (embeddings / "metadata").mkdir()
    np.save(embeddings / "img_emb" / "img_emb_0.npy", caption_index(model).rows.astype(np.float16))
    table = pa.table({"image_path": [f"{n}.png" for n in range(len(captions()))], "caption": captions()})
    pq.write_table(table, embeddings / "metadata" / "metadata_0.parquet")
    build_index(embeddings, folder / "index")
    return folder


@contextmanager
def process(folders: Path, *flags: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`clipkit serve` and its address."""
    command = [sys.executable, "-m", "clipkit", "serve", f"pictures={folders / 'index'}", "--port", "0"]
    running = subprocess.Popen(
        [*command, "--num-threads", "1", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert running.stdout is not None
    try:
        line = running.stdout.readline()
        assert line.startswith("clipkit serves http://"), running.communicate(timeout=5)
        yield running, line.split()[-1]
    finally:
        if running.poll() is None:
            running.kill()
        running.communicate(timeout=20)


def test_a_process_from_its_settings_to_sigterm_under_load(folders: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    environment = {
        "CLIPKIT_SERVE_MODEL": str(folders / "model"),
        "CLIPKIT_SERVE_MAX_RESULTS": "7",
        "CLIPKIT_SERVE_API_KEYS": "k" * 40,
        "CLIPKIT_SERVE_ADMIN_TOKEN_FILE": str(token),
    }
    headers = {"X-API-Key": "k" * 40}
    with (
        process(folders, "--max-inputs", "32", "--drain-seconds", "0.5", **environment) as (running, url),
        httpx.Client(base_url=url, timeout=30, trust_env=False, headers=headers) as client,
    ):
        assert client.get("/indexes", headers={"X-API-Key": ""}).status_code == 401
        (served,) = client.get("/indexes").json()
        assert (served["name"], served["num_rows"]) == ("pictures", 40)
        red = {"text": captions()[5], "k": 7, "where": 'caption contains "red"'}
        assert len(client.post("/search", json=red).json()["hits"]) == 5
        assert client.post("/search", json={"text": "a", "k": 8}).status_code == 400
        assert client.post("/v1/embeddings", json={"input": ["a"] * 33}).status_code == 400
        change_rows(client)
        build_index(folders / "embeddings", folders / "index", replace=True)
        running.send_signal(signal.SIGHUP)
        assert running.stderr is not None
        assert "reloaded: pictures 40 rows" in running.stderr.readline()
        outcomes = outcomes_of_sigterm(running, client)
    assert outcomes["lost"] == 0, outcomes
    assert outcomes["answered"] >= 16
    assert outcomes["answered"] + outcomes["refused"] == outcomes.total()


def outcomes_of_sigterm(running: subprocess.Popen[str], other: httpx.Client) -> Counter[str]:
    """What became of the requests of eight clients that do not stop asking."""
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()
    are_busy, signalled = threading.Semaphore(0), threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(
            base_url=other.base_url, headers=other.headers, timeout=30, trust_env=False
        ) as client:
            for turn in range(10_000):
                was_before = not signalled.is_set()
                try:
                    response = client.post("/search", json={"text": f"text {number} {turn}", "k": 3})
                    outcome = "answered" if response.status_code == 200 else str(response.status_code)
                except httpx.TransportError:
                    # What begins after the signal may find the door closed.
                    outcome = "lost" if was_before else "refused"
                with lock:
                    outcomes[outcome] += 1
                if turn == 1:
                    are_busy.release()
                if outcome != "answered":
                    return

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(ask, number) for number in range(8)]
        assert all(are_busy.acquire(timeout=20) for _ in futures)
        signalled.set()
        running.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        ready = other.get("/ready")
        assert (ready.status_code, ready.headers["connection"]) == (503, "close")
        assert other.post("/search", json={"text": "late", "k": 3}).status_code == 200
        assert running.wait(20) == 0
        for future in futures:
            future.result(20)
    return outcomes


def test_requests_in_work_are_answered_after_sigterm(model: Any) -> None:
    """Without any time to drain, and whatever they still need: the search comes after the signal here."""
    slow = {"captions": lambda: caption_index(model, delay_seconds=0.5)}
    with serving(model, make=slow) as running, ThreadPoolExecutor(6) as pool:

        def ask(number: int) -> int:
            with running.client() as client:
                return client.post("/search", json={"text": f"text {number}", "k": 1}).status_code

        futures = [pool.submit(ask, number) for number in range(6)]
        with running.client() as client:
            while "clipkit_items_in_work 12.0" not in client.get("/metrics").text:
                assert not any(future.done() for future in futures)
        running.server.handle_exit(signal.SIGTERM, None)
        assert [future.result(20) for future in futures] == [200] * 6
        with running.client() as client, pytest.raises(httpx.TransportError):
            client.get("/health")


def change_rows(client: httpx.Client) -> None:
    """Add and remove, in an index of clipkit's on the disk."""
    rows = [{"image_path": "new.png", "caption": "a pink elephant"}, {"image_path": "b.png", "caption": "b"}]
    body = {"items": [{"text": "a pink elephant"}, {"text": "b"}], "metadata": rows}
    added = client.post("/admin/indexes/pictures/add", json=body, headers=ADMIN)
    assert added.json() == {"ids": [40, 41], "num_rows": 42}
    (hit,) = client.post("/search", json={"text": "a pink elephant", "k": 1}).json()["hits"]
    assert (hit["id"], hit["metadata"]["caption"]) == (40, "a pink elephant")
    again = client.post("/admin/indexes/pictures/add", json=body, headers=ADMIN)
    assert again.status_code == 400
    assert "/tmp" not in again.text
    gone = client.post("/admin/indexes/pictures/remove", json={"ids": [41]}, headers=ADMIN)
    assert gone.json() == {"num_rows": 41}
    unknown = client.post("/admin/indexes/pictures/remove", json={"ids": [41]}, headers=ADMIN)
    assert unknown.status_code == 400


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "--api-keys-file"),
        (["--api-keys-file", "/none"], "/none"),
        (["x=/none"], "/none"),
        (["a/b=c"], "name"),
        (["--max-waiting", "0"], "--max-waiting"),
    ],
)
def test_mistakes_are_one_line(folders: Path, arguments: list[str], words: str, capsys: Any) -> None:
    from clipkit.cli import main

    assert main(["serve", "--model", str(folders / "model"), "--port", "0", *arguments]) in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


def test_settings_by_flag_and_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lists too: a flag is given several times, a variable holds several."""
    from clipkit.cli import main

    taken: list[Any] = []
    monkeypatch.setattr("clipkit.retrieval.service.server.run", lambda *args: taken.append(args) or 0)
    monkeypatch.setattr("clipkit.load", lambda source, device: source)
    (tmp_path / "a").mkdir()
    monkeypatch.setenv("CLIPKIT_SERVE_IMAGE_ROOT", f"{tmp_path}:{tmp_path / 'a'}")
    monkeypatch.setenv("CLIPKIT_SERVE_IMAGE_URLS", "true")
    monkeypatch.setenv("CLIPKIT_SERVE_MAX_WAITING", "9")
    hosts = ["--allowed-host", "a.example", "--allowed-host", "b.example", "--max-waiting", "8"]
    assert main(["serve", "x=/x", "y=/y", "--model", "org/name", *hosts]) == 0
    ((model, name, places, _, settings),) = taken
    assert (model, name, list(places)) == ("org/name", "name", ["x", "y"])
    assert settings.image_roots == (tmp_path, tmp_path / "a")
    assert settings.allowed_hosts == ("a.example", "b.example")
    assert settings.image_urls
    assert settings.max_waiting == 8


def test_a_missing_package_names_the_extra(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from clipkit.cli import main

    for name in [name for name in sys.modules if name.startswith("clipkit.retrieval.service")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", str(folders / "index"), "--model", str(folders / "model")]) == 1
    assert "pip install 'clipkit[serve]'" in capsys.readouterr().err


def test_the_index_names_its_model(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from clipkit.cli import main

    assert main(["serve"]) == 2
    assert "name an index" in capsys.readouterr().err
    assert main(["serve", str(folders / "index")]) == 2
    assert "add --model" in capsys.readouterr().err
