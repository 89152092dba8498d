"""What requests may say."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

RowId = Annotated[int, Field(ge=0, lt=2**63)]
KINDS = ("text", "image", "image_url", "embedding", "id")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Part(_Strict):
    """One part of a query: exactly one of its kinds, and how much it counts."""

    text: str | None = None
    image: str | None = Field(default=None, description="base64, bare or as a data: URL")
    image_url: str | None = None
    embedding: list[FiniteFloat] | None = None
    id: RowId | None = Field(default=None, description="the row of that id: more like this")
    weight: FiniteFloat = Field(default=1.0, description="may be negative: less like this")


class SearchRequest(_Strict):
    """`POST /search`: parts at the top count 1, those of `queries` their weight; all are summed."""

    text: str | None = None
    image: str | None = None
    image_url: str | None = None
    embedding: list[FiniteFloat] | None = None
    id: RowId | None = None
    queries: list[Part] = Field(default_factory=list)
    image_weight: FiniteFloat = Field(default=1.0, description="of the files of a form")
    k: int = Field(default=10, ge=1)
    where: str | None = Field(default=None, description="filter over the metadata")
    index: str | None = None
    columns: list[str] | None = Field(default=None, description="metadata to send; all by default")

    def parts(self) -> list[Part]:
        """All parts, in one form."""
        top = [Part(**{kind: value}) for kind in KINDS if (value := getattr(self, kind)) is not None]
        return top + self.queries


class EmbeddingsRequest(BaseModel):
    """`POST /v1/embeddings` of OpenAI, with infinity's `modality`."""

    input: str | list[str]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    modality: Literal["text", "image"] | None = None
    user: str | None = None


class KnnRequest(BaseModel):
    """`POST /knn-service` of clip-retrieval; what it has no means for is ignored, as there."""

    text: str | None = None
    image: str | None = None
    image_url: str | None = None
    embedding_input: list[FiniteFloat] | None = None
    modality: Literal["image", "text"] = "image"
    num_images: int = Field(default=40, ge=0)
    num_result_ids: int | None = Field(default=None, ge=1)
    indice_name: str | None = None
    deduplicate: bool = False
    use_mclip: bool = False


class MetadataRequest(BaseModel):
    """`POST /metadata` of clip-retrieval."""

    ids: list[RowId]
    indice_name: str | None = None


class AddRequest(_Strict):
    """`POST /admin/indexes/NAME/add`: vectors, texts or pictures, with the metadata of each."""

    items: list[Part] = Field(min_length=1)
    metadata: list[dict[str, Any]]


class RemoveRequest(_Strict):
    """`POST /admin/indexes/NAME/remove`."""

    ids: list[RowId] = Field(min_length=1)
