"""Text queries over HTTP: `clipkit serve` against `clip-retrieval back`.

    python benchmarks/serve.py --texts captions.txt
    python benchmarks/serve.py --rows 5000 --seconds 3 --repeats 1 --dry-run

ViT-B-32 with random weights, the same for both; vectors that lie around those of captions, so that texts
have neighbours; no text is asked twice, and the cache of texts is off. Clients ask the next query when the
last one is answered (closed loop), from a process of their own on the same cores. Both serve the index that
`clip-retrieval index` makes, so that they answer alike. The services take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from report import write_result

import clipkit
from clipkit.devices import has_bf16_instructions
from clipkit.evaluation import encode_texts
from clipkit.scenes import generate

MODEL = "ViT-B-32"
PEER = ("clip-retrieval==2.45.0", "numpy<2", "setuptools<81")
PEER_PACKAGES = ("clip_retrieval", "torch", "open_clip_torch", "faiss-cpu", "Flask", "numpy")
NUM_CAPTIONS = 500
NOISE = 0.6
"""Norm of what is added to the unit vector of a caption."""
TOP_K = 10
THEIRS = "clip-retrieval back"
HERE = Path(__file__).resolve().parent


def peer_python(folder: Path) -> str:
    """An environment with what the peer needs alone."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER], check=True)
    return str(python)


def captions(count: int, seed: int) -> list[str]:
    """Different captions of the built-in scenes."""
    found: dict[str, None] = {}
    for scene in generate(20 * count, seed=seed):
        found.setdefault(scene.captions[2].text)
        if len(found) == count:
            break
    return list(found)


def prepare(folder: Path, num_rows: int, peer: str) -> None:
    """A model directory and its bare weights, embeddings, and their index."""
    torch.manual_seed(0)
    model = clipkit.create(MODEL)
    model.save(folder / "model")
    torch.save(model.model.state_dict(), folder / "weights.pt")
    texts = captions(NUM_CAPTIONS, seed=1)
    with torch.inference_mode():
        centres = F.normalize(encode_texts(model, texts, device=torch.device("cpu")), dim=-1).numpy()
    rng = np.random.default_rng(0)
    of_row = rng.integers(len(texts), size=num_rows)
    noise = rng.standard_normal((num_rows, centres.shape[1]), dtype=np.float32)
    noise *= NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
    rows = centres[of_row] + noise
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for name in ("img_emb", "metadata"):
        (folder / "embeddings" / name).mkdir(parents=True)
    np.save(folder / "embeddings" / "img_emb" / "img_emb_0.npy", rows.astype(np.float16))
    table = pa.table(
        {
            "image_path": [f"{row}.jpg" for row in range(num_rows)],
            "caption": [texts[number] for number in of_row],
        }
    )
    pq.write_table(table, folder / "embeddings" / "metadata" / "metadata_0.parquet")
    tool = Path(peer).with_name("clip-retrieval")
    folders = ["--embeddings_folder", folder / "embeddings", "--index_folder", folder / "peer.part"]
    subprocess.run([tool, "index", *map(str, folders)], check=True, stderr=subprocess.DEVNULL)
    (folder / "indices_paths.json").write_text(json.dumps({"index": str((folder / "peer").resolve())}))
    (folder / "peer.part").rename(folder / "peer")


@contextlib.contextmanager
def running(command: Sequence[str], num_threads: int) -> Iterator[str]:
    """A service that prints a line with its address once it is about to listen."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            lines = (line for line in process.stdout if " serves http" in line)
            url = next(lines, "").rpartition(" ")[2].strip()
            if not url:
                raise RuntimeError(f"it did not start: {' '.join(command)}")
            time.sleep(1.0)
            yield url
        finally:
            process.terminate()


def ours(folder: Path, precision: str = "fp32", text_cache_size: int = 0) -> list[str]:
    """The command of `clipkit serve`."""
    command = [sys.executable, "-m", "clipkit", "serve", f"index={folder / 'peer'}", "--port", "0"]
    model = ["--model", str(folder / "model"), "--precision", precision]
    return [*command, *model, "--text-cache-size", str(text_cache_size), "--max-waiting", "1000"]


def theirs(python: str, folder: Path) -> list[str]:
    """The command of the peer, at a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [python, str(HERE / "serve_peer.py"), str(folder), str(port)]


def load(url: str, seconds: float, *options: str) -> dict[str, Any]:
    """Ask from another process; see `serve_load.py`."""
    command = [sys.executable, str(HERE / "serve_load.py"), url, "--seconds", str(seconds), *options]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(found.stdout)
    return result


def overhead() -> dict[str, float]:
    """See `serve_overhead.py`."""
    command = [sys.executable, str(HERE / "serve_overhead.py")]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(found.stdout)
    return result


def overlap(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Mean share of the ids that both services give for the texts that both were asked."""
    both = first["ids"].keys() & second["ids"].keys()
    if not both:
        raise RuntimeError("the two services were asked no text in common")
    return statistics.mean(len(set(first["ids"][text]) & set(second["ids"][text])) / TOP_K for text in both)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median (min, max)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}, {max(values):.{digits}f})"


def table(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A row a service; ratios and overlaps are of the rounds that stand side by side."""
    lines = [
        "| service | queries/s | p50 ms | p99 ms | errors | ratio of queries/s | first 10 in common |",
        "|---|---|---|---|---|---|---|",
    ]
    peers = results[THEIRS]
    for name, runs in results.items():
        rates, p50, p99 = ([run[key] for run in runs] for key in ("queries_per_second", "p50_ms", "p99_ms"))
        errors = sum(run["num_errors"] for run in runs)
        ratios = [rate / peer["queries_per_second"] for rate, peer in zip(rates, peers, strict=True)]
        like = statistics.mean(overlap(run, peer) for run, peer in zip(runs, peers, strict=True))
        lines.append(
            f"| {name} | {spread(rates)} | {spread(p50, 0)} | {spread(p99, 0)} | {errors} | {spread(ratios)} "
            f"| {like:.3f} |"
        )
    return lines


def peer_versions(python: str) -> str:
    """Of the packages that the peer's speed depends on."""
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    found = subprocess.run(
        [python, "-c", code, *PEER_PACKAGES], check=True, stdout=subprocess.PIPE, text=True
    )
    versions = zip(PEER_PACKAGES, found.stdout.split(), strict=True)
    return ", ".join(f"{package} {version}" for package, version in versions)


def measure(folder: Path, python: str, options: argparse.Namespace) -> str:
    """All figures."""
    texts = [] if options.texts is None else ["--texts", str(options.texts)]
    clients = ["--clients", str(options.clients), *texts]
    commands = {"clipkit serve": ours(folder), THEIRS: theirs(python, folder)}
    if has_bf16_instructions():
        commands["clipkit serve --precision bf16"] = ours(folder, "bf16")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    lines = []
    with contextlib.ExitStack() as stack:
        urls = {
            name: stack.enter_context(running(command, options.num_threads))
            for name, command in commands.items()
        }
        for url in urls.values():
            load(url, options.seconds / 2, *clients)  # warms up
        for _ in range(options.repeats):
            for name, url in urls.items():
                results[name].append(load(url, options.seconds, *clients))
        lines += ["", f"Open loop, half of each service's own rate above, {options.seconds:g} s:", ""]
        for name, url in urls.items():
            rate = statistics.median(run["queries_per_second"] for run in results[name]) / 2
            found = load(url, options.seconds, "--rate", str(rate), *texts)
            lines.append(
                f"- {name}: {rate:.1f} texts/s, p50 {found['p50_ms']:.0f} ms, p99 {found['p99_ms']:.0f} ms"
            )
    with running(ours(folder, text_cache_size=10), options.num_threads) as url:
        one = load(url, options.seconds / 2, "--clients", "1", "--one")
    own = overhead()
    return "\n".join(
        [
            *table(results),
            *lines,
            "",
            f"Own code per request, in process, with a tower and an index that cost nothing: "
            f"{own['processor_ms']:.2f} ms of processor time.",
            "",
            f"One client, one cached text (HTTP, search and metadata, no tower): p50 {one['p50_ms']:.2f} ms, "
            f"p99 {one['p99_ms']:.2f} ms.",
            "",
        ]
    )


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--texts", type=Path, help="queries, one a line; made up where missing")
    parser.add_argument("--folder", type=Path, help="where model and indexes are kept for the next run")
    parser.add_argument("--peer-python", help=f"an environment with {', '.join(PEER)}; made where missing")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        python = options.peer_python or peer_python(Path(name) / "environment")
        if not (folder / "peer").exists():
            shutil.rmtree(folder / "embeddings", ignore_errors=True)
            prepare(folder, options.rows, python)
        figures = measure(folder, python, options)
        versions = peer_versions(python)
    setting = (
        f"{options.rows:,} rows, {options.clients} clients, {options.repeats} rounds of "
        f"{options.seconds:g} s, "
        f"{options.num_threads} threads. Queries: {options.texts.name if options.texts else 'made up'}. "
        "Medians over the rounds, with lowest and highest."
    )
    body = f"{setting}\n\nPeer: {versions}.\n\n{figures}"
    if options.dry_run:
        print(body)
    else:
        write_result("serve", "Text queries over HTTP", body, command=sys.argv)


if __name__ == "__main__":
    main()
