"""The first subscription to a tenant, which starts Realtime's replication, made before any client comes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from websockets.sync.connection import Connection

SUBSCRIBED = "Subscribed to PostgreSQL"
"""Realtime's system message once changes flow (lib/realtime_web/channels/realtime_channel.ex, v2.32.12)."""
JOIN_SECONDS = 0.5
"""For one join. The one that starts the replication is told to come again after a random time of up to five seconds
(postgres_subscribe, in the same file); another one, once it has started, is served at once."""
TOKEN_SECONDS = 300


class SubscriptionError(Exception):
    """What Realtime answered instead of a subscription."""


def subscribe(*, port: int, tenant: str, jwt_secret: str, schema: str, table: str, timeout: float) -> None:
    """Subscribe to a published table, as role anon, at Realtime's own port, until changes flow; then leave.

    Realtime goes on replicating without subscribers for ten minutes (@stop_after, subscription_manager.ex), and what
    it started then serves the first client at once. Raises SubscriptionError, with the server's last words, when
    that was not so after ``timeout`` seconds.
    """
    import socket  # noqa: PLC0415 - only the process that talks to Realtime pays for the imports

    import jwt  # noqa: PLC0415
    from websockets.exceptions import WebSocketException  # noqa: PLC0415
    from websockets.sync.client import connect  # noqa: PLC0415

    token = jwt.encode(
        {"role": "anon", "exp": int(time.time()) + TOKEN_SECONDS},
        jwt_secret,
        algorithm="HS256",
        headers={"typ": "JWT"},
    )
    deadline = time.monotonic() + timeout
    last = "no answer"
    numbers = count(1)
    while time.monotonic() < deadline:
        try:
            # The tenant is the first label of the Host header, whatever the address.
            with connect(
                f"ws://{tenant}:{port}/socket/websocket?vsn=1.0.0",
                sock=socket.create_connection(("127.0.0.1", port), timeout=JOIN_SECONDS),
                additional_headers={"x-api-key": token},
                open_timeout=timeout,
                close_timeout=JOIN_SECONDS,
            ) as connection:
                while time.monotonic() < deadline:
                    last = _joined(connection, f"realtime:first-{next(numbers)}", token, schema, table)
                    if last == SUBSCRIBED:
                        return
        except (OSError, WebSocketException) as failed:
            last = str(failed) or type(failed).__name__
            time.sleep(min(JOIN_SECONDS, max(0.0, deadline - time.monotonic())))
    raise SubscriptionError(last)


def _joined(connection: Connection, topic: str, token: str, schema: str, table: str) -> str:
    """Join a channel and leave it again; the last system message or error that it had within JOIN_SECONDS."""
    changes = [{"event": "*", "schema": schema, "table": table}]
    _send(connection, topic, "phx_join", {"config": {"postgres_changes": changes}, "access_token": token})
    last = "no answer to a join"
    for message in _messages(connection, JOIN_SECONDS):
        if message.get("topic") != topic:
            continue
        payload = message.get("payload") or {}
        if message.get("event") == "system":
            last = str(payload.get("message"))
            break
        if message.get("event") == "phx_reply":
            refused = payload.get("status") != "ok"
            last = f"join refused: {payload.get('response')}" if refused else "joined, and nothing more"
    _send(connection, topic, "phx_leave", {})
    return last


def _messages(connection: Connection, seconds: float) -> Iterator[dict[str, Any]]:
    """What the server says within the time."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            yield json.loads(connection.recv(timeout=left))
        except TimeoutError:
            return


def _send(connection: Connection, topic: str, event: str, payload: dict[str, Any]) -> None:
    connection.send(json.dumps({"topic": topic, "event": event, "payload": payload, "ref": "1", "join_ref": "1"}))
