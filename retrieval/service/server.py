"""The process: uvicorn, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import Mapping
from types import FrameType

import uvicorn

from clipkit.model import DualEncoder

from ..serve_settings import ServeSettings
from .access import ADMIN_VARIABLE, KEYS_VARIABLE, Keys, read_keys
from .app import create_app
from .catalog import Place, Storage
from .engine import Engine
from .refusal import Refusal
from .towers import Towers

_log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Ends on SIGTERM and SIGINT once everything accepted is answered; opens the indexes anew on SIGHUP."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        """Serve `config.app`, whose engine is `engine`."""
        super().__init__(config)
        self._engine = engine
        self._reloads: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Listen, then say where."""
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.should_exit:
            return
        self._loop = asyncio.get_running_loop()
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
            self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        (port,) = {bound.getsockname()[1] for server in self.servers for bound in server.sockets}
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        print(f"clipkit serves http://{host}:{port}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first SIGTERM lets balancers notice; a second signal, or Ctrl-C, does not wait for them."""
        drain_seconds = self._engine.settings.drain_seconds
        if sig == signal.SIGTERM and drain_seconds and not self._engine.is_draining and self.started:
            self._engine.is_draining = True
            self._loop.call_soon_threadsafe(self._loop.call_later, drain_seconds, self._exit)
        elif self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        else:
            self._engine.is_draining = True
            self._exit()

    def _exit(self) -> None:
        self.should_exit = True

    def _reload(self) -> None:
        task = asyncio.ensure_future(self._reload_now())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload_now(self) -> None:
        try:
            served = await self._engine.reload()
        except Refusal as error:
            _log.error("%s", error.message)
            return
        rows = ", ".join(f"{one.name} {one.index.num_rows} rows" for one in served)
        print(f"reloaded: {rows}", file=sys.stderr, flush=True)


def run(
    model: DualEncoder,
    model_name: str,
    places: Mapping[str, Place],
    storage: Storage,
    settings: ServeSettings,
) -> int:
    """Serve until a signal says otherwise.

    Args:
        model: on its device.
        model_name: what `/v1/models` calls it.
        places: of the indexes, by name.
        storage: opens and changes them.
        settings: everything else.

    Returns:
        0 after an orderly end, 1 where the address could not be had.

    Raises:
        ValueError: keys are missing or of no use, or an index is of another model.
        OSError: a file cannot be read.
    """
    keys = read_keys(settings.api_keys_file, KEYS_VARIABLE)
    admin = read_keys(settings.admin_token_file, ADMIN_VARIABLE)
    check_exposure(settings, keys)
    engine = Engine(Towers(model, settings.precision), places, storage, settings)
    app = create_app(engine, model_name=model_name, keys=keys, admin=admin)
    server = Server(server_config(app, settings), engine)
    server.run()
    return 0 if server.started else 1


def check_exposure(settings: ServeSettings, keys: Keys) -> None:
    """Refuse to serve others than this machine without keys by mistake.

    Raises:
        ValueError: it would.
    """
    if not settings.is_local and not keys and not settings.open:
        raise ValueError(
            f"--host {settings.host} can be reached from elsewhere: give --api-keys-file, or --open to let "
            "anybody search"
        )


def server_config(app: object, settings: ServeSettings) -> uvicorn.Config:
    """Uvicorn as the service needs it: its log lines show no addresses, paths or keys."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        limit_concurrency=settings.max_connections,
        timeout_graceful_shutdown=int(max(1, settings.shutdown_seconds)),
    )
