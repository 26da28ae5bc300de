"""The probe: an insert into a declared table reaches a subscriber, through the gateway, as a browser sees it.

It is the only part of the doctor that writes. Each row is inserted as PostgREST inserts for a user, and removed by
its primary key as soon as its event has come, or has not. A table's triggers run and its subscribers see the row
come and go, as with any insert.
"""

from __future__ import annotations

import asyncio
import logging
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import psycopg
from pydantic import BaseModel, ConfigDict, computed_field

from doctor.api_role import claims_of
from doctor.catalog import Connection, UnusableTableError
from doctor.database import RETRY_SECONDS, connected, failure_of
from doctor.failures import REALTIME_LOG, UP, Cause, Failure, ProbeFailedError
from doctor.outputs import Outputs
from doctor.plan import Chosen, Written, choose, is_of, key_of, write
from doctor.removal import in_any_case, remove
from doctor.rendering import differences
from doctor.sample_row import sample_row
from doctor.silence import decoding, idle_poll_seconds, silence, slots, without_reader
from doctor.subscription import Change, Subscription, Target, subscribed
from settings import ApiRole

logger = logging.getLogger(__name__)

DEFAULT_COUNT = 10
DEFAULT_TIMEOUT_SECONDS = 30.0
EVENT_SHARE = 3
"""An event is waited for this fraction of the timeout, and after so many lost ones the probe stops."""
POLLS = 1.5
"""An event is waited for at least so many polls of an idle Realtime."""


class ProbeResult(BaseModel):
    """What a probe saw. Latencies are from just before COMMIT to the event's arrival, milliseconds."""

    model_config = ConfigDict(frozen=True)

    table: str | None = None
    subscriber: ApiRole | None = None
    writer: ApiRole | None = None
    requested: int
    sent: int = 0
    latencies_ms: tuple[float, ...] = ()
    subscribed_after_ms: float | None = None
    notes: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def received(self) -> int:
        """Events that came in time."""
        return len(self.latencies_ms)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def lost(self) -> int:
        """Rows that were committed and whose event did not come in time."""
        return self.sent - self.received

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        """Whether every requested row was sent, received as it was written, and removed."""
        return not self.failures and self.received == self.requested

    @computed_field  # type: ignore[prop-decorator]
    @property
    def percentiles_ms(self) -> dict[str, float] | None:
        """min, p50, p95 and max of the latencies, None without any."""
        if not self.latencies_ms:
            return None
        return {
            "min": min(self.latencies_ms),
            "p50": percentile(self.latencies_ms, 50),
            "p95": percentile(self.latencies_ms, 95),
            "max": max(self.latencies_ms),
        }


def percentile(values: Sequence[float], percent: int) -> float:
    """A percentile, between neighbours in proportion (as numpy's default)."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


async def probe(
    outputs: Outputs, *, count: int = DEFAULT_COUNT, timeout: float = DEFAULT_TIMEOUT_SECONDS
) -> ProbeResult:
    """Inserts ``count`` rows one after another and waits for the event of each.

    ``timeout`` seconds bound the subscription; each event has a third of it, or a poll and a half of an idle Realtime
    where that is longer. After three lost events it stops, and it stops at once where the others would fare the same.
    What fails is in the result, not an exception. Cancelling it removes the row under way before the cancellation goes
    on.
    """
    run = _Run(outputs, count, timeout)
    try:
        await run.run()
    except ProbeFailedError as failed:
        run.fail(failed.failure)
    except asyncio.CancelledError:
        for failure in run.result.failures:
            if failure.cause is Cause.LEFT_BEHIND:
                logger.error("%s", failure)  # nobody will see the result
        raise
    return run.result


class _Run:
    """One probe under way."""

    def __init__(self, outputs: Outputs, count: int, timeout: float) -> None:
        self.outputs = outputs
        self.timeout = timeout
        self.patience = timeout / EVENT_SHARE
        self.result = ProbeResult(requested=count)
        self.rng = random.SystemRandom()
        self.left_behind = False

    def fail(self, failure: Failure) -> None:
        """Adds a failure, each cause once."""
        if failure.cause not in [known.cause for known in self.result.failures]:
            self._update(failures=(*self.result.failures, failure))

    def _update(self, **changes: object) -> None:
        self.result = self.result.model_copy(update=changes)

    async def run(self) -> None:
        try:
            async with connected(self.outputs, self.timeout) as connection:
                chosen, notes = await choose(connection, self.outputs, self.rng)
                await connection.rollback()
                plan = chosen.plan
                self._update(
                    table=str(chosen.table), subscriber=plan.subscriber, writer=plan.writer, notes=tuple(notes)
                )
                target = Target(
                    url=self.outputs.socket_url,
                    key=key_of(self.outputs, plan.subscriber),
                    schema=chosen.table.schema,
                    table=chosen.table.name,
                    key_expires=self.outputs.anon_key_expires,
                )
                started = time.perf_counter()
                async with subscribed(target, timeout=self.timeout) as subscription:
                    self._update(subscribed_after_ms=_milliseconds(started, time.perf_counter()))
                    await self._wait_for_slot(connection, subscription)
                    while self.result.sent < self.result.requested and self.result.lost < EVENT_SHARE:
                        if not await self._one(connection, chosen, subscription) or self.left_behind:
                            break
        except psycopg.Error as failed:
            self.fail(failure_of(self.outputs, failed))

    async def _wait_for_slot(self, connection: Connection, subscription: Subscription) -> None:
        """Waits until Realtime reads the replication slot that changes come from.

        For after a restart of Postgres, Realtime v2.32.12 says "Subscribed to PostgreSQL" one to two seconds before
        it has made its slot again, without wal2json it says so for ever, and after it was killed it has to wait
        for the slot of its former self: inserts are lost in the meantime.
        """
        started = time.monotonic()
        while not (found := await slots(connection)).reading:
            likely = await decoding(connection)
            await connection.rollback()
            waited = time.monotonic() - started
            if likely or subscription.broken.done() or waited >= self.timeout:
                raise ProbeFailedError(
                    Failure(
                        cause=Cause.NO_SLOT,
                        waited_for=f"Realtime to read a replication slot of wal2json, for {waited:.0f} s",
                        seen='"Subscribed to PostgreSQL" and no such reader',
                        likely=likely or without_reader(found),
                    )
                )
            await asyncio.sleep(RETRY_SECONDS)
        self.patience = max(self.patience, POLLS * await idle_poll_seconds(connection))
        await connection.rollback()
        if (waited := time.monotonic() - started) >= RETRY_SECONDS:
            note = f"Realtime read its slot {waited:.1f} s after it said that changes flow; until then they were lost"
            self._update(notes=(*self.result.notes, note))

    async def _one(self, connection: Connection, chosen: Chosen, subscription: Subscription) -> bool:
        """One row: written, committed, waited for, compared, removed. False when going on would tell nothing new."""
        try:
            row = await sample_row(connection, chosen.table, self.rng)
            written = await write(connection, chosen, row, self.outputs)
        except UnusableTableError as unfit:
            raise ProbeFailedError(_no_row(chosen, unfit)) from None
        event = subscription.expect(lambda change: is_of(change, written, chosen))
        committed = False
        try:
            committing = time.perf_counter()
            await connection.commit()
            committed = True
            self._update(sent=self.result.sent + 1)
            ends: set[asyncio.Future[Any]] = {event, subscription.broken}
            await asyncio.wait(ends, timeout=self.patience, return_when=asyncio.FIRST_COMPLETED)
            if event.done():
                return self._judge(event.result(), committing, written, chosen)
            if subscription.broken.done():
                self.fail(_disconnected(chosen, subscription.broken.result()))
                return False
            claims = claims_of(key_of(self.outputs, chosen.plan.subscriber))
            likely = await silence(connection, chosen.table, written.key, claims)
            await connection.rollback()
            self.fail(_not_received(chosen, written, self.patience, likely))
            return True
        finally:
            event.cancel()
            await in_any_case(self._remove(connection, chosen, written, committed=committed))

    async def _remove(self, connection: Connection, chosen: Chosen, written: Written, *, committed: bool) -> None:
        left_behind = await remove(self.outputs, connection, chosen.table, written, committed=committed)
        if left_behind is not None:
            self.left_behind = True  # as every further row would be
            self.fail(left_behind)

    def _judge(self, change: Change, committing: float, written: Written, chosen: Chosen) -> bool:
        if not change.record:
            self.fail(unauthorized(chosen, change))
            return False
        self._update(latencies_ms=(*self.result.latencies_ms, _milliseconds(committing, change.arrived)))
        if found := [*change.errors, *differences(written.expected, change.record, chosen.columns)]:
            self.fail(_different(chosen, found))
        return True


def _milliseconds(start: float, end: float) -> float:
    return round((end - start) * 1000, 1)


def _named(chosen: Chosen, written: Written) -> str:
    pairs = zip(chosen.table.primary_key, written.key, strict=True)
    return f"{chosen.table} ({', '.join(f'{name}={value}' for name, value in pairs)})"


def _no_row(chosen: Chosen, unfit: UnusableTableError) -> Failure:
    return Failure(
        cause=Cause.NO_TABLE,
        waited_for=f"another sample row that {chosen.table} takes",
        seen=str(unfit),
        likely="the table or the rows it refers to changed while the probe ran; run it again",
    )


def _disconnected(chosen: Chosen, reason: str) -> Failure:
    return Failure(
        cause=Cause.DISCONNECTED,
        waited_for=f"an event of {chosen.table}",
        seen=reason,
        likely=f"the gateway, Realtime or Postgres was restarted, or a limit of the tenant cut it off; {REALTIME_LOG}",
    )


def unauthorized(chosen: Chosen, change: Change) -> Failure:
    """An event that came without columns."""
    subscriber = chosen.plan.subscriber
    if any("400" in error for error in change.errors):
        likely = f"{chosen.table} has no primary key; add one"
    else:
        likely = f"{subscriber} may not select the primary key of {chosen.table}: its grant is missing; {UP}"
    return Failure(
        cause=Cause.UNAUTHORIZED,
        waited_for=f"the columns of the row of {chosen.table}",
        seen=", ".join(change.errors) or "an event without columns",
        likely=likely,
    )


def _different(chosen: Chosen, found: Sequence[str]) -> Failure:
    return Failure(
        cause=Cause.DIFFERENT,
        waited_for=f"the row of {chosen.table} as it was written",
        seen=", ".join(found),
        likely="the tenant is connected to another database, the row is larger than poll_max_record_bytes, or a "
        f"trigger changed it after the fact; {REALTIME_LOG}",
    )


def _not_received(chosen: Chosen, written: Written, waited: float, likely: str) -> Failure:
    return Failure(
        cause=Cause.NOT_RECEIVED,
        waited_for=f"the event of {_named(chosen, written)}, for {waited:.0f} s",
        seen="silence",
        likely=likely,
    )
