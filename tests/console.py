"""A console as the tests use one: served for real on loopback, and asked by a client that has its cookie."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from doctor.checks.setup import Setup
from doctor.console.access import Access
from doctor.console.app import STATIC, Console
from doctor.console.serve import serve

SECONDS = 20


@dataclass(frozen=True)
class Served:
    """A console that is being served, and the way in. ``client`` has the cookie already, ``visitor`` has not."""

    console: Console
    access: Access
    client: httpx.Client
    visitor: httpx.Client

    def get(self, path: str, **parameters: str) -> httpx.Response:
        return self.client.get(path, params=parameters or None)

    def send(self, method: str, **body: Any) -> httpx.Response:
        return self.client.request(method, "/api/rows", json=body)


@contextmanager
def served(setup: Setup, *, name: str = "dev", lifetime: int = 3600, static: Path = STATIC) -> Iterator[Served]:
    """A console in a thread of its own for as long as the block lasts; then its test rows are gone."""
    listener = socket.create_server(("127.0.0.1", 0))
    told: list[Access] = []
    listening = threading.Event()
    ends: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    console: list[Console] = []

    def begun(access: Access) -> None:
        told.append(access)
        listening.set()

    async def run() -> None:
        ended = asyncio.Event()
        ends.append((asyncio.get_running_loop(), ended))
        console.append(Console(setup, name=name, lifetime=lifetime, static=static))
        await serve(console[0], listener, tell=begun, ended=ended)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert listening.wait(SECONDS), "the console does not begin"
        url = f"http://127.0.0.1:{told[0].port}"
        with (
            httpx.Client(base_url=url, trust_env=False, timeout=SECONDS) as client,
            httpx.Client(base_url=url, trust_env=False, timeout=SECONDS) as visitor,
        ):
            assert client.get(told[0].url).status_code == 303
            yield Served(console[0], told[0], client, visitor)
    finally:
        loop, ended = ends[0]
        loop.call_soon_threadsafe(ended.set)
        thread.join(SECONDS)
        assert not thread.is_alive(), "the console does not end"


def events(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """The server-sent events of an answer, as they come."""
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))
