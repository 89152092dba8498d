"""The demo's held-out scenes as files with an index of them, and the section of the page that searches it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import shlex
import shutil
import tarfile
from pathlib import Path
from typing import Any

from clipkit.commands.demo import DemoFolder, run
from clipkit.complete_folder import complete_folder
from clipkit.images import decode_image
from clipkit.json_files import read_json
from clipkit.model_dir import read_record
from clipkit.page import Hit, Page

NUM_HITS = 6
MANIFEST_NAME = "clipkit.json"
MARKER_NAME = ".scenes.json"  # hidden: it is no sample
LEFT_OUT = "search is left out, it needs faiss: pip install 'clipkit[cpu]', then start the demo again"


def has_faiss() -> bool:
    """Whether an index can be built and searched."""
    return importlib.util.find_spec("faiss") is not None


def search_scenes(folder: DemoFolder) -> int:
    """Embed, index and search the held-out scenes as a user would; returns the exit status.

    What an earlier run has finished is taken as it is, unless it is of another model or from another place.
    """
    unpack(folder)
    return _embed(folder) or _build_index(folder) or _search(folder)


def unpack(folder: DemoFolder) -> None:
    """The held-out scenes as files, which the search page can show, unless they are there."""
    described = (folder.scenes / "scenes.json").read_text(encoding="utf-8")
    with complete_folder(folder.pictures, MARKER_NAME, described) as root:
        if root is None:
            return
        for shard in sorted((folder.scenes / "val").glob("*.tar")):
            _unpack_shard(shard, root)


def _unpack_shard(shard: Path, root: Path) -> None:
    """Pictures and captions; the ground truth (json) would bury them in what a search shows of a hit."""
    with tarfile.open(shard) as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is not None and not member.name.endswith(".json"):
                (root / member.name).write_bytes(content.read())


def _embed(folder: DemoFolder) -> int:
    manifest = folder.embeddings / MANIFEST_NAME
    record = read_record(folder.model)
    assert record is not None
    wanted = {"model_id": record["model_id"], "source": str(folder.pictures.absolute())}
    if manifest.is_file() and not wanted.items() <= read_json(manifest).items():
        shutil.rmtree(folder.embeddings)
    # The index keeps the path of the model: an absolute one can be served from anywhere.
    arguments = ["embed", str(folder.pictures), "--model", str(folder.model.absolute())]
    return run([*arguments, "--out", str(folder.embeddings)])


def _build_index(folder: DemoFolder) -> int:
    built = folder.index / "current" / MANIFEST_NAME
    embedded = read_json(folder.embeddings / MANIFEST_NAME)
    if built.is_file() and all(read_json(built)[key] == embedded[key] for key in ("model_id", "model")):
        return 0
    return run(["index", "build", str(folder.embeddings), "--out", str(folder.index), "--replace"])


def _search(folder: DemoFolder) -> int:
    """Search the most detailed caption of the first scene; writes the hits to a file."""
    scene = min(folder.pictures.glob("*.txt"))
    query = max(scene.read_text(encoding="utf-8").splitlines(), key=len)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = run(["search", str(folder.index), query, "--top-k", str(NUM_HITS), "--json"])
    if status == 0:
        found = {"query": query, "scene": scene.stem, "hits": json.loads(printed.getvalue())}
        folder.search_results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return status


def serve_command(folder: DemoFolder) -> str:
    """What serves the index, pictures included."""
    return shlex.join(["clipkit", "serve", str(folder.index), "--image-root", str(folder.pictures)])


def show_search(report: Page, folder: DemoFolder) -> None:
    """What the search has found."""
    found = read_json(folder.search_results)
    report.section(
        "Search",
        "The held-out scenes in an index of clipkit index, and what clipkit search finds in it for the most "
        "detailed caption of one of them, which has a green border.",
    )
    report.row(found["query"], [_hit(row, found["scene"]) for row in found["hits"]])
    report.note("A service and a page to search in, on this machine:")
    report.code(serve_command(folder))


def _hit(row: dict[str, Any], scene: str) -> Hit:
    path = Path(row["image_path"])
    image = decode_image(path.read_bytes())
    return Hit(image=image, label=f"{row['similarity']:.2f}", is_right=path.stem == scene)
