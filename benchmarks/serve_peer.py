"""The peer of `benchmarks/serve.py`: `clip-retrieval back`, in an environment of its own.

    python serve_peer.py FOLDER PORT

With its default flags, but for those that fetch models from the web (`provide_aesthetic_embeddings`,
`enable_mclip_option`), on this machine's own address, where it takes any, and without a log line a request.
Its default `use_jit` scripts the model.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import flask
from clip_retrieval.clip_back import clip_back

folder, port = Path(sys.argv[1]).resolve(), int(sys.argv[2])
run = flask.Flask.run


def run_here(app: flask.Flask, host: str, **options: Any) -> None:
    """`Flask.run` for this machine alone."""
    print(f"clip-retrieval serves http://127.0.0.1:{port}", flush=True)
    run(app, host="127.0.0.1", **options)


flask.Flask.run = run_here  # type: ignore[assignment, method-assign]
logging.getLogger("werkzeug").setLevel(logging.ERROR)
clip_back(
    indices_paths=str(folder / "indices_paths.json"),
    port=port,
    clip_model=f"open_clip:ViT-B-32/{folder / 'weights.pt'}",
    enable_mclip_option=False,
    provide_aesthetic_embeddings=False,
)
