"""`clipkit search`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from .backend import BackendOptions, open_index

if TYPE_CHECKING:
    from .index import Hits, SearchIndex
    from .milvus_index import MilvusIndex
    from .rows import Float32s

app = App(
    name="search",
    help="Find images in an index by texts and images.",
    default_parameter=Parameter(negative=()),
)

_CELL = 60


@dataclass(frozen=True, kw_only=True)
class QueryOptions:
    """What is searched for. Behind any text or file, `:0.5` is its weight."""

    image: tuple[str, ...] = ()
    """An image file; may be given several times."""
    add: tuple[str, ...] = ()
    """A further text."""
    subtract: tuple[str, ...] = ()
    """A text to be less like."""
    top_k: Annotated[int, Parameter(name=("--top-k", "-k"))] = 10
    """How many hits."""
    where: str | None = None
    """A condition on metadata: `width >= 512 and caption contains "dog"`."""
    deduplicate: float | None = None
    """Leave out hits that are as similar as this to a better one; 0.94 is usual."""

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"--top-k must be at least 1, got {self.top_k}")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """How hits are shown."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print JSON."""
    paths: bool = False
    """Print the paths of the images alone, a line each, for a pipe."""
    sheet: Path | None = None
    """Write the pictures to an HTML page as well."""


_QUERY, _OUTPUT, _BACKEND = QueryOptions(), OutputOptions(), BackendOptions()


@app.default
def search(
    index: Path,
    text: str | None = None,
    /,
    *,
    query: Annotated[QueryOptions, Parameter(name="*")] = _QUERY,
    output: Annotated[OutputOptions, Parameter(name="*")] = _OUTPUT,
    model: str | None = None,
    backend: Annotated[BackendOptions, Parameter(name="*")] = _BACKEND,
) -> int:
    """Find images by a text, an image, or several of both with weights.

    Args:
        index: a folder of `clipkit index`, or of clip-retrieval; with --backend milvus, a collection.
        text: what to look for.
        query: what else, and where.
        output: how hits are shown.
        model: the model that the index was made with; by default where the index says it was.
        backend: what keeps the index.

    Returns:
        0, or 1 where nothing was found.
    """
    from .filters import Filter
    from .search import search_distinct

    where = None if query.where is None else Filter.parse(query.where)
    opened = open_index(index, backend)
    if where is not None:
        where.check(opened.columns)
    vector, described = _query_vector(opened, text, query, model)
    k = min(query.top_k, max(1, opened.num_rows))
    if query.deduplicate is None:
        hits = opened.search(vector, k, where=where)
    else:
        hits = search_distinct(opened, vector, k, query.deduplicate, where=where)
    rows = _rows(opened, hits)
    if output.sheet is not None:
        from .search_sheet import write_sheet

        write_sheet(output.sheet, described, rows)
    _print(rows, output)
    return 0 if rows else 1


def _query_vector(
    index: SearchIndex | MilvusIndex, text: str | None, query: QueryOptions, model: str | None
) -> tuple[Float32s, str]:
    import clipkit

    from .combine import combine, parse_weighted
    from .search import check_model, encode_queries

    texts = [parse_weighted(part) for part in (() if text is None else (text,)) + query.add]
    texts += [(content, -weight) for content, weight in map(parse_weighted, query.subtract)]
    images = [parse_weighted(part) for part in query.image]
    if not any(weight > 0 for _, weight in texts + images):
        raise ValueError(
            'name what to look for: a text, --image FILE or --add TEXT, as in search IDX "a red car"'
        )
    source = model or index.model_source
    if source is None:
        raise ValueError(f"{index.path} does not say what model it was made with: name it with --model")
    loaded = clipkit.load(source)
    check_model(index, loaded)
    vectors = encode_queries(loaded, [part for part, _ in texts], [Path(part) for part, _ in images])
    described = "  ".join(f"{'-' if weight < 0 else '+'} {part}" for part, weight in texts + images)
    return combine(vectors, [weight for _, weight in texts + images]), described.removeprefix("+ ")


def _rows(index: SearchIndex | MilvusIndex, hits: Hits) -> list[dict[str, Any]]:
    there = hits.ids[0] >= 0
    ids, similarities = hits.ids[0][there].tolist(), hits.similarities[0][there].tolist()
    found = index.metadata(ids)
    return [
        {"id": row_id, "similarity": round(similarity, 6), **row}
        for row_id, similarity, row in zip(ids, similarities, found, strict=True)
    ]


def _print(rows: list[dict[str, Any]], output: OutputOptions) -> None:
    if output.as_json:
        print(json.dumps(rows, default=str))
    elif output.paths:
        for row in rows:
            print(_place(row))
    elif not rows:
        print("nothing was found", file=sys.stderr)
    for row in rows if not (output.as_json or output.paths) else ():
        caption = " ".join(str(row.get("caption") or "").split())
        print(f"{row['similarity']:7.4f}  {row['id']:>9}  {_place(row)}  {caption[:_CELL]}".rstrip())


def _place(row: dict[str, Any]) -> str:
    from .index_change import row_name

    return str(row_name(row) or row.get("key") or row.get("url") or row["id"])
