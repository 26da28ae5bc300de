"""One subscription to the inserts into a table, through the gateway, as a browser makes it.

With the client library ``realtime`` (PyPI 2.34.1), whose own reconnecting is left off: a probe wants to know of a
broken connection, and a rejoin on the same socket makes the server close the channel that was just joined. Every
attempt is a new connection instead.
"""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from realtime import (
    AsyncRealtimeClient,
    PostgresChangesPayload,
    RealtimePostgresChangesListenEvent,
    RealtimeSubscribeStates,
    SuccessSystemPayload,
)
from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidStatus

from doctor.failures import (
    ProbeFailedError,
    never_subscribed,
    permanent,
    refused,
    unanswered,
    unavailable,
    unreachable,
)

LIVE = "Subscribed to PostgreSQL"
"""Realtime's system message once changes flow (lib/realtime_web/channels/realtime_channel.ex). SUBSCRIBED, the answer
to the join, comes seconds earlier, and inserts between the two are lost."""
PAUSE_SECONDS = 0.5
"""Between two attempts."""
HANDSHAKE_SECONDS = 10
"""Of one attempt, so that a gateway that hangs on a stopped Realtime is asked again."""
TCP_SECONDS = 1
CLOSE_SECONDS = 2
INTERNAL_SERVER_ERROR = 500
UNREADABLE = "Unrecognized message format "


@dataclass(frozen=True)
class Change:
    """An INSERT as it came to the subscriber. ``arrived`` is a time of time.perf_counter."""

    arrived: float
    record: Mapping[str, Any]
    errors: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """What to subscribe to, where, and with which key."""

    url: str
    key: str
    schema: str
    table: str
    key_expires: datetime | None = None


class TemporaryFailureError(ProbeFailedError):
    """The attempt failed in a way that may pass; ``failure`` is what to say when it does not."""


class Subscription:
    """A subscription on a connection of its own. ``broken`` is done, with what happened, once somebody ended it."""

    def __init__(self, target: Target, *, timeout: float, on_change: Callable[[Change], None] | None = None) -> None:
        """``on_change`` is told of every change, and may not raise: the client library would stop to listen."""
        self.target = target
        self.timeout = timeout
        self.on_change = on_change
        loop = asyncio.get_running_loop()
        self.live: asyncio.Future[str] = loop.create_future()
        self.broken: asyncio.Future[str] = loop.create_future()
        self._expected: list[tuple[Callable[[Change], bool], asyncio.Future[Change]]] = []
        self._client = AsyncRealtimeClient(
            target.url,
            target.key,
            auto_reconnect=False,
            max_retries=1,
            timeout=math.ceil(min(timeout, HANDSHAKE_SECONDS)),
        )
        self._channel = self._client.channel(f"doctor-{uuid.uuid4()}")
        self._unreadable = _Unreadable(self._channel.topic, self._deliver)

    def expect(self, matches: Callable[[Change], bool]) -> asyncio.Future[Change]:
        """A future of the first change from now on that matches. Cancel it to stop waiting."""
        future: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
        self._expected.append((matches, future))
        return future

    async def open(self, waited: float) -> None:
        """Connects, joins, and returns when changes flow. Whatever comes of it, close() has to be called.

        ``waited`` is how long the caller will have tried, seconds, for the message. Raises TemporaryFailureError
        for what a restart may heal, ProbeFailedError for what it does not.
        """
        logging.getLogger("realtime").addHandler(self._unreadable)
        self._channel.on_system(self._on_system)
        self._channel.on_postgres_changes(
            RealtimePostgresChangesListenEvent.Insert,
            lambda payload: self._deliver(_change(payload)),
            table=self.target.table,
            schema=self.target.schema,
        )
        await self._connect(waited)
        joining = asyncio.ensure_future(self._join())
        try:
            await asyncio.wait({joining}, timeout=self.timeout)
        finally:
            joining.cancel()
        if self.live.done():
            return
        reason = self.broken.result() if self.broken.done() else None
        if joining.done() and not joining.cancelled() and (error := joining.exception()):
            reason = f"{type(error).__name__}: {error}"
        failure = never_subscribed(waited, reason)
        if reason is not None and permanent(reason):
            raise ProbeFailedError(failure)
        raise TemporaryFailureError(failure)

    async def close(self) -> None:
        """Ends the connection; a server that does not say goodbye is not waited for."""
        logging.getLogger("realtime").removeHandler(self._unreadable)
        socket = self._client._ws_connection
        closing = asyncio.ensure_future(self._client.close())
        await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
        if socket is not None and not closing.done():
            socket.transport.abort()
            await asyncio.wait({closing})
        self._channel.rejoin_timer.reset()
        self._channel.join_push.destroy()

    async def _join(self) -> None:
        await self._channel.subscribe(self._on_status)
        await asyncio.wait({self.live, self.broken}, return_when=asyncio.FIRST_COMPLETED)

    async def _connect(self, waited: float) -> None:
        try:
            await self._client.connect()
        except InvalidStatus as answer:
            status, body = answer.response.status_code, (answer.response.body or b"").decode(errors="replace")
            if status >= INTERNAL_SERVER_ERROR:
                raise TemporaryFailureError(unavailable(status, body, waited)) from None
            raise ProbeFailedError(refused(status, body, key_expires=self.target.key_expires)) from None
        except TimeoutError:
            failure = unreachable(self.target.url, "no answer", waited)
            if await _listens(self.target.url):
                failure = unanswered(self.target.url, waited)
            raise TemporaryFailureError(failure) from None
        except (OSError, InvalidMessage, EOFError) as failed:
            reason = str(failed) or type(failed).__name__
            raise TemporaryFailureError(unreachable(self.target.url, reason, waited)) from None
        except InvalidHandshake as failed:
            raise ProbeFailedError(unreachable(self.target.url, str(failed), waited)) from None

    def _on_system(self, payload: SuccessSystemPayload) -> None:
        if payload.message == LIVE and not self.live.done():
            self.live.set_result(payload.message)

    def _on_status(self, state: RealtimeSubscribeStates, error: Exception | None) -> None:
        if state is not RealtimeSubscribeStates.SUBSCRIBED and not self.broken.done():
            self.broken.set_result(_reason(state, error))

    def _deliver(self, change: Change) -> None:
        if self.on_change is not None:
            self.on_change(change)
        self._expected = [(matches, future) for matches, future in self._expected if not future.done()]
        for matches, future in self._expected:
            if matches(change):
                future.set_result(change)


@asynccontextmanager
async def subscribed(target: Target, *, timeout: float) -> AsyncIterator[Subscription]:
    """A live subscription: from the server's "Subscribed to PostgreSQL" on.

    While the gateway cannot be reached or answers with 5xx, and while Realtime refuses the join, it tries again
    until ``timeout`` seconds have passed, since a restart heals by itself. A refused key, tenant or path is
    reported at once. Raises ProbeFailedError.
    """
    subscription = await _opened(target, timeout)
    try:
        yield subscription
    finally:
        await subscription.close()


async def _opened(target: Target, timeout: float) -> Subscription:
    deadline = time.monotonic() + timeout
    while True:
        subscription = Subscription(target, timeout=max(1.0, deadline - time.monotonic()))
        try:
            await subscription.open(timeout)
        except TemporaryFailureError as failed:
            await subscription.close()
            if time.monotonic() + PAUSE_SECONDS >= deadline:
                raise ProbeFailedError(failed.failure) from None
            await asyncio.sleep(PAUSE_SECONDS)
        except BaseException:
            await subscription.close()
            raise
        else:
            return subscription


async def _listens(url: str) -> bool:
    """Whether anything takes a TCP connection at the URL's host and port."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme in ("wss", "https") else 80)
    try:
        async with asyncio.timeout(TCP_SECONDS):
            _, writer = await asyncio.open_connection(parts.hostname, port)
    except OSError:  # TimeoutError is one
        return False
    writer.close()
    return True


class _Unreadable(logging.Handler):
    """Hears of the changes that the library throws away.

    An event without columns has ``commit_timestamp: null``, which the library's model does not allow: it only logs
    the message (realtime 2.34.1, _async/client.py, _listen). That event is the one which says "Error 401".
    """

    def __init__(self, topic: str, deliver: Callable[[Change], None]) -> None:
        super().__init__(logging.ERROR)
        self.topic = topic
        self.deliver = deliver

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not text.startswith(UNREADABLE):
            return
        message = json.loads(ast.literal_eval(text.removeprefix(UNREADABLE).partition("\n")[0]))
        if message.get("topic") == self.topic and message.get("event") == "postgres_changes":
            self.deliver(_change(message["payload"]))


def _change(payload: PostgresChangesPayload) -> Change:
    data = payload["data"]
    errors = data.get("errors") or ()
    return Change(
        arrived=time.perf_counter(),
        record=data.get("record") or {},
        errors=(errors,) if isinstance(errors, str) else tuple(errors),
    )


def _reason(state: RealtimeSubscribeStates, error: Exception | None) -> str:
    """What ended the channel, in the server's words where it had any."""
    if error is None:
        return f"the channel's status {state.value}"
    text = str(error)
    try:
        document = json.loads(text)
    except json.JSONDecodeError:
        return text
    if isinstance(document, dict):
        return str(document.get("message") or document.get("reason") or text)
    return text
