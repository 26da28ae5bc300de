"""A server that answers as Kong and Realtime v2.32.12 were seen to, for the subscription's real client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

TOPIC_EVENT = Callable[[ServerConnection, str], Awaitable[None]]
BINDING = {"id": 90575687, "event": "INSERT", "schema": "public", "table": "wells"}
COLUMNS = [{"name": "id", "type": "int8"}]


async def send(socket: ServerConnection, topic: str, event: str, payload: object, ref: str | None = None) -> None:
    await socket.send(json.dumps({"ref": ref, "event": event, "payload": payload, "topic": topic}))


async def insert_event(socket: ServerConnection, topic: str, **data: object) -> None:
    change: dict[str, object] = {
        "table": "wells",
        "type": "INSERT",
        "schema": "public",
        "columns": COLUMNS,
        "errors": None,
        "commit_timestamp": "2026-01-01T00:00:00.000Z",
    }
    await send(socket, topic, "postgres_changes", {"data": change | data, "ids": [BINDING["id"]]})


async def system(socket: ServerConnection, topic: str, status: str, message: str) -> None:
    payload = {"message": message, "status": status, "extension": "postgres_changes", "channel": "x"}
    await send(socket, topic, "system", payload)


async def live(socket: ServerConnection, topic: str) -> None:
    await system(socket, topic, "ok", "Subscribed to PostgreSQL")


@asynccontextmanager
async def server(after_join: TOPIC_EVENT, *refusals: tuple[int, bytes]) -> AsyncIterator[str]:
    """The URL of a server that gives the refusals one after another, then takes joins and does what it is told."""
    left = list(refusals)

    def answer(_: ServerConnection, __: Request) -> Response | None:
        if not left:
            return None
        status, body = left.pop(0)
        headers = Headers({"Content-Length": str(len(body)), "Connection": "close"})
        return Response(status, HTTPStatus(status).phrase, headers, body)

    async def talk(socket: ServerConnection) -> None:
        async for text in socket:
            message = json.loads(text)
            if message["event"] == "phx_join":
                reply = {"status": "ok", "response": {"postgres_changes": [BINDING]}}
                await send(socket, message["topic"], "phx_reply", reply, message["ref"])
                await after_join(socket, message["topic"])

    async with serve(talk, "127.0.0.1", 0, process_request=answer) as listening:
        port = next(iter(listening.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}/realtime/v1"
