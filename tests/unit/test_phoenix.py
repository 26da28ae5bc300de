"""The lean Realtime client: frames as Realtime v2.32.12 sends them, and what a server does to a connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidStatus
from websockets.http11 import Request, Response

from doctor.phoenix import (
    LARGEST_MESSAGE,
    Message,
    Socket,
    UnreadableMessageError,
    decode,
    encode,
    heartbeat,
    join,
    refusal,
    socket_uri,
)

TOPIC = "realtime:wells-changes"
JOINED = (
    '{"event":"phx_reply","payload":{"response":{"postgres_changes":[{"event":"INSERT","id":76120333,'
    '"schema":"public","table":"wells"}]},"status":"ok"},"ref":"1","topic":"realtime:wells-changes"}'
)
SUBSCRIBED = (
    '{"event":"system","payload":{"channel":"wells-changes","extension":"postgres_changes",'
    '"message":"Subscribed to PostgreSQL","status":"ok"},"ref":null,"topic":"realtime:wells-changes"}'
)
INSERTED = (
    '{"event":"postgres_changes","payload":{"data":{"columns":[{"name":"id","type":"int8"},'
    '{"name":"name","type":"text"}],"commit_timestamp":"2026-11-23T22:31:00.123Z","errors":null,'
    '"record":{"id":17,"name":"probe"},"schema":"public","table":"wells","type":"INSERT"},"ids":[76120333]},'
    '"ref":null,"topic":"realtime:wells-changes"}'
)


@pytest.mark.parametrize(
    ("text", "event", "ref"),
    [(JOINED, "phx_reply", "1"), (SUBSCRIBED, "system", None), (INSERTED, "postgres_changes", None)],
)
def test_a_frame_of_realtime_is_a_message(text: str, event: str, ref: str | None) -> None:
    message = decode(text.encode())
    assert (message.topic, message.event, message.ref) == (TOPIC, event, ref)
    assert message.payload == json.loads(text)["payload"]


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"topic": "x", "event": "y"}', "\x00", "{"])
def test_what_is_no_message_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(UnreadableMessageError, match=f"in a message of {len(text)} bytes"):
        decode(text)


def test_a_join_asks_for_the_inserts_of_one_table_as_the_user_with_the_token() -> None:
    sent = json.loads(encode(join(TOPIC, schema="public", table="wells", access_token="the-token")))
    assert (sent["topic"], sent["event"], sent["ref"]) == (TOPIC, "phx_join", "1")
    assert sent["payload"]["access_token"] == "the-token"
    assert sent["payload"]["config"]["postgres_changes"] == [{"event": "INSERT", "schema": "public", "table": "wells"}]
    assert "access_token" not in join(TOPIC, schema="public", table="wells", access_token=None).payload


def test_a_heartbeat_has_the_ref_that_its_answer_will_have() -> None:
    assert decode(encode(heartbeat("7"))) == Message("phoenix", "heartbeat", {}, "7")


@pytest.mark.parametrize("url", ["ws://127.0.0.1:8000/realtime/v1", "ws://127.0.0.1:8000/realtime/v1/"])
def test_the_key_is_escaped_in_the_uri(url: str) -> None:
    assert socket_uri(url, "a&b=c") == "ws://127.0.0.1:8000/realtime/v1/websocket?apikey=a%26b%3Dc&vsn=1.0.0"


class Heard:
    """What a socket told its owner."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.closed: list[str] = []
        self.news = asyncio.Event()

    def text(self, data: bytes, arrived: float) -> None:
        assert arrived > 0
        self.texts.append(data)
        self.news.set()

    def close(self, reason: str) -> None:
        self.closed.append(reason)
        self.news.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                self.news.clear()
                await self.news.wait()


def with_server(
    handler: Callable[[ServerConnection], Awaitable[None]],
    visit: Callable[[str, Heard], Awaitable[None]],
    answer: Callable[[ServerConnection, Request], Response | None] | None = None,
) -> None:
    """A real websocket server on loopback, and a visit to it."""

    async def run() -> None:
        async with serve(handler, "127.0.0.1", 0, compression=None, process_request=answer, max_size=None) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            await visit(f"ws://127.0.0.1:{port}/realtime/v1/websocket", Heard())

    asyncio.run(run())


async def echo(connection: ServerConnection) -> None:
    async for text in connection:
        await connection.send(text)


def test_messages_go_both_ways_whole_and_in_order() -> None:
    async def visit(uri: str, heard: Heard) -> None:
        socket = await Socket.connect(uri, on_text=heard.text, on_close=heard.close)
        sent = [Message(TOPIC, "x", {"text": "ä" * size}, str(size)) for size in (0, 125, 126, 70_000, 300_000, 1)]
        for message in sent:
            socket.send(message)
        await heard.until(lambda: len(heard.texts) == len(sent))
        assert [decode(text) for text in heard.texts] == sent
        socket.close()
        await asyncio.wait_for(socket.ended, 5)
        assert heard.closed == []

    with_server(echo, visit)


def test_a_message_in_fragments_is_one_message() -> None:
    async def fragments(connection: ServerConnection) -> None:
        await connection.send([INSERTED[:10], INSERTED[10:200], INSERTED[200:]])
        await connection.wait_closed()

    async def visit(uri: str, heard: Heard) -> None:
        socket = await Socket.connect(uri, on_text=heard.text, on_close=heard.close)
        await heard.until(lambda: bool(heard.texts))
        assert heard.texts == [INSERTED.encode()]
        socket.close()
        await asyncio.wait_for(socket.ended, 5)

    with_server(fragments, visit)


def test_a_ping_is_answered() -> None:
    async def pings(connection: ServerConnection) -> None:
        await asyncio.wait_for(await connection.ping(), 5)
        await connection.send("answered")
        await connection.wait_closed()

    async def visit(uri: str, heard: Heard) -> None:
        socket = await Socket.connect(uri, on_text=heard.text, on_close=heard.close)
        await heard.until(lambda: bool(heard.texts))
        assert heard.texts == [b"answered"]
        socket.abort()

    with_server(pings, visit)


def test_a_refused_handshake_says_with_which_status_and_words() -> None:
    def refuse(connection: ServerConnection, _: Request) -> Response:
        return connection.respond(HTTPStatus.UNAUTHORIZED, '{"message":"Invalid authentication credentials"}')

    async def visit(uri: str, heard: Heard) -> None:
        with pytest.raises(InvalidStatus) as refused:
            await Socket.connect(uri, on_text=heard.text, on_close=heard.close)
        assert refusal(refused.value) == (401, "Invalid authentication credentials")
        assert heard.closed == []

    with_server(echo, visit, refuse)


@pytest.mark.parametrize(
    ("close", "reason"),
    [
        (lambda connection: connection.close(1011, "out of memory"), "code 1011, out of memory"),
        (lambda connection: connection.close(1000), "code 1000"),
    ],
)
def test_a_server_that_says_goodbye_is_heard(close: Callable[[ServerConnection], Awaitable[None]], reason: str) -> None:
    async def visit(uri: str, heard: Heard) -> None:
        await Socket.connect(uri, on_text=heard.text, on_close=heard.close)
        await heard.until(lambda: bool(heard.closed))
        assert heard.closed == [reason]

    with_server(close, visit)


def test_a_connection_that_is_cut_is_noticed() -> None:
    async def cut(connection: ServerConnection) -> None:
        connection.transport.abort()

    async def visit(uri: str, heard: Heard) -> None:
        await Socket.connect(uri, on_text=heard.text, on_close=heard.close)
        await heard.until(lambda: bool(heard.closed))
        assert heard.closed[0].startswith("cut off")

    with_server(cut, visit)


def test_a_message_beyond_every_limit_ends_the_connection_and_not_the_process() -> None:
    async def flood(connection: ServerConnection) -> None:
        await connection.send("x" * (LARGEST_MESSAGE + 1))
        await connection.wait_closed()

    async def visit(uri: str, heard: Heard) -> None:
        await Socket.connect(uri, on_text=heard.text, on_close=heard.close)
        await heard.until(lambda: bool(heard.closed))
        assert heard.texts == []

    with_server(flood, visit)


def test_nobody_listening_is_an_os_error() -> None:
    async def visit() -> None:
        heard = Heard()
        with pytest.raises(OSError, match="Connect call failed"):
            await Socket.connect("ws://127.0.0.1:9/socket/websocket", on_text=heard.text, on_close=heard.close)

    asyncio.run(visit())


def test_the_host_header_may_differ_from_the_address_connected_to() -> None:
    hosts: list[str] = []

    def note(_: ServerConnection, request: Request) -> None:
        hosts.append(request.headers["Host"])

    async def visit(uri: str, heard: Heard) -> None:
        port = urlsplit(uri).port or 0
        socket = await Socket.connect(
            f"ws://supabase-realtime:{port}/socket/websocket",
            address=("127.0.0.1", port),
            on_text=heard.text,
            on_close=heard.close,
        )
        assert hosts == [f"supabase-realtime:{port}"]
        socket.abort()

    with_server(echo, visit, note)
