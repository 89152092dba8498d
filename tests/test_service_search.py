"""What the service answers, over HTTP."""

from __future__ import annotations

import base64
import json
import struct
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from clipkit.retrieval.filters import Filter
from clipkit.retrieval.service.catalog import SearchJob, run_searches
from clipkit.retrieval.service.peer_routes import distinct
from clipkit.retrieval.service.towers import Towers
from serve_jobs import TOKEN, Running, caption_index, captions, png, serving, small_model

from clipkit.images import decode_image


@pytest.fixture(scope="module")
def model() -> Any:
    return small_model()


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    (root / "3.png").write_bytes(png("blue", (500, 400)))
    (root / "4.png").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    return root


@pytest.fixture(scope="module")
def running(model: Any, roots: Path) -> Iterator[Running]:
    make = {"captions": lambda: caption_index(model), "captions-text": lambda: caption_index(model)}
    pictures = {"https://a.b/red.png": png("red")}
    with serving(
        model,
        make=make,
        image_roots=(roots,),
        image_urls=True,
        fetch=lambda url, size, seconds: pictures[url],
        max_results=20,
    ) as running:
        yield running


@pytest.fixture
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as client:
        yield client


def text_vector(model: Any, text: str) -> np.ndarray:
    with torch.inference_mode():
        return model.encode_text(model.tokenizer([text]), normalize=True)[0].numpy()


def image_vector(model: Any, data: bytes) -> np.ndarray:
    with torch.inference_mode():
        pixels = model.preprocess()(decode_image(data))
        return model.encode_image(pixels[None], normalize=True)[0].numpy()


def best(model: Any, vector: np.ndarray, k: int) -> list[int]:
    return np.argsort(-(caption_index(model).rows @ vector), kind="stable")[:k].tolist()


def ids(response: httpx.Response) -> list[int]:
    assert response.status_code == 200, response.text
    return [hit["id"] for hit in response.json()["hits"]]


def refused(response: httpx.Response, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "code"}
    assert "\n" not in error["message"]
    assert "Traceback" not in response.text
    for word in words:
        assert word in error["message"]


def test_texts_find_their_captions(client: httpx.Client) -> None:
    for number, caption in enumerate(captions()):
        response = client.post("/search", json={"text": caption, "k": 3})
        assert ids(response)[0] == number
        hit = response.json()["hits"][0]
        assert hit["metadata"] == {
            "caption": caption,
            "size": number,
            "image_path": f"{number}.png",
            "ratio": None,
        }
        assert hit["similarity"] == pytest.approx(1, abs=1e-5)
        assert hit["image"] == f"/image/captions/{number}"


def test_all_kinds_of_queries_are_the_models(client: httpx.Client, model: Any) -> None:
    picture = png("green")
    wanted = best(model, image_vector(model, picture), 5)
    encoded = base64.b64encode(picture).decode()
    for body in (
        {"image": encoded},
        {"image": f"data:image/png;base64,{encoded}"},
        {"embedding": (image_vector(model, picture) * 3).tolist()},
    ):
        assert ids(client.post("/search", json={**body, "k": 5})) == wanted
    assert ids(client.post("/search", files={"image": picture}, data={"k": "5"})) == wanted
    red = best(model, image_vector(model, png("red")), 5)
    assert ids(client.post("/search", json={"image_url": "https://a.b/red.png", "k": 5})) == red
    assert ids(client.post("/search", json={"id": 7, "k": 5})) == best(model, caption_index(model).rows[7], 5)


def test_parts_are_summed_by_weight(client: httpx.Client, model: Any) -> None:
    picture = png("green")
    total = (
        text_vector(model, "a red star") * 2
        - text_vector(model, "a red circle") * 0.5
        + image_vector(model, picture) * 0.25
        + caption_index(model).rows[9]
    )
    queries = [
        {"text": "a red star", "weight": 2},
        {"text": "a red circle", "weight": -0.5},
        {"image": base64.b64encode(picture).decode(), "weight": 0.25},
    ]
    wanted = best(model, total, 10)
    assert ids(client.post("/search", json={"queries": queries, "id": 9})) == wanted
    form = {"request": json.dumps({"queries": queries[:2]}), "id": "9", "image_weight": "0.25"}
    assert ids(client.post("/search", files={"image": picture}, data=form)) == wanted
    response = client.post("/search", json={"queries": queries, "id": 9, "k": 1})
    similarity = float(caption_index(model).rows[wanted[0]] @ (total / np.linalg.norm(total)))
    assert response.json()["hits"][0]["similarity"] == pytest.approx(similarity, abs=1e-5)


def test_filters_and_columns(client: httpx.Client) -> None:
    response = client.post(
        "/search", json={"text": "a red circle", "where": "size >= 38", "columns": ["size"], "k": 9}
    )
    assert sorted(ids(response)) == [38, 39]
    assert [hit["metadata"].keys() for hit in response.json()["hits"]] == [{"size": None}.keys()] * 2
    assert ids(client.post("/search", json={"text": "a", "where": "size > 99"})) == []
    refused(client.post("/search", json={"text": "a", "where": "size >"}), 400, "expected")
    refused(client.post("/search", json={"text": "a", "where": "height > 2"}), 400, "height")
    refused(client.post("/search", json={"text": "a", "columns": ["height"]}), 400, "height", "caption")


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({}, 400, "empty"),
        ({"text": " "}, 400, "empty"),
        ({"text": "x" * 9000}, 400, "8192"),
        ({"text": "a", "k": 0}, 400, "k"),
        ({"text": "a", "k": 21}, 400, "20"),
        ({"text": "a", "index": "none"}, 404, "captions"),
        ({"text": "a", "topk": 3}, 400, "topk"),
        ({"embedding": [1.0]}, 400, "32"),
        ({"embedding": [0.0] * 32}, 400, "zeros"),
        ({"embedding": [1e999] * 32}, 400, "embedding"),
        ({"id": 40}, 404, "no such row"),
        ({"id": -1}, 400, "id"),
        ({"id": 2**70}, 400, "id"),
        ({"image": "!!!"}, 400, "base64"),
        ({"image": "data:image/png,abc"}, 400, "base64"),
        ({"queries": [{}]}, 400, "none"),
        ({"queries": [{"text": "a", "id": 3}]}, 400, "text, id"),
        ({"queries": [{"text": "a"}] * 65}, 400, "64"),
        ({"queries": [{"text": "a"}, {"text": "a", "weight": -1}]}, 400, "cancel"),
        ([], 400, ""),
        ("a", 400, ""),
    ],
)
def test_requests_of_no_use(client: httpx.Client, body: Any, status: int, word: str) -> None:
    content = json.dumps(body).replace("Infinity", "1e999")
    refused(client.post("/search", content=content), status, word)


def test_a_text_of_half_a_surrogate_pair(client: httpx.Client) -> None:
    refused(client.post("/search", content=b'{"text": "\\ud800"}'), 400)


def test_no_json(client: httpx.Client) -> None:
    for body in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null"):
        refused(client.post("/search", content=body), 400)
    refused(
        client.post("/search", content=b"x", headers={"content-type": "multipart/form-data"}), 400, "form"
    )
    refused(client.post("/search", files={"picture": png()}), 400, "picture")
    refused(client.post("/search", files={"image": png()}, data={"k": "many"}), 400, "k")
    refused(client.post("/search", files={"image": png()}, data={"request": "[]"}), 400, "object")


def test_other_routes(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").status_code == 200
    first, second = client.get("/indexes").json()
    assert (first["name"], first["num_rows"], first["embed_dim"]) == ("captions", 40, 32)
    assert second["name"] == "captions-text"
    refused(client.get("/nothing"), 404)
    refused(client.get("/search"), 405)
    assert client.get("/openapi.json").json()["paths"].keys() >= {"/search", "/v1/embeddings", "/knn-service"}


def test_pictures_of_rows(client: httpx.Client) -> None:
    response = client.get("/image/captions/3")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    assert response.content == png("blue", (500, 400))
    assert response.headers["x-content-type-options"] == "nosniff"
    small = client.get("/image/captions/3?small=true")
    assert small.headers["content-type"] == "image/jpeg"
    assert decode_image(small.content).size == (384, 307)
    for path in ("captions/4", "captions/5", "captions/40", "none/3"):  # an SVG, no file, no row, no index
        refused(client.get(f"/image/{path}"), 404)
    refused(client.get("/image/captions/x"), 400, "row_id")


def test_embeddings_of_openai(client: httpx.Client, model: Any) -> None:
    texts = ["a red star", "", "a red star"]
    refused(client.post("/v1/embeddings", json={"input": texts, "model": "small"}), 400, "empty")
    picture = "data:image/png;base64," + base64.b64encode(png("green")).decode()
    response = client.post("/v1/embeddings", json={"input": ["a red star", picture, "two"], "model": "small"})
    body = response.json()
    assert [item["index"] for item in body["data"]] == [0, 1, 2]
    wanted = [text_vector(model, "a red star"), image_vector(model, png("green")), text_vector(model, "two")]
    for item, vector in zip(body["data"], wanted, strict=True):
        np.testing.assert_allclose(item["embedding"], vector, atol=1e-5)
    assert body["model"] == "small"
    # Start, three words, end; start, one word, end.
    assert body["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    encoded = client.post(
        "/v1/embeddings", json={"input": "two", "encoding_format": "base64", "model": model.model_id}
    )
    values = struct.unpack("<32f", base64.b64decode(encoded.json()["data"][0]["embedding"]))
    np.testing.assert_allclose(values, wanted[2], atol=1e-5)
    as_image = client.post("/v1/embeddings", json={"input": "https://a.b/red.png", "modality": "image"})
    np.testing.assert_allclose(
        as_image.json()["data"][0]["embedding"], image_vector(model, png("red")), atol=1e-5
    )
    as_text = client.post("/v1/embeddings", json={"input": "data:image/png;base64,", "modality": "text"})
    assert as_text.status_code == 200
    refused(client.post("/v1/embeddings", json={"input": "a", "model": "gpt"}), 404, "small")
    refused(client.post("/v1/embeddings", json={"input": "a", "dimensions": 8}), 400, "32")
    refused(client.post("/v1/embeddings", json={"input": []}), 400, "empty")
    refused(client.post("/v1/embeddings", json={"input": [[1, 2]]}), 400, "input")
    (listed,) = client.get("/v1/models").json()["data"]
    assert (listed["id"], listed["object"]) == ("small", "model")


def test_clip_retrievals_client(running: Running, client: httpx.Client, model: Any) -> None:
    # As its ClipClient sends it: JSON without a content type, and all its settings.
    asked = {
        "text": "a blue ring",
        "image": None,
        "image_url": None,
        "embedding_input": None,
        "deduplicate": False,
        "use_safety_model": True,
        "use_violence_detector": True,
        "indice_name": "captions",
        "use_mclip": False,
        "aesthetic_score": 9,
        "aesthetic_weight": 0.5,
        "modality": "image",
        "num_images": 4,
        "num_result_ids": 6,
        "verbose": False,
    }
    request = urllib.request.Request(f"{running.url}/knn-service", json.dumps(asked).encode())
    request.add_header("Content-Type", "")
    with urllib.request.urlopen(request) as response:
        found = json.load(response)
    assert [row["id"] for row in found] == best(model, text_vector(model, "a blue ring"), 6)
    assert found[0]["caption"] == "a blue ring"
    assert [sorted(row) == ["id", "similarity"] for row in found] == [False] * 4 + [True] * 2
    for change in (
        {"text": None, "image": base64.b64encode(png("red")).decode()},
        {"text": None, "image_url": "https://a.b/red.png"},
        {"text": None, "embedding_input": image_vector(model, png("red")).tolist()},
        {"text": None, "modality": "text", "image_url": "https://a.b/red.png"},
    ):
        rows = client.post("/knn-service", json={**asked, **change}).json()
        assert [row["id"] for row in rows] == best(model, image_vector(model, png("red")), 6)
    everything = {**asked, "num_result_ids": 20, "deduplicate": True}
    kept = [row["id"] for row in client.post("/knn-service", json=everything).json()]
    assert 1 <= len(kept) < 20
    assert kept[0] == captions().index("a blue ring")
    refused(client.post("/knn-service", json={**asked, "text": None}), 400, "embedding_input")
    refused(client.post("/knn-service", json={**asked, "use_mclip": True}), 400, "mclip")
    refused(client.post("/knn-service", json={**asked, "num_result_ids": 21}), 400, "20")
    rows = client.post("/metadata", json={"ids": [5, 3], "indice_name": "captions"}).json()
    assert [row["id"] for row in rows] == [5, 3]
    assert rows[0]["metadata"]["caption"] == captions()[5]
    assert "image" not in rows[0]["metadata"]
    assert decode_image(base64.b64decode(rows[1]["metadata"]["image"])).size == (384, 307)
    assert client.post("/metadata", json={"ids": [], "indice_name": "captions"}).json() == []
    assert client.get("/indices-list").json() == ["captions", "captions-text"]


def test_duplicates_are_linked_over_their_neighbours() -> None:
    angles = np.radians([0, 15, 30, 90, 92, 180])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # cos 15 degrees is 0.966; 0 and 30 are linked over 15 although their own cosine is 0.866.
    assert distinct(vectors * 4) == [0, 3, 5]


def test_the_cache_knows_texts_of_the_same_tokens(model: Any) -> None:
    towers = Towers(model, "fp32")
    assert towers.text_key("  A  Red\n\tSTAR ") == "a red star"
    for text in ("É", "a &Prime; b", "a\x1cb", "Ã©"):
        assert towers.text_key(text) == text
    for text in ("A  b\n c", " X y ", "don't  STOP", "12  + 3", "<B>  x"):
        assert torch.equal(model.tokenizer([text]), model.tokenizer([towers.text_key(text)]))
    with serving(model) as running, running.client() as client:
        for text in ("a red star", "A red  star", "a red star", "a blue star"):
            assert client.post("/search", json={"text": text}).status_code == 200
        metrics = client.get("/metrics").text
    assert 'clipkit_text_cache_total{found="yes"} 2.0' in metrics
    assert 'clipkit_text_cache_total{found="no"} 2.0' in metrics


def test_metrics(client: httpx.Client) -> None:
    client.post("/search", json={"text": "something new"})
    client.get("/who/knows/what")
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    text = response.text
    for name in (
        'clipkit_requests_total{route="/search",status="200"}',
        'clipkit_requests_total{route="none",status="404"}',
        'clipkit_stage_seconds_bucket{le="+Inf",stage="encode_text"}',
        'clipkit_stage_seconds_count{stage="search"}',
        'clipkit_stage_seconds_count{stage="queue"}',
        'clipkit_batch_size_count{lane="text"}',
        'clipkit_queue_length{lane="text"} 0.0',
        "clipkit_items_in_work 0.0",
        'clipkit_index_rows{index="captions"} 40.0',
    ):
        assert name in text
    assert "/who/knows" not in text


def test_rows_are_added_and_removed_with_the_token(model: Any) -> None:
    admin = {"Authorization": f"Bearer {TOKEN}"}
    with serving(model) as running, running.client() as client:
        row = {"caption": "new", "size": 1, "image_path": "", "ratio": 1.0}
        body = {"items": [{"text": "a pink elephant"}], "metadata": [row]}
        refused(client.post("/admin/indexes/captions/add", json=body), 401)
        added = client.post("/admin/indexes/captions/add", json=body, headers=admin)
        assert added.json() == {"ids": [40], "num_rows": 41}
        assert ids(client.post("/search", json={"text": "a pink elephant", "k": 1})) == [40]
        assert client.get("/metrics").text.count('clipkit_index_rows{index="captions"} 41.0') == 1
        refused(
            client.post("/admin/indexes/captions/add", json={**body, "metadata": []}, headers=admin), 400, "0"
        )
        refused(client.post("/admin/indexes/captions/remove", json={"ids": [99]}, headers=admin), 400, "99")
        removed = client.post("/admin/indexes/captions/remove", json={"ids": [40]}, headers=admin)
        assert removed.json() == {"num_rows": 40}
        assert ids(client.post("/search", json={"text": "a pink elephant", "k": 1})) != [40]


def test_searches_of_one_batch_keep_their_index_k_and_filter(model: Any) -> None:
    forward, backward = caption_index(model), caption_index(model)
    backward.rows, backward.table = backward.rows[::-1].copy(), backward.table[::-1]
    few = Filter.parse("size < 3")
    jobs = [
        SearchJob(index=index, vector=forward.rows[place], k=k, where=where)
        for index, place, k, where in (
            (forward, 4, 2, None),
            (backward, 4, 2, None),
            (forward, 5, 2, None),
            (forward, 4, 7, None),
            (forward, 4, 7, few),
            (forward, 4, 7, Filter.parse("height < 3")),
        )
    ]
    *found, failed = run_searches(jobs)
    assert [ids[0] for ids, _ in found[:4]] == [4, 35, 5, 4]
    assert [len(ids) for ids, _ in found] == [2, 2, 2, 7, 3]
    assert sorted(found[4][0].tolist()) == [0, 1, 2]
    assert isinstance(failed, ValueError)
