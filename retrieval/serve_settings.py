"""Settings of `clipkit serve`: each is a flag and an environment variable, and each limit has one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clipkit.devices import AUTOCAST_DTYPES

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Who may ask, how much, and what is done at once."""

    host: str = "127.0.0.1"
    """Address to listen at; another than this machine's own needs --api-keys-file or --open."""
    port: int = 8000
    """Port to listen at; 0 takes a free one and prints it."""
    open: bool = False
    """Let anybody who reaches the address ask without a key."""
    api_keys_file: Path | None = None
    """File with an API key a line (or keys between commas in $CLIPKIT_SERVE_API_KEYS)."""
    admin_token_file: Path | None = None
    """File with the token of /admin (or $CLIPKIT_SERVE_ADMIN_TOKEN); without one /admin is off."""
    allowed_hosts: Annotated[tuple[str, ...], Parameter(name="--allowed-host")] = ()
    """A name in the Host header that is answered, may be given several times; by default localhost where only
    this machine can ask, else all."""
    cors_origins: Annotated[tuple[str, ...], Parameter(name="--cors-origin")] = ()
    """A web origin whose pages may ask, such as `https://example.org`, may be given several times."""
    image_roots: Annotated[tuple[Path, ...], Parameter(name="--image-root")] = ()
    """A folder whose image files may be sent to clients, may be given several times; by default none."""
    image_urls: bool = False
    """Fetch pictures that a query names by URL, from public addresses only."""
    precision: str = "fp32"
    """Of the towers: fp32, bf16 or fp16."""
    num_threads: int | None = None
    """CPU threads that the towers and the indexes share; by default one a core."""
    num_decode_threads: int = 2
    """Threads that decode pictures and read metadata."""
    max_waiting: int = 256
    """Texts, pictures and searches in work; more are answered 429."""
    retry_after_seconds: int = 1
    """What a 429 tells the client to wait."""
    max_text_batch: int = 64
    """Texts that the tower takes at once."""
    max_image_batch: int = 8
    """Pictures that the tower takes at once; texts wait behind them."""
    max_search_batch: int = 64
    """Searches that an index takes at once."""
    text_cache_size: int = 10_000
    """Texts whose embedding is kept."""
    max_results: int = 1_000
    """Largest k of a search, and most ids of a request for metadata."""
    max_inputs: int = 64
    """Parts of a combined query, inputs of /v1/embeddings, and items that are added at once."""
    max_text_chars: int = 8_192
    """Longest text and longest filter."""
    max_upload_bytes: int = 20 * 2**20
    """Largest body of a request, and largest picture that is fetched."""
    max_buffered_bytes: int = 256 * 2**20
    """Bodies held at a time, all requests together; more are answered 429."""
    max_image_pixels: int = 40_000_000
    """Larger pictures are refused before they are decoded."""
    body_timeout_seconds: float = 30.0
    """What a client may take to send a body."""
    url_timeout_seconds: float = 10.0
    """What fetching a picture may take in all."""
    max_connections: int = 512
    """Open connections; more are answered 503."""
    drain_seconds: float = 0.0
    """After SIGTERM, how long /ready says no while requests are still taken: a balancer's time to notice."""
    shutdown_seconds: float = 30.0
    """After that, how long accepted requests have to end."""

    def __post_init__(self) -> None:
        if self.precision not in AUTOCAST_DTYPES:
            raise ValueError(f"--precision must be one of {', '.join(AUTOCAST_DTYPES)}, got {self.precision}")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"--port must be 0 to 65535, got {self.port}")
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(f"--num-threads must be at least 1, got {self.num_threads}")
        for name in ("drain_seconds", "text_cache_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 0, got {getattr(self, name)}")
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        for root in self.image_roots:
            if not root.is_dir():
                raise ValueError(f"--image-root: there is no folder {root}")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the service."""
        return self.host in LOOPBACK


_POSITIVE = (
    "num_decode_threads",
    "retry_after_seconds",
    "max_waiting",
    "max_text_batch",
    "max_image_batch",
    "max_search_batch",
    "max_results",
    "max_inputs",
    "max_text_chars",
    "max_upload_bytes",
    "max_buffered_bytes",
    "max_image_pixels",
    "body_timeout_seconds",
    "url_timeout_seconds",
    "max_connections",
    "shutdown_seconds",
)
