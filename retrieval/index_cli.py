"""`clipkit index`: build an index, change it, check it, and measure it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from .backend import BackendOptions, open_index
from .index_build import IndexSettings

app = App(
    name="index",
    help="Build a search index of embeddings; add, update and remove rows; check and measure it.",
    default_parameter=Parameter(negative=()),
)

_DEFAULTS, _BACKEND = IndexSettings(), BackendOptions()
AsJson = Annotated[bool, Parameter(name="--json")]
Backend = Annotated[BackendOptions, Parameter(name="*")]


@app.command
def build(
    embeddings: Path,
    /,
    *,
    out: Path,
    settings: Annotated[IndexSettings, Parameter(name="*")] = _DEFAULTS,
    replace: bool = False,
    quiet: bool = False,
    as_json: AsJson = False,
    backend: Backend = _BACKEND,
) -> int:
    """Build an index; its settings are tuned on captions, and what it finds is compared with an exact search.

    Until the new index is complete, one that was there before can be searched.

    Args:
        embeddings: a folder of `clipkit embed` or of clip-retrieval.
        out: folder of the index; with --backend milvus, the name of a collection.
        settings: how it is built.
        replace: replace an index that is there.
        quiet: show no progress.
        as_json: print JSON instead of text.
        backend: what keeps the index.
    """
    if backend.milvus_uri is not None:
        from .milvus_build import build_milvus

        made = build_milvus(
            embeddings, backend.milvus_uri, str(out), settings, replace=replace, show=not quiet
        )
        facts = {"collection": made.name, "kind": made.facts.kind, "num_rows": made.num_rows}
        print(json.dumps(facts) if as_json else f"{made.path}: {made.num_rows:,} rows  {made.facts.kind}")
        return 0
    from .index_build import build_index

    reports = build_index(embeddings, out, settings, replace=replace, show=not quiet)
    if as_json:
        print(json.dumps({name: report.to_json() for name, report in reports.items()}))
        return 0
    for name, report in reports.items():
        print(f"{name}.index  {report.num_rows:,} rows  {report.to_text()}")
        if not report.reaches_goal:
            print(
                f"no setting reaches recall@{report.recall_at} {report.goal:g}: the most thorough was taken"
            )
    print(f"{out}: curve of recall against speed in current/recall.html")
    return 0


@app.command
def add(index: Path, embeddings: Path, /, *, as_json: AsJson = False, backend: Backend = _BACKEND) -> int:
    """Add the rows of a folder of embeddings.

    Args:
        index: the index; with --backend milvus, the name of a collection.
        embeddings: a folder made with the model of the index; none of its images may be in the index.
        as_json: print JSON instead of text.
        backend: what keeps the index.
    """
    if backend.milvus_uri is not None:
        from . import milvus_change

        count = len(milvus_change.add(backend.milvus_uri, str(index), embeddings))
    else:
        from . import index_change

        count = len(index_change.add(index, embeddings))
    return _changed(index, "added", count, as_json=as_json, backend=backend)


@app.command
def update(index: Path, embeddings: Path, /, *, as_json: AsJson = False) -> int:
    """Replace the rows of the same images; they keep their ids.

    Args:
        index: the index.
        embeddings: a folder made with the model of the index; all of its images must be in the index.
        as_json: print JSON instead of text.
    """
    from . import index_change

    return _changed(index, "updated", index_change.update(index, embeddings), as_json=as_json)


@app.command
def remove(
    index: Path,
    /,
    *,
    ids: Annotated[tuple[int, ...], Parameter(name="--id")] = (),
    paths: Annotated[tuple[str, ...], Parameter(name="--path")] = (),
    as_json: AsJson = False,
    backend: Backend = _BACKEND,
) -> int:
    """Remove rows.

    Args:
        index: the index; with --backend milvus, the name of a collection.
        ids: id of a row; may be given several times.
        paths: image_path of a row (SHARD/KEY of one in a tar); may be given several times.
        as_json: print JSON instead of text.
        backend: what keeps the index.
    """
    if not ids and not paths:
        raise ValueError("name the rows to remove by --id or --path")
    if backend.milvus_uri is not None:
        from . import milvus_change

        count = milvus_change.remove(backend.milvus_uri, str(index), ids=ids, paths=paths)
    else:
        from . import index_change

        count = index_change.remove(index, ids=ids, paths=paths)
    return _changed(index, "removed", count, as_json=as_json, backend=backend)


@app.command
def check(index: Path, /, *, as_json: AsJson = False) -> int:
    """Read every byte: checksums, counts, ids, metadata, vectors. Prints what is wrong, a line each.

    Args:
        index: the index.
        as_json: print JSON instead of text.

    Returns:
        0, or 1 where something is wrong.
    """
    from .index import SearchIndex
    from .index_check import check as problems_of

    problems = problems_of(index)
    if as_json:
        print(json.dumps({"problems": problems}))
    elif problems:
        print("\n".join(problems))
    else:
        found = SearchIndex.open(index)
        print(
            f"{index}: version {found.version}, {found.num_rows:,} rows of model {found.model_id}, all there"
        )
    return 1 if problems else 0


@app.command
def evaluate(index: Path, embeddings: Path, /, *, as_json: AsJson = False) -> int:
    """Search the images of an index by all captions, and back, through the index and exactly.

    Args:
        index: an index of images.
        embeddings: the folder with the embeddings of their captions.
        as_json: print JSON instead of text.
    """
    from dataclasses import asdict

    from .index_evaluate import evaluate_index

    found = evaluate_index(index, embeddings)
    print(json.dumps(asdict(found)) if as_json else found.to_text())
    return 0


def _changed(index: Path, done: str, count: int, *, as_json: bool, backend: BackendOptions = _BACKEND) -> int:
    now = open_index(index, backend)
    if as_json:
        print(json.dumps({done: count, "num_rows": now.num_rows, "version": now.version}))
    else:
        print(f"{index}: {count:,} rows {done}, now {now.num_rows:,} in version {now.version}")
    return 0
