"""`clipkit serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.config import Env

from clipkit.whole_numbers import refuse_fractions

from .backend import BackendOptions, open_index
from .serve_settings import ServeSettings

_EXTRA = ("fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client", "python_multipart", "multipart")

app = App(
    name="serve",
    help="An HTTP service and a page that search indexes with texts and pictures.",
    default_parameter=Parameter(negative=(), show_env_var=False),
    config=[Env("CLIPKIT_SERVE_", command=False), refuse_fractions],
)

_DEFAULTS, _BACKEND = ServeSettings(), BackendOptions()


@app.default
def serve(
    *indexes: str,
    model: str | None = None,
    settings: Annotated[ServeSettings, Parameter(name="*")] = _DEFAULTS,
    backend: Annotated[BackendOptions, Parameter(name="*")] = _BACKEND,
) -> int:
    """Serve indexes until SIGTERM or Ctrl-C; every request that was accepted is answered first.

    Each flag is an environment variable too: `--max-waiting` is CLIPKIT_SERVE_MAX_WAITING. SIGHUP opens the
    indexes anew while the service goes on.

    Args:
        indexes: folders that `clipkit index` made, each as `NAME=PATH`, or `PATH` for the folder's name. The
            first is searched where a request names none. With --backend milvus: collections.
        model: the model that made the embeddings: a model directory, or anything else that `clipkit.load`
            takes; by default what the first index names.
        settings: who may ask, how much, and what is done at once.
        backend: what keeps the indexes.

    Returns:
        0 after an orderly end.
    """
    paths = index_paths(indexes)
    try:
        from .service.milvus_storage import Collections, collections_of
        from .service.server import run
        from .service.storage import Folders, places_of
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise RuntimeError(f"the service needs {error.name}: pip install 'clipkit[serve]'") from error
    import clipkit
    from clipkit.devices import process_group

    source = model or _named_model(paths, backend)
    with process_group() as device:
        loaded = clipkit.load(source, device=device)
        name = Path(source).name or source
        if backend.milvus_uri is not None:
            return run(loaded, name, collections_of(paths), Collections(backend.milvus_uri), settings)
        return run(loaded, name, places_of(paths), Folders(), settings)


def _named_model(paths: dict[str, Path], backend: BackendOptions) -> str:
    """What the first index was made with."""
    if not paths:
        raise ValueError("name an index, or a --model: clipkit serve NAME=PATH")
    name, path = next(iter(paths.items()))
    source = open_index(path, backend).model_source
    if source is None:
        raise ValueError(f"index {name} does not say which model made it: add --model")
    return source


def index_paths(indexes: tuple[str, ...]) -> dict[str, Path]:
    """Names and folders.

    Raises:
        ValueError: a name occurs twice, or is none that fits into a URL.
    """
    found: dict[str, Path] = {}
    for given in indexes:
        name, equals, path = given.partition("=")
        folder = Path(path if equals else given)
        name = name if equals else folder.resolve().name
        if (
            not name
            or not name.isascii()
            or not name.replace("-", "").replace("_", "").replace(".", "").isalnum()
        ):
            raise ValueError(f"{name!r} is no name of an index: letters, digits, - _ . only, as in NAME=PATH")
        if name in found:
            raise ValueError(f"two indexes are called {name}: name them with NAME=PATH")
        found[name] = folder
    return found
