"""A chat endpoint on this machine that answers, fails, hangs and drops connections as a test says."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_LAST_RESORT_SECONDS = 60


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    """`hang` until the endpoint is closed, `drop` or `reset` the connection, `cut` the body short."""


def completion(content: Any, finish_reason: str = "stop") -> Reply:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content},
        "finish_reason": finish_reason,
    }
    return Reply(body=json.dumps({"object": "chat.completion", "choices": [choice]}).encode())


def error(status: int, message: str = "", **headers: str) -> Reply:
    body = json.dumps({"error": {"message": message}}).encode()
    return Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def features_of(name: str) -> list[str]:
    return [f"colour of {name}", f"shape of {name}"]


def good_answer(name: str, number: int) -> Reply:
    return completion("Here you are:\n" + "".join(f"- {text}\n" for text in features_of(name)))


class FakeEndpoint:
    """Serves from a thread; `reply(class name, how many times it was asked before)` decides."""

    def __init__(self, reply: Callable[[str, int], Reply] = good_answer) -> None:
        self.reply = reply
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> FakeEndpoint:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _next(self, handler: BaseHTTPRequestHandler) -> Reply:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        found = re.search(r": (.*)\?$", body["messages"][-1]["content"])
        name = found[1] if found else body["messages"][-1]["content"]
        with self._lock:
            number = Counter(self.asked)[name]
            self.asked.append(name)
            self.bodies.append(body)
            self.headers.append(dict(handler.headers))
            self.paths.append(handler.path)
        return self.reply(name, number)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                reply = endpoint._next(self)
                if reply.fault == "hang":
                    endpoint._closing.wait(_LAST_RESORT_SECONDS)
                if reply.fault == "reset":
                    # Closing with a linger of 0 s sends RST.
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.close_connection = True
                if reply.fault in ("", "cut"):
                    self._send(reply)
                elif reply.fault == "reset":
                    self.connection.close()

            def _send(self, reply: Reply) -> None:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body[: len(reply.body) // 2 if reply.fault == "cut" else None])

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
