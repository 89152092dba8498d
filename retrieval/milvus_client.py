"""Connections to Milvus, and what clipkit keeps about a collection in its properties."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

TOKEN_VARIABLE = "CLIPKIT_MILVUS_TOKEN"
FACTS, STATE = "clipkit.facts", "clipkit.state"
_COLLECTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")


def connect(uri: str, *, create: bool = False) -> Any:
    """The `pymilvus.MilvusClient` of a URI; one a process.

    Args:
        uri: `http://HOST:19530`, or a file `NAME.db` of Milvus Lite.
        create: whether a file that is not there is made.

    Raises:
        OSError: pymilvus is not installed, nobody answers, or there is no such file.
        ValueError: the URI is neither.
    """
    if "://" not in uri:
        if not uri.endswith(".db"):
            raise ValueError(f"--uri {uri} is neither http://HOST:19530 nor a file of Milvus Lite, NAME.db")
        if not create and not Path(uri).exists():
            raise FileNotFoundError(f"there is no Milvus Lite file {uri}: build an index in it first")
        uri = str(Path(uri).resolve())
    return _client(uri)


@cache
def _client(uri: str) -> Any:
    try:
        import pymilvus

        if "://" not in uri:
            import milvus_lite  # noqa: F401
    except ModuleNotFoundError as error:
        raise OSError(f"Milvus needs {error.name}: pip install 'clipkit[milvus]'") from None
    # Their errors are raised; logged as well they would be tracebacks on stderr. Milvus Lite is a server in
    # this process, whose grpc logs each call that it does not know.
    for name in ("pymilvus", "milvus_lite", *(() if "://" in uri else ("grpc._server",))):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with one_line(uri):
            return pymilvus.MilvusClient(uri=uri, token=os.environ.get(TOKEN_VARIABLE, ""))
    except OSError as error:
        if "://" in uri:
            raise
        raise OSError(
            f"cannot open the Milvus Lite file {uri}: another process has it open, or it is damaged"
        ) from error


@contextmanager
def one_line(uri: str) -> Iterator[None]:
    """Errors of Milvus as OSError.

    Raises:
        OSError: Milvus refused something or does not answer.
    """
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as error:
        raise OSError(f"Milvus at {shown(uri)}: {error.message}") from error


def shown(uri: str) -> str:
    """A URI without the password that may stand before the @."""
    return uri.rpartition("@")[2]


def check_collection_name(name: str) -> None:
    """Refuse a name that Milvus does not take.

    Raises:
        ValueError: it is none.
    """
    if not _COLLECTION_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name of a Milvus collection: letters, digits and _ only, no digit first"
        )


def read_property(client: Any, name: str, key: str) -> dict[str, Any] | None:
    """A property of a collection that holds JSON; None where there is no such property."""
    text = client.describe_collection(name).get("properties", {}).get(key)
    return None if text is None else json.loads(text)


def write_property(client: Any, name: str, key: str, value: Mapping[str, Any]) -> None:
    """Set a property of a collection to JSON."""
    client.alter_collection_properties(name, properties={key: json.dumps(value)})
