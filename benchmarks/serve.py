"""Text queries over HTTP: `clipkit serve` against a Flask service in the manner of clip-retrieval's back end.

    python benchmarks/serve.py
    python benchmarks/serve.py --rows 5000 --seconds 3 --repeats 1 --dry-run

ViT-B-32 with random weights, the same for both; vectors that lie around those of captions, so that texts
have neighbours; no text is asked twice, and the cache of texts is off. Clients ask the next query when the
last one is answered (closed loop), from a process of their own. Each service has the index that its tools
make of the same vectors: ours `clipkit index build`, the peer's HNSW32, which autofaiss takes at this size.
The two take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from clipkit.retrieval.index_build import build_index
from report import write_result
from safetensors.torch import save_file

import clipkit
from clipkit.evaluation import encode_texts
from clipkit.scenes import generate

MODEL = "ViT-B-32"
PEER = ("flask", "open_clip_torch", "faiss-cpu", "pyarrow")
NUM_CAPTIONS = 500
NOISE = 0.6
"""Norm of what is added to the unit vector of a caption."""
TOP_K = 10
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


def prepare(folder: Path, num_rows: int) -> None:
    """A model directory and its bare weights, embeddings, and our index."""
    torch.manual_seed(0)
    model = clipkit.create(MODEL)
    model.save(folder / "model")
    save_file(model.model.state_dict(), folder / "weights.safetensors")
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
    build_index(folder / "embeddings", folder / "index")


@contextlib.contextmanager
def running(command: Sequence[str]) -> Iterator[str]:
    """A service that prints its address as the last word of its first line."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"it did not start: {' '.join(command)}")
            yield line.split()[-1]
        finally:
            process.terminate()


def ours(folder: Path, num_threads: int, text_cache_size: int = 0) -> list[str]:
    """The command of `clipkit serve`."""
    command = [sys.executable, "-m", "clipkit", "serve", f"index={folder / 'index'}"]
    limits = [
        "--text-cache-size",
        str(text_cache_size),
        "--max-waiting",
        "1000",
        "--num-threads",
        str(num_threads),
    ]
    return [*command, "--model", str(folder / "model"), "--port", "0", *limits]


def theirs(python: str, folder: Path, num_threads: int) -> list[str]:
    """The command of the peer."""
    return [python, str(HERE / "serve_peer.py"), str(folder), str(num_threads)]


def load(
    url: str, *, num_clients: int, seconds: float, seed: int, repeat_one: bool = False
) -> dict[str, Any]:
    """Ask from another process; see `serve_load.py`."""
    command = [sys.executable, str(HERE / "serve_load.py"), url, str(num_clients), str(seconds), str(seed)]
    found = subprocess.run(
        [*command, *(["one"] if repeat_one else [])], check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, Any] = json.loads(found.stdout)
    return result


def overlap(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Mean share of the ids that both services give for the texts that both were asked."""
    both = first["ids"].keys() & second["ids"].keys()
    if not both:
        raise RuntimeError("the two services were asked no text in common")
    return statistics.mean(len(set(first["ids"][text]) & set(second["ids"][text])) / TOP_K for text in both)


def report(results: dict[str, list[dict[str, Any]]], one: dict[str, Any], agreement: float) -> str:
    """The tables."""
    lines = ["| service | queries/s, median (min, max) | p50 ms | p99 ms | errors |", "|---|---|---|---|---|"]
    rates = {}
    for name, runs in results.items():
        per_second = [run["queries_per_second"] for run in runs]
        rates[name] = statistics.median(per_second)
        p50, p99 = (statistics.median(run[key] for run in runs) for key in ("p50_ms", "p99_ms"))
        spread = f"{rates[name]:.1f} ({min(per_second):.1f}, {max(per_second):.1f})"
        errors = sum(run["num_errors"] for run in runs)
        lines.append(f"| {name} | {spread} | {p50:.1f} | {p99:.1f} | {errors} |")
    ratio = rates["clipkit"] / rates["flask"]
    lines += [
        "",
        f"Ratio of queries/s: {ratio:.2f}. The first {TOP_K} of both agree to {agreement:.3f}.",
        "",
        f"One client, one cached text (HTTP, search and metadata, no tower): p50 {one['p50_ms']:.2f} ms, "
        f"p99 {one['p99_ms']:.2f} ms.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--peer-python", help=f"an environment with {', '.join(PEER)}; made where missing")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    options = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {"clipkit": [], "flask": []}
    agreements = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = options.peer_python or peer_python(folder / "peer")
        prepare(folder, options.rows)
        with (
            running(ours(folder, options.num_threads)) as our_url,
            running(theirs(python, folder, options.num_threads)) as their_url,
        ):
            settings = {"num_clients": options.clients, "seconds": options.seconds}
            for repeat in range(options.repeats + 1):
                one_run = {
                    service: load(url, seed=repeat, **settings)
                    for service, url in (("clipkit", our_url), ("flask", their_url))
                }
                if repeat:  # the first warms up
                    agreements.append(overlap(one_run["clipkit"], one_run["flask"]))
                    for service, result in one_run.items():
                        results[service].append(result)
        with running(ours(folder, options.num_threads, text_cache_size=10)) as url:
            one = load(url, num_clients=1, seconds=min(5.0, options.seconds), seed=0, repeat_one=True)
    body = report(results, one, statistics.mean(agreements))
    setting = (
        f"{options.rows:,} rows, {options.clients} clients, {options.repeats} x {options.seconds:g} s each"
    )
    body = f"{setting}\n\n{body}"
    if options.dry_run:
        print(body)
    else:
        write_result("serve", "Text queries over HTTP", body, command=sys.argv)


if __name__ == "__main__":
    main()
