"""The watch: rows inserted at an interval, their events received, for as long as it is wanted.

Two tasks that know nothing of each other, so that one goes on while what the other needs is down: one writes and
removes rows, one keeps a subscription. A third takes what came to the tally and lets time pass there.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from doctor.failures import (
    KONG_NO_KEY,
    KONG_NO_ROUTE,
    KONG_WRONG_GROUP,
    KONG_WRONG_KEY,
    Cause,
    Failure,
    ProbeFailedError,
)
from doctor.outputs import Outputs
from doctor.plan import Chosen, Written, is_of, key_of
from doctor.probe import unauthorized
from doctor.removal import in_any_case
from doctor.rendering import differences
from doctor.subscription import Change, Subscription, Target
from doctor.watching.records import Diagnosis, Part, Record, Round, Started, State, Summary
from doctor.watching.rows import DatabaseDownError, Rows
from doctor.watching.tally import Tally

DEFAULT_EVERY_SECONDS = 1.0
DEFAULT_PATIENCE_SECONDS = 5.0
OPEN_SECONDS = 30.0
"""Of one attempt to subscribe, from the join to "Subscribed to PostgreSQL"."""
FIRST_BACKOFF_SECONDS = 0.25
LAST_BACKOFF_SECONDS = 5.0
DOWN_EVERY_SECONDS = 1.0
"""While something is down, a row is tried at least so often, or an end would be seen late."""
TICK_SECONDS = 0.1
HELD_UP_SECONDS = 3 * TICK_SECONDS
CLOCK_SET_SECONDS = 0.05
"""By so much the machine's clock has to differ to be followed."""
MOST_ROWS = 1_000
"""Awaited or to be removed; more are not written."""
KONG = (KONG_NO_KEY, KONG_WRONG_KEY, KONG_WRONG_GROUP, KONG_NO_ROUTE)


class Options(BaseModel):
    """How to watch. ``seconds`` is how long rows are inserted, None until stop().

    An event that comes within ``patience`` seconds is in time, one within three times that is late, and after that
    it is lost.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: float = Field(default=DEFAULT_EVERY_SECONDS, ge=0.05, le=3600)
    patience: float = Field(default=DEFAULT_PATIENCE_SECONDS, ge=0.5, le=300)
    seconds: float | None = Field(default=None, gt=0)


class Watch:
    """A watch of one stack. ``tell`` is handed every record as it happens; what it raises ends the watch."""

    def __init__(
        self,
        outputs: Outputs,
        options: Options | None = None,
        *,
        tell: Callable[[Record], None] = lambda _: None,
        rows: Rows | None = None,
    ) -> None:
        """``rows`` is for a database that is reached in another way than by the outputs."""
        self.outputs = outputs
        self.options = options or Options()
        self.tally = Tally(
            patience=self.options.patience, started=time.perf_counter(), clock=_Calendar(), tell=self._told
        )
        self._tell = tell
        self._rows = rows or Rows(outputs)
        self._chosen: Chosen | None = None
        self._known: dict[int, tuple[Written, bool]] = {}
        self._came: deque[tuple[int, Change]] = deque()
        self._number = 0
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._woken = asyncio.Event()
        self._silent = asyncio.Event()
        self._undiagnosed = False
        self._unreadable: Change | None = None
        self._left_behind: tuple[str, ...] = ()

    def stop(self) -> None:
        """No further rows; those written are waited for. A second call ends that wait."""
        if self._stopping.is_set():
            self._hurrying.set()
        self._stopping.set()
        self._woken.set()

    def summary(self) -> Summary:
        """All of it so far."""
        table = str(self._chosen.table) if self._chosen else None
        return self.tally.summary(time.perf_counter(), table=table, left_behind=self._left_behind)

    async def run(self) -> Summary:
        """Watches until the time is over or stop(), removes its rows, and returns the summary, told as well.

        Raises ProbeFailedError when there is nothing to watch (no table takes a row, the password is refused), and
        what ``tell`` raises. Whatever ends it, its rows are removed.
        """
        loop = asyncio.get_running_loop()
        timer = None if self.options.seconds is None else loop.call_later(self.options.seconds, self.stop)
        # The client library logs what is reported here; unheard, it would be printed in between.
        library, unheard = logging.getLogger("realtime"), logging.NullHandler()
        library.addHandler(unheard)
        try:
            chosen = await self._choose()
            if chosen is not None:
                await self._run(chosen)
        finally:
            if timer is not None:
                timer.cancel()
            library.removeHandler(unheard)
            await in_any_case(self._clean_up())
        summary = self.summary()
        self._tell(summary)
        return summary

    async def _run(self, chosen: Chosen) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                others = [group.create_task(self._subscribe(chosen)), group.create_task(self._settle(chosen))]
                await self._write(chosen)
                await self._last_events()
                for task in others:
                    task.cancel()
        except BaseExceptionGroup as group_failed:
            raise group_failed.exceptions[0] from None

    async def _choose(self) -> Chosen | None:
        """The table, asked for until the database can be reached; None when the watch was stopped before."""
        while not self._stopping.is_set():
            began = time.perf_counter()
            try:
                chosen, notes = await self._rows.choose()
            except DatabaseDownError as down:
                if down.final:
                    raise ProbeFailedError(down.failure) from None
                self._database_down(down.failure, began)
                await self._wait(DOWN_EVERY_SECONDS)
            else:
                self._chosen = chosen
                self._tell(
                    Started(
                        at=datetime.now(UTC),
                        table=str(chosen.table),
                        subscriber=chosen.plan.subscriber,
                        writer=chosen.plan.writer,
                        every_seconds=self.options.every,
                        patience_seconds=self.tally.patience,
                        limit_seconds=self.tally.limit,
                        notes=tuple(notes),
                    )
                )
                return chosen
        return None

    async def _clean_up(self) -> None:
        for number, (written, committed) in self._known.items():
            if self.tally.awaits(number):
                self._rows.discard(written, committed=committed)
        self._known.clear()
        if self._chosen is None:
            await self._rows.close()
        else:
            self._left_behind = await self._rows.remove_all(self._chosen)
        self.tally.abandon(time.perf_counter())

    # --- rows

    async def _write(self, chosen: Chosen) -> None:
        due = time.perf_counter()
        while not self._stopping.is_set():
            # Before there ever was a subscription, rows would only be missed.
            if self.tally.ever_live and self.tally.awaited + self._rows.removable < MOST_ROWS:
                await self._round(chosen)
            every = self.options.every
            due = max(due + every, time.perf_counter())
            while not self._stopping.is_set():
                self._woken.clear()
                if self._undiagnosed:
                    await self._diagnose(chosen)
                if self._rows.removable:
                    await self._remove(chosen)
                down = self.tally.state is not State.UP
                soon = min(due, time.perf_counter() + DOWN_EVERY_SECONDS) if down else due
                due = min(due, soon)
                if (left := due - time.perf_counter()) <= 0:
                    break
                await self._wait(left)

    async def _round(self, chosen: Chosen) -> None:
        self._number += 1
        number = self._number
        began = time.perf_counter()
        try:
            written = await self._rows.write(chosen)
        except DatabaseDownError as down:
            self._database_down(down.failure, began)
            self.tally.refused(number, time.perf_counter())
            return
        committing = time.perf_counter()
        self._known[number] = written, False
        self.tally.writing(number, committing)
        try:
            await self._rows.commit()
        except DatabaseDownError as down:
            self._database_down(down.failure, committing)
            self.tally.doubted(number)
            return
        if number in self._known:
            self._known[number] = written, True
        self.tally.committed(number, time.perf_counter())

    async def _remove(self, chosen: Chosen) -> None:
        began = time.perf_counter()
        try:
            await self._rows.remove(chosen)
        except DatabaseDownError as down:
            self._database_down(down.failure, began)
            await self._wait(min(self.options.every, DOWN_EVERY_SECONDS))
        except ProbeFailedError as refused:
            self._tell(Diagnosis(at=datetime.now(UTC), likely=refused.failure.likely))
            self.stop()  # or every further row would be one more left behind

    async def _diagnose(self, chosen: Chosen) -> None:
        """Asks Postgres why nothing comes, with the oldest row that is still there."""
        self._undiagnosed = False
        there = (row for number, (row, committed) in self._known.items() if committed and self.tally.awaits(number))
        written = next(there, None)
        if written is None:
            return
        began = time.perf_counter()
        try:
            likely = await self._rows.why(chosen, written)
        except DatabaseDownError as down:
            self._database_down(down.failure, began)
        else:
            self._tell(Diagnosis(at=datetime.now(UTC), likely=likely))

    async def _last_events(self) -> None:
        while self.tally.awaited and not self._hurrying.is_set():
            await asyncio.sleep(TICK_SECONDS)

    def _database_down(self, failure: Failure, since: float) -> None:
        self.tally.failed(Part.DATABASE, failure.seen, time.perf_counter(), likely=failure.likely, since=since)

    async def _wait(self, seconds: float) -> None:
        """Waits, until something is to be done."""
        try:
            # Not wait_for: Python 3.11's swallows a cancellation that comes together with what it waits for.
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return

    def _told(self, record: Record) -> None:
        """What the tally tells: a row that is concluded and whose event cannot come once more is done with."""
        if isinstance(record, Round) and record.number in self._known:
            written, committed = self._known[record.number]
            self._rows.discard(written, committed=committed)
            if not self.tally.may_repeat(record.number):
                del self._known[record.number]
            self._woken.set()
        self._tell(record)

    # --- events

    async def _subscribe(self, chosen: Chosen) -> None:
        target = Target(
            url=self.outputs.socket_url,
            key=key_of(self.outputs, chosen.plan.subscriber),
            schema=chosen.table.schema,
            table=chosen.table.name,
            key_expires=self.outputs.anon_key_expires,
        )
        attempts = 0
        while True:
            subscription = Subscription(
                target, timeout=OPEN_SECONDS, on_change=lambda change: self._hear(change, chosen)
            )
            try:
                await self._one_subscription(subscription)
            finally:
                await in_any_case(subscription.close())
            attempts = 0 if self.tally.proven else attempts + 1
            most = min(FIRST_BACKOFF_SECONDS * 2**attempts, LAST_BACKOFF_SECONDS)
            await asyncio.sleep(random.uniform(most / 2, most))  # noqa: S311 - no secret

    async def _one_subscription(self, subscription: Subscription) -> None:
        """Opens it, and returns when it has failed, broken or fallen silent."""
        began = time.perf_counter()
        try:
            await subscription.open(OPEN_SECONDS)
        except ProbeFailedError as failed:
            failure = failed.failure
            part = part_of(failure)
            self.tally.attempt_failed(part, failure.seen, time.perf_counter(), likely=failure.likely)
            return
        self._silent.clear()
        self.tally.subscribed(time.perf_counter(), began)
        self._woken.set()
        silent = asyncio.ensure_future(self._silent.wait())
        try:
            ends: set[asyncio.Future[Any]] = {silent, subscription.broken}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            silent.cancel()
        if subscription.broken.done():
            self.tally.failed(Part.SUBSCRIPTION, subscription.broken.result(), time.perf_counter())

    def _hear(self, change: Change, chosen: Chosen) -> None:
        """Called by the client library, where nothing may raise: only takes note."""
        self.tally.heard(change.arrived)
        if not change.record:
            self._unreadable = self._unreadable or change
            return
        for number, (written, _) in self._known.items():
            if is_of(change, written, chosen):
                self._came.append((number, change))
                return

    async def _settle(self, chosen: Chosen) -> None:
        told = held_up = False
        ticked = time.perf_counter()
        while True:
            if self._unreadable is not None and not told:
                told = True
                self._tell(Diagnosis(at=datetime.now(UTC), likely=unauthorized(chosen, self._unreadable).likely))
            while self._came:
                number, change = self._came.popleft()
                if number in self._known:
                    written, _ = self._known[number]
                    found = [*change.errors, *differences(written.expected, change.record, chosen.columns)]
                    self.tally.event(number, change.arrived, tuple(found))
            now = time.perf_counter()
            # After this process itself was held up (a suspended machine), what came meanwhile is still to be read.
            held_up, ticked = not held_up and now - ticked > HELD_UP_SECONDS, now
            if not held_up and self.tally.tick(now):
                self._undiagnosed = True
                self._silent.set()
                self._woken.set()
            for number in [n for n in self._known if not (self.tally.awaits(n) or self.tally.may_repeat(n))]:
                del self._known[number]
            await asyncio.sleep(TICK_SECONDS)


async def watch(
    outputs: Outputs, options: Options | None = None, *, tell: Callable[[Record], None] = lambda _: None
) -> Summary:
    """Watches for ``options.seconds`` and returns the summary; as Watch, which can be stopped as well."""
    return await Watch(outputs, options, tell=tell).run()


def part_of(failure: Failure) -> Part:
    """Which part a failed attempt to subscribe was seen down."""
    if failure.cause is Cause.GATEWAY_UNREACHABLE:
        return Part.GATEWAY
    if failure.cause is Cause.REFUSED and any(message in failure.seen for message in KONG):
        return Part.GATEWAY
    if failure.cause in (Cause.REALTIME_UNAVAILABLE, Cause.REFUSED):
        return Part.REALTIME
    return Part.SUBSCRIPTION


class _Calendar:
    """Dates of moments of time.perf_counter. The same moment has the same date, unless the clock was set."""

    def __init__(self) -> None:
        self._epoch = time.time() - time.perf_counter()

    def __call__(self, moment: float) -> datetime:
        epoch = time.time() - time.perf_counter()
        if abs(epoch - self._epoch) > CLOCK_SET_SECONDS:
            self._epoch = epoch
        return datetime.fromtimestamp(self._epoch + moment, UTC)
