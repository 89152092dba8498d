"""What answers hold, for the OpenAPI document alone: the service sends what it made without a check."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Status(_Exact):
    """Of `GET /health` and `GET /ready`."""

    status: Literal["ok", "ready", "not ready"]


class IndexFacts(_Exact):
    """An index of `GET /indexes`."""

    name: str
    num_rows: int
    embed_dim: int
    columns: list[str] = Field(description="of the metadata, as `where` and `columns` name them")
    model_id: str | None


class Hit(_Exact):
    """A row that was found."""

    id: int
    similarity: float = Field(description="cosine with the query")
    image: str | None = Field(description="where the picture is, if the service may send it")
    metadata: dict[str, Any]


class SearchAnswer(_Exact):
    """Of `POST /search`: the best first."""

    index: str
    hits: list[Hit]


class Embedding(_Exact):
    """Of one input."""

    object: Literal["embedding"]
    index: int = Field(description="place of the input")
    embedding: list[float] | str = Field(description="L2-normalised; base64 of little-endian float32")


class Usage(_Exact):
    """Tokens of the texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(_Exact):
    """Of `POST /v1/embeddings`."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Model(_Exact):
    """The model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    model_id: str = Field(description="sha256 of weights and configs")


class ModelsAnswer(_Exact):
    """Of `GET /v1/models`."""

    object: Literal["list"]
    data: list[Model]


class KnnHit(BaseModel):
    """A hit of `POST /knn-service`; the first `num_images` have their metadata in the same object."""

    model_config = ConfigDict(extra="allow")

    id: int
    similarity: float


class MetadataRow(_Exact):
    """Of `POST /metadata`."""

    id: int
    metadata: dict[str, Any]


class NumRows(_Exact):
    """Of an index, after `/admin/reload` or `/admin/indexes/NAME/remove`."""

    num_rows: int


class Added(_Exact):
    """Of `/admin/indexes/NAME/add`."""

    ids: list[int] = Field(description="of the rows that were added, in their order")
    num_rows: int
