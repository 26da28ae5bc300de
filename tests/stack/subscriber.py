"""A subscriber as an application makes it, with the PyPI package realtime: what it received, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import jwt
from realtime import (
    AsyncRealtimeClient,
    PostgresChangesPayload,
    RealtimePostgresChangesListenEvent,
    SuccessSystemPayload,
)

LIVE = "Subscribed to PostgreSQL"
SUBSCRIBE_SECONDS = 45
EVENT_SECONDS = 15


@dataclass(frozen=True)
class Event:
    """One change as it came: INSERT, UPDATE or DELETE of a table's row."""

    type: str
    table: str
    record: Mapping[str, Any]
    old_record: Mapping[str, Any]


class Subscriber:
    """What one client has received so far."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.live = asyncio.Event()
        self._arrived = asyncio.Condition()

    def system(self, payload: SuccessSystemPayload) -> None:
        if payload.message == LIVE:
            self.live.set()

    def change(self, payload: PostgresChangesPayload) -> None:
        data = payload["data"]
        self.events.append(
            Event(
                type=str(getattr(data["type"], "value", data["type"])),
                table=f"{data['schema']}.{data['table']}",
                record=data.get("record") or {},
                old_record=data.get("old_record") or {},
            )
        )

        async def wake() -> None:
            async with self._arrived:
                self._arrived.notify_all()

        self._waking = asyncio.ensure_future(wake())

    async def receives(self, matches: Callable[[Event], bool]) -> Event:
        """The first event that matches, among those that came and those that will. Fails after EVENT_SECONDS."""

        async def found() -> Event:
            async with self._arrived:
                while True:
                    for event in self.events:
                        if matches(event):
                            return event
                    await self._arrived.wait()

        try:
            return await asyncio.wait_for(found(), EVENT_SECONDS)
        except TimeoutError:
            raise AssertionError(f"the event did not come within {EVENT_SECONDS} s; came: {self.events}") from None


@asynccontextmanager
async def subscribed(
    outputs: Mapping[str, Any], *tables: str, access_token: str | None = None
) -> AsyncIterator[Subscriber]:
    """A client of the stack that is told of every change of the tables, from "Subscribed to PostgreSQL" on.

    It presents the anon key to the gateway, and ``access_token``, that of a user who is logged in, to Realtime.
    """
    subscriber = Subscriber()
    client = AsyncRealtimeClient(outputs["realtime_url"], outputs["anon_key"], auto_reconnect=False)
    channel = client.channel("changes")
    channel.on_system(subscriber.system)
    for table in tables:
        schema, _, name = table.partition(".")
        channel.on_postgres_changes(
            RealtimePostgresChangesListenEvent.All, subscriber.change, table=name, schema=schema
        )
    if access_token is not None:
        await client.set_auth(access_token)
    try:
        await client.connect()
        await channel.subscribe()
        await asyncio.wait_for(subscriber.live.wait(), SUBSCRIBE_SECONDS)
        yield subscriber
    finally:
        await client.close()
        channel.rejoin_timer.reset()
        channel.join_push.destroy()


def user_token(outputs: Mapping[str, Any], jwt_secret: str) -> str:
    """The token of somebody who is logged in, as an auth server issues it: signed with the stack's JWT secret."""
    expires = jwt.decode(outputs["anon_key"], jwt_secret, algorithms=["HS256"])["exp"]
    claims = {"role": "authenticated", "sub": "7f9c24e8-3b12-4fef-91e0-5bb5ecf5d7f1", "exp": expires}
    return jwt.encode(claims, jwt_secret, algorithm="HS256")
