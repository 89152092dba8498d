"""The peer of `benchmarks/serve.py`: a service like clip-retrieval's, in an environment of its own.

    python serve_peer.py FOLDER NUM_THREADS

Flask's server with a thread a request, as `clip-retrieval back` starts it; each request tokenizes, encodes,
searches (`search_and_reconstruct`) and reads metadata for itself. What clip-retrieval does beyond this
(deduplication, safety models, pictures as base64) is left out.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import faiss
import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
from flask import Flask, Response, request
from safetensors.torch import load_file
from werkzeug.serving import make_server

folder, num_threads = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(num_threads)
faiss.omp_set_num_threads(num_threads)
model = open_clip.create_model("ViT-B-32")
model.load_state_dict(load_file(folder / "weights.safetensors"))
model.eval()
tokenizer = open_clip.get_tokenizer("ViT-B-32")
vectors = np.load(folder / "embeddings" / "img_emb" / "img_emb_0.npy").astype(np.float32)
index = faiss.index_factory(vectors.shape[1], "HNSW32", faiss.METRIC_INNER_PRODUCT)
index.hnsw.efSearch = 64
index.add(vectors)
metadata = pq.read_table(folder / "embeddings" / "metadata" / "metadata_0.parquet").to_pydict()
app = Flask(__name__)


@app.post("/knn-service")
def knn_service() -> Response:
    """Answer one query."""
    asked = request.get_json(force=True)
    with torch.no_grad():
        features = model.encode_text(tokenizer([asked["text"]]))
        features /= features.norm(dim=-1, keepdim=True)
    found, ids, _ = index.search_and_reconstruct(features.numpy().astype("float32"), asked["num_result_ids"])
    rows = [
        {
            **{name: column[row] for name, column in metadata.items()},
            "id": int(row),
            "similarity": float(cosine),
        }
        for row, cosine in zip(ids[0], found[0], strict=True)
    ]
    return Response(json.dumps(rows), mimetype="application/json")


logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = make_server("127.0.0.1", 0, app, threaded=True)
print(f"flask serves http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
