"""Where an index is kept: in a folder (faiss) or in a collection of Milvus."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .index import SearchIndex
    from .milvus_index import MilvusIndex


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """What keeps the index."""

    backend: Literal["faiss", "milvus"] = "faiss"
    """`milvus`: the index is a collection of that name at --uri."""
    uri: str | None = None
    """Of Milvus: `http://HOST:19530` (its token in $CLIPKIT_MILVUS_TOKEN), or `NAME.db`, a file of
    Milvus Lite."""

    def __post_init__(self) -> None:
        if self.backend == "milvus" and not self.uri:
            raise ValueError("--backend milvus needs --uri: http://HOST:19530, or NAME.db for Milvus Lite")
        if self.backend == "faiss" and self.uri:
            raise ValueError("--uri is of Milvus: add --backend milvus")

    @property
    def milvus_uri(self) -> str | None:
        """The URI where Milvus keeps the index, else None."""
        return self.uri if self.backend == "milvus" else None


def open_index(index: Path, options: BackendOptions) -> SearchIndex | MilvusIndex:
    """Open a folder, or the collection of that name.

    Raises:
        OSError: there is no index, or what reads it is not installed or cannot be reached.
        ValueError: it is damaged or of something else.
    """
    if options.milvus_uri is not None:
        from .milvus_index import MilvusIndex

        return MilvusIndex.open(options.milvus_uri, str(index))
    from .index import SearchIndex

    return SearchIndex.open(index)
