"""A lean Realtime client: the Phoenix channel protocol on a websocket, many of them in one process.

Built on websockets' Sans-I/O ``ClientProtocol`` inside an asyncio.Protocol, so that a connection is one callback for
each read of its socket: no task, no queue and no timer of its own. Measured with 200 connections and 100 events each
of 600 bytes (Python 3.11, CPU time of the client): 22 µs an event, its JSON read once for all connections; with
websockets' own asyncio client 31 µs; with the library ``realtime`` (PyPI 2.34.1), which validates every message with
pydantic, 94 µs.

Only text frames of serializer version 1.0.0 are spoken (``vsn=1.0.0``): JSON objects with topic, event, payload and
ref. No compression is offered.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from doctor.failures import told

LIVE = "Subscribed to PostgreSQL"
"""Realtime's system message once changes flow (lib/realtime_web/channels/realtime_channel.ex). The answer to the join
comes seconds earlier, and inserts between the two are lost."""
JOIN_REF = "1"
HEARTBEAT_SECONDS = 25.0
"""As realtime-js 2. Phoenix closes a socket that was silent for 60 s."""
LARGEST_MESSAGE = 16 * 2**20
"""Bytes. A change has poll_max_record_bytes at most, 1 MiB by default, with old and new record."""


class Message(NamedTuple):
    """One message of the Phoenix protocol. ``ref`` names the message that a phx_reply answers."""

    topic: str
    event: str
    payload: Mapping[str, Any]
    ref: str | None


class UnreadableMessageError(ValueError):
    """A frame that is no message of the Phoenix protocol."""


def decode(text: bytes | str) -> Message:
    """The message in a text frame. Raises UnreadableMessageError."""
    try:
        document = json.loads(text)
        ref = document.get("ref")
        payload = document["payload"]
        return Message(
            str(document["topic"]),
            str(document["event"]),
            payload if isinstance(payload, dict) else {},
            None if ref is None else str(ref),
        )
    except (ValueError, AttributeError, KeyError) as broken:
        raise UnreadableMessageError(f"{type(broken).__name__} in a message of {len(text)} bytes") from None


def encode(message: Message) -> bytes:
    """The text frame of a message."""
    return json.dumps(message._asdict(), separators=(",", ":")).encode()


def join(topic: str, *, schema: str, table: str, access_token: str | None) -> Message:
    """Joins a channel that listens to the inserts into a table, as supabase-js does.

    ``access_token`` is the JWT of somebody who is logged in; without one Realtime takes the key of the connection.
    """
    payload: dict[str, Any] = {
        "config": {
            "broadcast": {"ack": False, "self": False},
            "presence": {"key": ""},
            "postgres_changes": [{"event": "INSERT", "schema": schema, "table": table}],
            "private": False,
        }
    }
    if access_token is not None:
        payload["access_token"] = access_token
    return Message(topic, "phx_join", payload, JOIN_REF)


def heartbeat(ref: str) -> Message:
    """What keeps a connection open."""
    return Message("phoenix", "heartbeat", {}, ref)


def socket_uri(url: str, key: str) -> str:
    """The websocket's URI for a Realtime URL without its last part, with the key for the gateway and Realtime."""
    return f"{url.rstrip('/')}/websocket?{urlencode({'apikey': key, 'vsn': '1.0.0'})}"


class Socket(asyncio.Protocol):
    """One websocket to Realtime. Open it with ``connect``.

    ``on_text(data, arrived)`` is called with each text frame and the time of time.perf_counter at which its last
    bytes were read; ``on_close(reason)`` once, when the socket of an open connection ends, unless ``close`` was called.
    """

    def __init__(self, uri: str, *, on_text: Callable[[bytes, float], None], on_close: Callable[[str], None]) -> None:
        self._websocket = ClientProtocol(parse_uri(uri), max_size=LARGEST_MESSAGE)
        self._on_text = on_text
        self._on_close = on_close
        self._parts: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._closing = False
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def connect(
        cls,
        uri: str,
        *,
        address: tuple[str, int] | None = None,
        on_text: Callable[[bytes, float], None],
        on_close: Callable[[str], None],
    ) -> Socket:
        """An open websocket. ``address`` is where to connect when it is not the URI's host, which is the Host header.

        Raises websockets' InvalidHandshake when the server refuses, OSError when it cannot be reached. The caller
        bounds the time.
        """
        parts = urlsplit(uri)
        secure = parts.scheme == "wss"
        host, port = address or (parts.hostname or "", parts.port or (443 if secure else 80))
        _, socket = await asyncio.get_running_loop().create_connection(
            lambda: cls(uri, on_text=on_text, on_close=on_close),
            host,
            port,
            ssl=ssl.create_default_context() if secure else None,
        )
        try:
            await socket.opened
        except BaseException:
            socket.abort()
            raise
        return socket

    def send(self, message: Message) -> None:
        """Sends a message; on a connection that has ended it does nothing, ``on_close`` having said so."""
        if self._websocket.state is State.OPEN:
            self._websocket.send_text(encode(message))
            self._flush()

    def close(self) -> None:
        """Says goodbye; ``ended`` is done when the server has, too."""
        self._closing = True
        if self._websocket.state is State.OPEN:
            self._websocket.send_close(1000)
            self._flush()
        elif self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drops the connection at once."""
        self._closing = True
        self.opened.cancel()
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "TCP and TLS connections read and write"
        self._transport = transport
        self._websocket.send_request(self._websocket.connect())
        self._flush()

    def data_received(self, data: bytes) -> None:
        arrived = time.perf_counter()
        self._websocket.receive_data(data)
        self._handle(arrived)

    def eof_received(self) -> bool:
        self._websocket.receive_eof()
        self._handle(time.perf_counter())
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
        if not self.opened.done():
            reason = str(error) if error else "the server closed the connection before it answered"
            self._failed(ConnectionError(reason))
        elif not (self._closing or self.opened.cancelled() or self.opened.exception()):
            self._on_close(self._reason(error))

    def _handle(self, arrived: float) -> None:
        for event in self._websocket.events_received():
            if isinstance(event, Response):
                continue  # what it means is in handshake_exc
            if isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.CONT):
                self._parts.append(bytes(event.data))
                if event.fin:
                    text = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
                    self._parts.clear()
                    self._open()
                    self._on_text(text, arrived)
        if self._websocket.handshake_exc is not None:
            self._failed(self._websocket.handshake_exc)
        elif self._websocket.state is not State.CONNECTING:
            self._open()
        self._flush()

    def _open(self) -> None:
        if not self.opened.done():
            self.opened.set_result(None)

    def _failed(self, error: Exception) -> None:
        if not self.opened.done():
            self.opened.set_exception(error)

    def _flush(self) -> None:
        for data in self._websocket.data_to_send():
            assert self._transport is not None, "nothing is sent before the connection is made"
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                self._transport.write_eof()
        if self._websocket.close_rcvd is not None and self._transport is not None:
            self._transport.close()  # after what is still to be written: the answer to the server's goodbye

    def _reason(self, error: Exception | None) -> str:
        received = self._websocket.close_rcvd
        if received is not None:
            return f"code {received.code}" + (f", {told(received.reason)}" if received.reason else "")
        return f"cut off: {error}" if error else "cut off without a close frame"


def refusal(error: InvalidStatus) -> tuple[int, str]:
    """The status and the words of an answer that refuses a handshake."""
    return error.response.status_code, told((error.response.body or b"").decode(errors="replace"))
