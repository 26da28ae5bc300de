"""Whether changes flow: the replication slot that Realtime reads, looked at once a second for all pages together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

import psycopg

from doctor.catalog import Connection
from doctor.console.answers import event, refusal_of
from doctor.console.streams import END, Items, Streams
from doctor.database import CONNECT_SECONDS, answering_within, opened
from doctor.outputs import Outputs
from doctor.silence import Slots, slots, without_reader

EVERY_SECONDS = 1.0
HEARTBEAT_SECONDS = 2.0
ANSWER_SECONDS = 3.0

STARTED = "SELECT extract(epoch FROM pg_postmaster_start_time())::text"
UNREAD = "Realtime reads no replication slot: it makes one once somebody subscribes, within seconds"


@dataclass(frozen=True)
class FlowState:
    """Whether changes flow, and why not. ``generation`` is another one after every slot: what happened between two
    slots is told to nobody."""

    flowing: bool
    reason: str | None
    generation: str


class Flow:
    """Looks at the slot while somebody wants to know."""

    def __init__(self, outputs: Outputs, streams: Streams) -> None:
        self.outputs = outputs
        self.streams = streams
        self.state: FlowState | None = None
        self._listening: set[Items] = set()
        self._watching: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        self._started = ""
        self._slot: tuple[object, ...] = ()
        self._slots = 0

    async def stream(self) -> AsyncIterator[str]:
        """The state as soon as it is known, whenever it changes, and every HEARTBEAT_SECONDS."""
        with self.streams.opened() as states:
            self._listening.add(states)
            if self._watching is None:
                self._watching = asyncio.create_task(self._watch())
            elif self.state is not None:
                states.put_nowait(self.state)
            state: FlowState | None = None
            try:
                yield ": the flow\n\n"
                while state is not END:
                    if state is not None:
                        yield event("flow", asdict(state))
                    try:
                        async with asyncio.timeout(None if state is None else HEARTBEAT_SECONDS):
                            state = await states.get()
                    except TimeoutError:
                        continue
            finally:
                self._listening.discard(states)
                if not self._listening and self._watching is not None:
                    self._watching.cancel()
                    self._watching = self.state = None

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                began = loop.time()
                state = await self._look()
                if state != self.state:
                    self.state = state
                    for states in self._listening:
                        states.put_nowait(state)
                await asyncio.sleep(max(0.0, began + EVERY_SECONDS - loop.time()))
        finally:
            await self._close()

    async def _look(self) -> FlowState:
        try:
            if self._connection is None:
                self._connection = await opened(self.outputs, CONNECT_SECONDS, ANSWER_SECONDS)
                await self._connection.set_autocommit(True)
                with answering_within(self._connection, ANSWER_SECONDS):
                    # Of one connection's life: a server that starts again ends it.
                    row = await (await self._connection.execute(STARTED)).fetchone()
                self._started = row[0] if row is not None else ""
            with answering_within(self._connection, ANSWER_SECONDS):
                found = await slots(self._connection)
        except psycopg.Error as failed:
            await self._close()
            return FlowState(False, refusal_of(self.outputs, failed).error, self._name())
        slot = (self._started, *found.holders) if found.holders else ()
        self._slots += bool(slot) and slot != self._slot
        self._slot = slot
        return FlowState(found.reading, None if found.reading else _reason(found), self._name())

    def _name(self) -> str:
        return f"{self._started}-{self._slots}"

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _reason(found: Slots) -> str:
    return without_reader(found) if found.held or found.used >= found.most else UNREAD
