"""A load test: many subscribers, a steady rate of inserts, and an exact count of what reached whom and when.

Every subscriber is a connection of its own, with the anon key for the gateway and, as somebody who is logged in, a
JWT of its own for Realtime: role ``authenticated``, its own ``sub`` and expiry, signed with the stack's JWT secret.
All join the same channel, as the visitors of one page do. What a subscriber misses once its connection is gone counts
as lost, and why it went as an error; with ``reconnect`` it comes back as supabase-js does.

The order: the first subscriber alone (Realtime connects to the database for it), then the others, paced below the
tenant's joins per second; inserts once all that can be are live; then the wait for the last events; then the
subscribers leave, and the rows are removed, so that their DELETE events are no load.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any

import psycopg

from doctor.api_role import claims_of
from doctor.checks.setup import Setup
from doctor.database import RETRY_SECONDS, connected, failure_of, first_line
from doctor.deliveries import Deliveries
from doctor.failures import ProbeFailedError
from doctor.load_inserts import Inserts
from doctor.load_limits import CannotLoadError, Size, only_loopback, raise_open_files, sized, tenant_limits, within
from doctor.load_result import ErrorKind, LoadResult, Sample, latency
from doctor.load_subscriber import CONNECT_SECONDS, LIVE_SECONDS, Audience, ErrorCounts, Subscriber, heartbeats
from doctor.outputs import Outputs, PublishedTable
from doctor.phoenix import socket_uri
from doctor.plan import Chosen, Plan, choose
from doctor.removal import in_any_case
from doctor.silence import decoding, idle_poll_seconds, silence, slots, without_reader
from doctor.usage import PROCESS, Sampler
from settings import ApiRole, Event, JwtSettings
from tokens import user_token

logger = logging.getLogger(__name__)

DATABASE_SECONDS = 15.0
SLOT_SECONDS = 30.0
QUIET_SECONDS = 5.0
"""Events are waited for until so long after the last one, or the last insert (for two polls of an idle Realtime where
that is longer), …"""
DRAIN_SECONDS = 60.0
"""… and in all at most so long. What comes later is lost."""
SAMPLE_SECONDS = 1.0
TOKEN_SECONDS = 3600
"""How long the token of a user is valid, at least: what Supabase's auth server gives."""
BUSY_PERCENT = 85


async def load(
    setup: Setup,
    *,
    clients: int,
    rate: float,
    seconds: float,
    direct: bool = False,
    reconnect: bool = False,
    allow_remote: Collection[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> LoadResult:
    """Puts a stack under load and says what became of it.

    ``clients`` subscribers, ``rate`` inserts a second into a declared table, for ``seconds``. ``direct`` goes to
    Realtime's own port and not through the gateway. With ``reconnect`` subscribers that were live come back when their
    connection has ended. ``allow_remote`` names the hosts, other than this machine, that may be put under load.
    ``progress`` is told of every phase, in a line.

    It ends at the latest 3 × clients / (joins a second) + seconds + 5 minutes after it has begun. What fails under load
    is in the result. Raises CannotLoadError when it cannot be started at all. Cancelling it removes its rows before
    the cancellation goes on.
    """
    size = sized(clients=clients, rate=rate, seconds=seconds)
    outputs = setup.outputs
    if outputs is None:
        raise CannotLoadError("the set-up has no outputs of this program; name a stack (--stack) or --outputs FILE")
    url, address = _target(setup, outputs, direct=direct)
    only_loopback(outputs, [setup.realtime_url or url] if direct else [url], allowed=allow_remote)
    notes = []
    if (raised := raise_open_files(size.clients)) is not None:
        notes.append(raised)
    jwt = setup.config.jwt if setup.config else None
    role = ApiRole.AUTHENTICATED if jwt else ApiRole.ANON
    if jwt is None:
        notes.append(
            "all subscribers present the anon key and no JWT of their own, which would be signed with the stack's "
            "jwt.secret or jwt.private_key: " + setup.config_reason
        )
    plans = _plans(outputs.tables, role)
    try:
        async with connected(outputs, DATABASE_SECONDS) as connection:
            chosen, found = await choose(connection, outputs, random.SystemRandom(), plans)
            await connection.rollback()
            limits = await tenant_limits(connection, outputs.tenant)
            synchronous = await (await connection.execute("SHOW synchronous_commit")).fetchone()
            await connection.rollback()
        within(limits, setup, size.clients)
        if limits.max_joins_per_second is None:
            notes.append(
                f"the limits of tenant {outputs.tenant} are not in the database; its joins are paced by default"
            )
        result = LoadResult(
            started=datetime.now(UTC),
            stack=setup.stack,
            url=url,
            direct=direct,
            reconnect=reconnect,
            table=str(chosen.table),
            subscriber=chosen.plan.subscriber,
            writer=chosen.plan.writer,
            **size.model_dump(),
            synchronous_commit=str(synchronous[0]) if synchronous else "",
            notes=(*notes, *found),
        )
        deliveries, errors = Deliveries(clients=clients, inserts=size.inserts), ErrorCounts(setup.redacted)
        audience = Audience(
            uri=socket_uri(url, outputs.anon_key),
            address=address,
            table=chosen.table,
            deliveries=deliveries,
            errors=errors,
        )
        signing = jwt if chosen.plan.subscriber is ApiRole.AUTHENTICATED else None
        tokens = await asyncio.to_thread(_tokens, size, joins=limits.paced_joins, settings=signing)
        run = _Run(
            setup=setup,
            outputs=outputs,
            size=size,
            chosen=chosen,
            result=result,
            subscribers=[Subscriber(number, audience, token) for number, token in enumerate(tokens)],
            deliveries=deliveries,
            errors=errors,
            progress=progress,
        )
        return await run.run(joins=limits.paced_joins)
    except ProbeFailedError as failed:
        raise CannotLoadError(str(failed.failure)) from None
    except psycopg.Error as failed:
        raise CannotLoadError(str(failure_of(outputs, failed))) from None


def _target(setup: Setup, outputs: Outputs, *, direct: bool) -> tuple[str, tuple[str, int] | None]:
    """The Realtime URL, and where to connect when that is not its host: the tenant's name is the Host asked for."""
    if not direct:
        return outputs.socket_url, None
    if setup.realtime_url is None or setup.config is None or setup.config.realtime is None:
        raise CannotLoadError(f"--direct: the port of Realtime itself is not known: {setup.config_reason}")
    port = setup.config.realtime.host_port
    return f"ws://{outputs.tenant}:{port}/socket", ("127.0.0.1", port)


def _plans(tables: Sequence[PublishedTable], role: ApiRole) -> list[Plan]:
    """A plan for every table whose inserts may be read: by the role, or else by anon. Raises CannotLoadError."""
    found: list[Plan] = []
    for reader in dict.fromkeys((role, ApiRole.ANON)):
        for table in tables:
            if Event.INSERT in table.events and reader in table.read and all(plan.table != table for plan in found):
                writer = ApiRole.ANON if ApiRole.ANON in table.write else ApiRole.SERVICE_ROLE
                note = None if reader is role else f"{table.table}: no policy lets {role} read; {reader} subscribes"
                found.append(Plan(table, reader, writer, note))
    if not found:
        raise CannotLoadError(
            f"no declared table publishes inserts and lets {role} read; declare one "
            f"({{table: public.wells, read: [{role}]}}), then `pulumi up`"
        )
    return found


def _tokens(size: Size, *, joins: float, settings: JwtSettings | None) -> list[str | None]:
    """The access token of each client, valid for longer than the run; None without what signs them."""
    if settings is None:
        return [None] * size.clients
    now = int(time.time())
    longest = 3 * size.clients / joins + size.seconds + DRAIN_SECONDS + SLOT_SECONDS + 2 * LIVE_SECONDS
    expires = now + max(TOKEN_SECONDS, math.ceil(longest))
    return [
        user_token(settings, subject=str(uuid.uuid4()), issued_at=now, expires_at=expires) for _ in range(size.clients)
    ]


class _Run:
    """One load test under way."""

    def __init__(
        self,
        *,
        setup: Setup,
        outputs: Outputs,
        size: Size,
        chosen: Chosen,
        result: LoadResult,
        subscribers: Sequence[Subscriber],
        deliveries: Deliveries,
        errors: ErrorCounts,
        progress: Callable[[str], None],
    ) -> None:
        self.setup = setup
        self.outputs = outputs
        self.size = size
        self.chosen = chosen
        self.result = result
        self.deliveries = deliveries
        self.errors = errors
        self.progress = progress
        self.subscribers = subscribers
        self._outages: list[float] = []
        self._counting = False
        self._quiet = QUIET_SECONDS
        self._timeline: list[Sample] = []

    @property
    def _live(self) -> list[Subscriber]:
        return [subscriber for subscriber in self.subscribers if subscriber.live]

    async def run(self, *, joins: float) -> LoadResult:
        """The whole of it. Raises ProbeFailedError when the database is gone before the first insert."""
        sampler = await asyncio.to_thread(Sampler, self.setup)
        inserts = Inserts(
            self.outputs,
            self.chosen,
            self.deliveries,
            failed=lambda text: self.errors.add(ErrorKind.INSERT_FAILED, text),
        )
        await self._sample(sampler)
        watching = [asyncio.create_task(self._sampling(sampler)), asyncio.create_task(heartbeats(self.subscribers))]
        try:
            if await self._ramp(joins):
                if self.result.reconnect:
                    watching += [
                        asyncio.create_task(subscriber.stay(self._outages.append))
                        for subscriber in self.subscribers
                        if subscriber.was_live
                    ]
                await self._insert(inserts)
        finally:
            await in_any_case(self._leave(inserts, watching))
        for task in watching:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        return await self._finished(sampler)

    async def _ramp(self, joins: float) -> bool:
        """Brings the subscribers up. False when there is nobody to insert for."""
        clients = self.size.clients
        self.progress(f"the first of {clients} clients connects to {self.result.url}")
        began = time.monotonic()
        if not await self.subscribers[0].open():
            if clients > 1:
                self._note("the other clients were not tried: they would fare as the first")
            return False
        self._update(first_live_after_s=round(time.monotonic() - began, 2), live=1)
        if not await self._reads_slot():
            return False
        self.progress(f"the others join, {joins:g} a second")
        start = time.monotonic()
        try:
            async with (
                asyncio.timeout(3 * clients / joins + CONNECT_SECONDS + LIVE_SECONDS),
                asyncio.TaskGroup() as group,
            ):
                for place, subscriber in enumerate(self.subscribers[1:], start=1):
                    await asyncio.sleep(max(0.0, start + place / joins - time.monotonic()))
                    group.create_task(subscriber.open())
        except TimeoutError:
            self._note("some clients were still waiting for their turn to connect when the time for that was over")
        live = sum(subscriber.was_live for subscriber in self.subscribers)
        self._update(live=live)
        if live == clients:
            self._update(all_live_after_s=round(time.monotonic() - began, 2))
        self.progress(f"{live} of {clients} clients are live after {time.monotonic() - began:.1f} s")
        return True

    async def _reads_slot(self) -> bool:
        """Whether Realtime reads its slot: after a restart it says that changes flow before it does (v2.32.12)."""
        deadline = time.monotonic() + SLOT_SECONDS
        async with connected(self.outputs, DATABASE_SECONDS) as connection:
            while not (found := await slots(connection)).reading:
                likely = await decoding(connection)
                await connection.rollback()
                if likely or time.monotonic() >= deadline:
                    self.errors.add(ErrorKind.NO_SLOT, likely or without_reader(found))
                    return False
                await asyncio.sleep(RETRY_SECONDS)
            self._quiet = max(QUIET_SECONDS, 2 * await idle_poll_seconds(connection))
        return True

    async def _insert(self, inserts: Inserts) -> None:
        """Inserts, and waits for the events."""
        size = self.size
        self.progress(f"inserts {size.inserts} rows into {self.result.table}, {size.rate:g} a second")
        self._counting = True
        await inserts.run(rate=size.rate, seconds=size.seconds, inserts=size.inserts)
        self._update(insert_seconds=round(inserts.seconds, 2))
        ended = time.perf_counter()
        expected = self.deliveries.inserted * self.result.live
        while self.deliveries.delivered < expected:
            now = time.perf_counter()
            if now - max(ended, self.deliveries.last_arrival) >= self._quiet or now - ended >= DRAIN_SECONDS:
                break
            if not self._live and not self.result.reconnect:
                break
            await asyncio.sleep(RETRY_SECONDS)
        self._counting = False
        self._update(live_at_end=len(self._live))
        if self.deliveries.inserted and not self.deliveries.delivered and self._live:
            self._note("no event came at all; likely: " + await self._silence(inserts))

    async def _silence(self, inserts: Inserts) -> str:
        """Why nobody heard of the last row inserted, while it is still there."""
        token = self._live[0].token or self.outputs.anon_key
        try:
            async with connected(self.outputs, DATABASE_SECONDS) as connection:
                return await silence(connection, self.chosen.table, inserts.last_key, claims_of(token))
        except ProbeFailedError as failed:
            return failed.failure.seen
        except psycopg.Error as failed:
            return first_line(failed)

    async def _leave(self, inserts: Inserts, watching: Sequence[asyncio.Task[None]]) -> None:
        """Nobody watches or comes back any more, the subscribers leave, then the rows are removed."""
        for task in watching:
            task.cancel()
        await asyncio.wait(watching)
        await asyncio.gather(*(subscriber.close() for subscriber in self.subscribers))
        if (left := await inserts.remove()) is not None:
            self.errors.add(ErrorKind.ROWS_LEFT_BEHIND, left)
            logger.error("%s", left)  # nobody sees the result of a run that was cancelled

    async def _sampling(self, sampler: Sampler) -> None:
        while True:
            due = time.monotonic() + SAMPLE_SECONDS
            await self._sample(sampler)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _sample(self, sampler: Sampler) -> None:
        cpu, memory = await asyncio.to_thread(sampler.sample, counting=self._counting)
        since = latency(self.deliveries.interval)
        self.deliveries.interval.reset()
        self._timeline.append(
            Sample(
                after_s=round(self.errors.elapsed, 2),
                live=len(self._live),
                inserted=self.deliveries.inserted,
                delivered=self.deliveries.delivered,
                p50_ms=since.p50 if since else None,
                p99_ms=since.p99 if since else None,
                cpu_percent=cpu,
                memory_mib=memory,
            )
        )

    async def _finished(self, sampler: Sampler) -> LoadResult:
        numbers = [subscriber.number for subscriber in self.subscribers if subscriber.was_live]
        counted = self.deliveries
        usage = sampler.usage()
        for phrase in await asyncio.to_thread(sampler.restarted):
            self._note(phrase)
        if any(used.name == PROCESS and used.cpu_percent_mean > BUSY_PERCENT for used in usage):
            self._note(
                f"{PROCESS} was busy for more than {BUSY_PERCENT} % of the time: part of the latencies is its own; "
                "lower --clients or --rate, or run several"
            )
        if 0 < counted.inserted < self.size.inserts:
            self._note(
                f"{counted.inserted} of {self.size.inserts} inserts were made in time: the database was slow or away"
            )
        nowhere = counted.nowhere()
        if nowhere and counted.delivered and self.result.live_at_end:
            self._note(
                f"{nowhere} inserts reached nobody: Realtime was away, read no slot, or decoded them before others "
                "could see their rows; see docs/doctor.md, Losses under load"
            )
        return self.result.model_copy(
            update={
                "inserted": counted.inserted,
                "expected": counted.inserted * len(numbers),
                "delivered": counted.delivered,
                "delivered_by_subscriber": counted.by_client(numbers),
                "lost": counted.lost(numbers),
                "lost_everywhere": nowhere,
                "lost_in_part": counted.to_some(len(numbers)),
                "duplicated": counted.duplicated,
                "strange": counted.strange,
                "reconnects": len(self._outages),
                "outage_s_median": round(median(self._outages), 2) if self._outages else None,
                "outage_s_max": round(max(self._outages), 2) if self._outages else None,
                "latency_ms": latency(counted.latencies),
                "errors": self.errors.result(),
                "usage": usage,
                "usage_skipped": sampler.skipped,
                "timeline": tuple(self._timeline),
            }
        )

    def _update(self, **changes: Any) -> None:
        self.result = self.result.model_copy(update=changes)

    def _note(self, text: str) -> None:
        self._update(notes=(*self.result.notes, text))
