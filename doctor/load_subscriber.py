"""The subscribers of a load test: each a connection of its own that joins, counts, and says when and why it ended."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, cycle

from websockets.exceptions import InvalidHandshake, InvalidStatus

from doctor.catalog import Column, Table
from doctor.deliveries import Deliveries, row_key
from doctor.failures import http
from doctor.load_result import ErrorKind, Errors
from doctor.phoenix import (
    HEARTBEAT_SECONDS,
    JOIN_REF,
    LIVE,
    Message,
    Socket,
    UnreadableMessageError,
    decode,
    heartbeat,
    join,
    refusal,
)

CONNECT_SECONDS = 15.0
"""For one connection: TCP, TLS and the upgrade."""
LIVE_SECONDS = 30.0
"""From a join until changes flow. Realtime retries a subscription that failed every 5 to 10 s (v2.32.12)."""
GOODBYE_SECONDS = 5.0
RECONNECT_SECONDS = (1.0, 2.0, 5.0, 10.0)
"""Before each attempt to come back, the last before every further one (realtime-js 2, RECONNECT_INTERVALS)."""
CONNECTING_AT_ONCE = 100
MESSAGES_OF_A_KIND = 20
LONGEST_WORDS = 300
RATE_LIMITED = re.compile(r"(?i)too many|ratelimit|rate limit")
TOO_MANY_REQUESTS = 429
INSERT = "INSERT"


@dataclass(frozen=True)
class Change:
    """A change in a message: the key of the row inserted, or what is wrong with it. Of another change, neither."""

    key: Hashable = None
    fault: str | None = None


class ErrorCounts:
    """How often each error was seen; of a kind's messages the first few apart, the others together."""

    def __init__(self, redacted: Callable[[str], str]) -> None:
        self.counts: Counter[tuple[ErrorKind, str]] = Counter()
        self._redacted = redacted
        self._first: dict[tuple[ErrorKind, str], float] = {}
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def add(self, kind: ErrorKind, message: str) -> None:
        message = self._redacted(" ".join(message.split())[:LONGEST_WORDS])
        known = (kind, message) in self.counts
        if not known and sum(other is kind for other, _ in self.counts) >= MESSAGES_OF_A_KIND:
            message = "others"
        self.counts[kind, message] += 1
        self._first.setdefault((kind, message), round(self.elapsed, 1))

    def result(self) -> tuple[Errors, ...]:
        """The errors, the most frequent first."""
        return tuple(
            Errors(kind=kind, message=message, count=number, first_after_s=self._first[kind, message])
            for (kind, message), number in self.counts.most_common()
        )


class Audience:
    """What the subscribers of one run have in common. ``address`` is where to connect when not to the URI's host."""

    def __init__(
        self,
        *,
        uri: str,
        address: tuple[str, int] | None,
        table: Table,
        deliveries: Deliveries,
        errors: ErrorCounts,
    ) -> None:
        self.uri = uri
        self.address = address
        self.table = table
        self.deliveries = deliveries
        self.error = errors.add
        self.topic = f"realtime:doctor-load-{uuid.uuid4()}"
        self.connecting = asyncio.Semaphore(CONNECTING_AT_ONCE)
        # The events of one insert are the same bytes for everybody on a channel: they are read once.
        self.read = lru_cache(maxsize=512)(_reader(table.key_columns))


class Subscriber:
    """One client: connects, joins, counts, and says when and why it ended."""

    def __init__(self, number: int, audience: Audience, token: str | None) -> None:
        self.number = number
        self.live = False
        self.was_live = False
        self.ended = asyncio.Event()
        self.audience = audience
        self.token = token
        self._socket: Socket | None = None
        self._settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last_word = "silence"
        self._heartbeats = count(2)
        self._unanswered: str | None = None
        self._flowed = False

    async def open(self) -> bool:
        """Connects, joins, and waits until changes flow; what failed is counted. Whether they did flow."""
        audience = self.audience
        self._socket, self._last_word, self._unanswered = None, "silence", None
        self._settled = asyncio.get_running_loop().create_future()
        self._flowed = False
        self.ended.clear()
        try:
            async with audience.connecting, asyncio.timeout(CONNECT_SECONDS):
                self._socket = await Socket.connect(
                    audience.uri, address=audience.address, on_text=self._text, on_close=self._closed
                )
        except InvalidStatus as answer:
            status, words = refusal(answer)
            limited = status == TOO_MANY_REQUESTS
            return self._end(ErrorKind.RATE_LIMITED if limited else ErrorKind.HANDSHAKE_REFUSED, http(status, words))
        except TimeoutError:
            return self._end(ErrorKind.UNREACHABLE, f"no answer to the upgrade within {CONNECT_SECONDS:.0f} s")
        except InvalidHandshake as broken:
            return self._end(ErrorKind.HANDSHAKE_REFUSED, str(broken))
        except OSError as failed:
            return self._end(ErrorKind.UNREACHABLE, failed.strerror or str(failed) or type(failed).__name__)
        self._socket.send(
            join(audience.topic, schema=audience.table.schema, table=audience.table.name, access_token=self.token)
        )
        await asyncio.wait({self._settled}, timeout=LIVE_SECONDS)
        if not self._settled.done():
            self._end(ErrorKind.NEVER_LIVE, f"{LIVE!r} did not come within {LIVE_SECONDS:.0f} s: {self._last_word}")
        return self._flowed

    async def stay(self, came_back: Callable[[float], None]) -> None:
        """Comes back each time it has ended, as supabase-js does, until cancelled; seconds of each outage are told."""
        while True:
            await self.ended.wait()
            gone = time.monotonic()
            for attempt in count():
                await asyncio.sleep(RECONNECT_SECONDS[min(attempt, len(RECONNECT_SECONDS) - 1)])
                if await self.open():
                    break
            came_back(time.monotonic() - gone)

    def beat(self) -> None:
        """Keeps the connection open, and notices one that is dead."""
        if self._socket is None or self.ended.is_set():
            return
        if self._unanswered is not None:
            self._end(ErrorKind.HEARTBEAT_UNANSWERED, f"for {HEARTBEAT_SECONDS:.0f} s")
            return
        self._unanswered = str(next(self._heartbeats))
        self._socket.send(heartbeat(self._unanswered))

    async def close(self) -> None:
        """Leaves; a server that does not say goodbye is not waited for."""
        self.live = False
        self.ended.set()
        if self._socket is not None:
            self._socket.close()
            await asyncio.wait({self._socket.ended}, timeout=GOODBYE_SECONDS)
            self._socket.abort()

    def _text(self, data: bytes, arrived: float) -> None:
        if self.ended.is_set():
            return
        try:
            found = self.audience.read(data)
        except UnreadableMessageError as broken:
            self.audience.error(ErrorKind.UNREADABLE_MESSAGE, str(broken))
            return
        if isinstance(found, Change):
            if found.fault is None:
                self.audience.deliveries.arrived(self.number, found.key, arrived)
            else:
                self.audience.error(ErrorKind.EVENT_WITHOUT_COLUMNS, found.fault)
        else:
            self._message(found)

    def _message(self, message: Message) -> None:
        payload = message.payload
        if message.topic == "phoenix":
            if message.ref == self._unanswered:
                self._unanswered = None
        elif message.event == "phx_reply" and message.ref == JOIN_REF:
            if payload.get("status") != "ok":
                self._refused(_reason(payload.get("response")))
        elif message.event == "system":
            words = str(payload.get("message"))
            if words == LIVE and payload.get("status") == "ok":
                self.live = self.was_live = self._flowed = True
                self._settle()
            elif payload.get("status") != "ok":
                self._last_word = words
                if RATE_LIMITED.search(words):
                    self._end(ErrorKind.RATE_LIMITED, words)
        elif message.event in ("phx_close", "phx_error"):
            self._end(ErrorKind.CHANNEL_CLOSED, f"{message.event}, {self._last_word}")

    def _refused(self, reason: str) -> None:
        self._end(ErrorKind.RATE_LIMITED if RATE_LIMITED.search(reason) else ErrorKind.JOIN_REFUSED, reason)

    def _closed(self, reason: str) -> None:
        if not self.ended.is_set():
            self._end(ErrorKind.SOCKET_CLOSED, reason)

    def _end(self, kind: ErrorKind, message: str) -> bool:
        self.live = False
        self.ended.set()
        self.audience.error(kind, message)
        if self._socket is not None:
            self._socket.abort()  # nothing that is still under way is to be counted for the next connection
        self._settle()
        return False

    def _settle(self) -> None:
        if not self._settled.done():
            self._settled.set_result(None)


async def heartbeats(subscribers: Sequence[Subscriber]) -> None:
    """Lets each subscriber's heart beat in turn, spread over the time, until cancelled.

    Those that are late on a busy machine beat together: Realtime ends, with code 1000, a connection that has been
    silent for 60 s.
    """
    due = time.monotonic()
    for subscriber in cycle(subscribers):
        due += HEARTBEAT_SECONDS / len(subscribers)
        if (early := due - time.monotonic()) > 0:
            await asyncio.sleep(early)
        subscriber.beat()


def _reader(key_columns: Sequence[Column]) -> Callable[[bytes], Change | Message]:
    """Reads a frame: a change down to its key, or another message."""

    def read(data: bytes) -> Change | Message:
        message = decode(data)
        if message.event != "postgres_changes":
            return message
        change = message.payload.get("data") or {}
        if change.get("type") != INSERT:
            return Change()  # somebody else's UPDATE or DELETE, which v2.32.12 leaves to the client to pass over
        try:
            return Change(key=row_key(key_columns, change.get("record") or {}))
        except (KeyError, ValueError):
            return Change(fault=_reason(change.get("errors")))

    return read


def _reason(found: object) -> str:
    """What a server said, in one line."""
    if isinstance(found, dict):
        return str(found.get("reason") or found)
    if isinstance(found, list):
        return ", ".join(map(str, found))
    return str(found) if found else "without a reason"
