"""A Docker engine that answers as it is told, for the real SDK: over a socket file, with streams as the engine has."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from threading import Thread
from typing import Any

import docker

STDOUT, STDERR = 1, 2
IDENTITY = "0123456789abcdef"
STREAM_SECONDS = 5
"""How long the engine waits for input: a client that sends no more of it is found out."""


class Request(BaseHTTPRequestHandler):
    """One request of the SDK."""

    server: DockerEngine

    def handle_request(self) -> None:
        """Note it, and give it to the first answer for it."""
        self.close_connection = True
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        path = re.sub(r"^/v[\d.]+", "", self.path)
        self.server.asked.append(f"{self.command} {path}")
        answer = next(a for pattern, a in self.server.answers if re.search(pattern, self.server.asked[-1]))
        answer(self)

    do_GET = do_POST = do_DELETE = handle_request  # noqa: N815 - named by http.server

    def reply(self, status: int, body: object = None) -> None:
        """An answer with a JSON body, or none."""
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def upgrade(self, begins: bytes = b"") -> socket.socket:
        """The raw connection of an exec that has been started, whose stream begins so."""
        head = "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        self.wfile.write(head.encode() + begins)
        stream: socket.socket = self.connection
        stream.settimeout(STREAM_SECONDS)
        return stream

    def address_string(self) -> str:
        return "a socket file"

    def log_message(self, *_: object) -> None:
        """Says nothing."""


Answer = Callable[[Request], object]


class DockerEngine(ThreadingMixIn, UnixStreamServer):
    """The engine; ``answers`` are tried in order, by a pattern of ``POST /path``."""

    daemon_threads = True

    def __init__(self, path: Path, answers: list[tuple[str, Answer]]) -> None:
        super().__init__(str(path), Request)
        self.answers = answers
        self.asked: list[str] = []

    def handle_error(self, *_: Any) -> None:
        """A client that is gone is no error of the engine's."""


@contextlib.contextmanager
def docker_engine(
    folder: Path, answers: dict[str, Answer], *, timeout: float = 10
) -> Iterator[tuple[docker.DockerClient, list[str]]]:
    """A client of an engine with these answers, and what the engine is asked for."""
    path = folder / "docker.sock"
    engine = DockerEngine(path, list(answers.items()))
    thread = Thread(target=engine.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    client = docker.DockerClient(base_url=f"unix://{path}", version="1.43", timeout=timeout)
    try:
        yield client, engine.asked
    finally:
        client.close()
        engine.shutdown()
        thread.join()
        engine.server_close()


def frame(stream: int, data: bytes) -> bytes:
    """A piece of a command's output, as the engine sends it."""
    return struct.pack(">BxxxL", stream, len(data)) + data


def container(name: str, *, status: str = "running", health: str = "healthy") -> dict[str, Any]:
    """What the engine says of a container."""
    return {"Id": IDENTITY, "Name": f"/{name}", "State": {"Status": status, "Health": {"Status": health}}}


def execution(started: Callable[[socket.socket], object], *, code: int | None = 0) -> dict[str, Answer]:
    """The answers about a command that does this with its stream and ends with this code."""
    return {
        r"POST /containers/.*/exec": lambda request: request.reply(201, {"Id": IDENTITY}),
        r"POST /exec/.*/start": lambda request: started(request.upgrade()),
        r"GET /exec/.*/json": lambda request: request.reply(200, {"ExitCode": code}),
    }
