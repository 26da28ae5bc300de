"""The watch's accounts, its memory, and what it makes of connections that break, fall silent or come back."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from PIL import Image
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from doctor.catalog import Column, Kind, Table, Type
from doctor.failures import Cause, Failure, ProbeFailedError, refused, unavailable, unreachable
from doctor.outputs import Outputs, PublishedTable, parse
from doctor.plan import Chosen, Plan, Written
from doctor.watch import seconds
from doctor.watching import view
from doctor.watching.plot import plot
from doctor.watching.records import Duplicate, Outcome, Part, Record, Round, State, StateChanged, Summary
from doctor.watching.rows import DatabaseDownError, Rows
from doctor.watching.tally import LIMIT_FACTOR, OUTAGES_KEPT, REPEATABLE_KEPT, SETTLING_SECONDS, Tally
from doctor.watching.timeline import BUCKETS, SPANS, Span, Spans, Timeline
from doctor.watching.watcher import Options, Watch, part_of
from settings import ApiRole, Event
from tests.unit.realtime_server import insert_event, live, server
from tests.unit.test_probe import DOCUMENT, SECRETS

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
PATIENCE = 5.0


class Told(list[Record]):
    """What was told."""

    @classmethod
    def discarding(cls) -> Told:
        """Keeps nothing."""
        told = cls()
        told.append = lambda _: None  # type: ignore[method-assign]
        return told

    def outcomes(self) -> dict[int, Outcome]:
        return {record.number: record.outcome for record in self if isinstance(record, Round)}

    def states(self) -> list[State]:
        return [record.state for record in self if isinstance(record, StateChanged)]


def tally(told: Told | None = None, tell: Callable[[Record], None] | None = None) -> Tally:
    tell = tell or (told.append if told is not None else lambda _: None)
    return Tally(patience=PATIENCE, started=0.0, clock=lambda moment: EPOCH + timedelta(seconds=moment), tell=tell)


def committed(accounts: Tally, number: int, at: float) -> None:
    accounts.writing(number, at)
    accounts.committed(number, at + 0.001)


def up(told: Told | None = None) -> Tally:
    """Accounts of a watch that has had its first event, of round 0, at second 1.1, and has settled since."""
    accounts = tally(told)
    accounts.subscribed(0.9, 0.0)
    committed(accounts, 0, 1.0)
    accounts.event(0, 1.1)
    return accounts


def summary(accounts: Tally, at: float) -> Summary:
    return accounts.summary(at, table="public.wells")


# --- what became of a row ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "outcome"),
    [(0.08, Outcome.RECEIVED), (5.0, Outcome.RECEIVED), (5.01, Outcome.LATE), (14.9, Outcome.LATE)],
)
def test_an_event_is_late_when_it_comes_after_the_patience(after: float, outcome: Outcome) -> None:
    told = Told()
    accounts = up(told)
    committed(accounts, 1, 20.0)
    assert not accounts.tick(20.0 + after - 0.001)
    accounts.event(1, 20.0 + after)
    assert told.outcomes()[1] is outcome
    assert told[-1].model_dump()["latency_ms"] == pytest.approx(after * 1000, abs=0.1)


def test_an_event_that_does_not_come_within_the_limit_is_lost_and_that_is_not_well() -> None:
    told = Told()
    accounts = up(told)
    committed(accounts, 1, 20.0)
    committed(accounts, 2, 21.0)
    accounts.event(2, 21.1)
    accounts.tick(20.0 + LIMIT_FACTOR * PATIENCE)
    assert accounts.awaited == 1
    accounts.tick(20.1 + LIMIT_FACTOR * PATIENCE)
    assert told.outcomes()[1] is Outcome.LOST
    assert summary(accounts, 40).unexplained == ("1 lost outside of outages",)


def test_an_event_that_comes_twice_is_counted_and_is_not_well() -> None:
    told = Told()
    accounts = up(told)
    committed(accounts, 1, 20.0)
    accounts.event(1, 20.1)
    accounts.event(1, 20.2)
    assert isinstance(told[-1], Duplicate) and told[-1].number == 1
    assert summary(accounts, 40).unexplained == ("1 duplicated",)
    assert summary(accounts, 40).received == 2


def test_an_event_that_shows_other_values_than_the_row_is_not_well() -> None:
    accounts = up()
    committed(accounts, 1, 20.0)
    accounts.event(1, 20.1, ("column name has another value",))
    assert summary(accounts, 40).unexplained == ("1 different from the row written",)


def test_a_row_written_without_a_subscription_is_missed_and_not_lost() -> None:
    told = Told()
    accounts = up(told)
    accounts.failed(Part.SUBSCRIPTION, "closed", 20.0)
    committed(accounts, 1, 20.5)
    assert told.outcomes()[1] is Outcome.MISSED
    assert told[-1].model_dump()["outage"] == 1


def test_a_row_whose_commit_was_broken_off_and_whose_event_never_came_counts_as_not_written() -> None:
    told = Told()
    accounts = up(told)
    accounts.writing(1, 20.0)
    accounts.failed(Part.DATABASE, "terminating connection", 20.1)
    accounts.doubted(1)
    accounts.tick(40.0)
    assert told.outcomes()[1] is Outcome.NOT_WRITTEN


# --- outages ----------------------------------------------------------------------------------------------------


def test_a_restart_of_postgres_explains_what_is_lost_until_realtime_reads_its_slot_again() -> None:
    """The websocket stays open all the while: every row is committed on a live subscription."""
    told = Told()
    accounts = up(told)
    committed(accounts, 1, 19.9)  # just before, and never sent
    accounts.failed(Part.DATABASE, "terminating connection", 20.0)
    accounts.refused(2, 20.0)
    accounts.refused(3, 21.0)
    committed(accounts, 4, 22.0)  # Postgres is back, the slot is not
    committed(accounts, 5, 23.0)
    accounts.event(5, 23.1)
    accounts.tick(40.0)
    assert told.outcomes() == {
        0: Outcome.RECEIVED,
        1: Outcome.LOST_IN_OUTAGE,
        2: Outcome.NOT_WRITTEN,
        3: Outcome.NOT_WRITTEN,
        4: Outcome.LOST_IN_OUTAGE,
        5: Outcome.RECEIVED,
    }
    found = summary(accounts, 100)
    (outage,) = found.outages
    assert (outage.part, outage.seconds, outage.lost, outage.not_written) == (Part.DATABASE, 3.1, 2, 2)
    assert found.ok
    assert told.states() == [State.UP, State.DOWN, State.UP]


def test_only_an_event_ends_an_outage_and_not_the_word_of_the_server() -> None:
    told = Told()
    accounts = up(told)
    accounts.failed(Part.REALTIME, "HTTP 502", 20.0)
    accounts.subscribed(22.0, 21.5)
    assert accounts.live and told.states()[-1] is State.DOWN
    committed(accounts, 1, 22.1)
    accounts.event(1, 22.2)
    assert told.states()[-1] is State.UP


def test_an_event_of_a_row_from_before_does_not_end_an_outage() -> None:
    accounts = up()
    committed(accounts, 1, 19.9)
    accounts.failed(Part.DATABASE, "refused", 20.0)
    accounts.event(1, 20.1)
    assert accounts.state is State.DOWN


@pytest.mark.parametrize(
    ("after_the_end", "explained"), [(SETTLING_SECONDS - 0.1, True), (SETTLING_SECONDS + 0.1, False)]
)
def test_an_outage_explains_a_loss_shortly_after_its_end_and_none_later(after_the_end: float, explained: bool) -> None:
    accounts = up()
    accounts.failed(Part.DATABASE, "refused", 20.0)
    committed(accounts, 1, 21.0)
    accounts.event(1, 21.1)
    committed(accounts, 2, 21.1 + after_the_end)
    committed(accounts, 3, 30.0)
    accounts.event(3, 30.1)
    accounts.tick(60.0)
    found = summary(accounts, 60)
    assert (found.lost_in_outages, found.lost) == ((1, 0) if explained else (0, 1))


def test_what_breaks_again_while_it_settles_is_the_same_outage() -> None:
    told = Told()
    accounts = up(told)
    accounts.failed(Part.DATABASE, "refused", 20.0)
    committed(accounts, 1, 21.0)
    accounts.event(1, 21.1)
    accounts.failed(Part.SUBSCRIPTION, "closed", 22.0)
    accounts.subscribed(23.0, 22.5)
    committed(accounts, 2, 23.1)
    accounts.event(2, 23.2)
    found = summary(accounts, 101.1)
    (outage,) = found.outages
    assert [evidence.part for evidence in outage.parts] == [Part.DATABASE, Part.SUBSCRIPTION]
    assert outage.seconds == 3.2
    assert found.uptime == pytest.approx(1 - 3.2 / 100)
    assert told.states() == [State.UP, State.DOWN, State.UP, State.DOWN, State.UP]


@pytest.mark.parametrize(
    ("seen", "part"),
    [
        ([Part.SUBSCRIPTION, Part.GATEWAY, Part.REALTIME], Part.GATEWAY),
        ([Part.SUBSCRIPTION, Part.REALTIME], Part.REALTIME),
        ([Part.SUBSCRIPTION, Part.DATABASE, Part.REALTIME], Part.DATABASE),
        ([Part.SUBSCRIPTION], Part.SUBSCRIPTION),
        ([Part.SILENCE, Part.REALTIME], Part.REALTIME),
    ],
)
def test_the_part_to_look_at_first_is_the_one_that_takes_the_others_with_it(seen: list[Part], part: Part) -> None:
    accounts = up()
    for number, each in enumerate(seen):
        accounts.failed(each, "seen", 20.0 + number)
    (outage,) = summary(accounts, 40).outages
    assert outage.part is part
    assert summary(accounts, 40).unexplained == ("down at the end",)


def test_a_subscription_on_which_nothing_comes_is_silent_since_the_first_row_that_did_not_come() -> None:
    accounts = up()
    for number in range(1, 8):
        committed(accounts, number, 19.0 + number)
        assert not accounts.tick(19.5 + number)
    assert accounts.tick(20.0 + 2 + PATIENCE + 0.01), "three rows are overdue"
    assert not accounts.live
    (outage,) = summary(accounts, 40).outages
    assert outage.part is Part.SILENCE
    assert outage.began == EPOCH + timedelta(seconds=20)
    accounts.tick(60.0)
    found = summary(accounts, 60)
    assert (found.lost, found.lost_in_outages) == (0, 7)
    assert "1 times silence on a live subscription" in found.unexplained


def test_a_subscription_on_which_other_rows_come_is_not_silent() -> None:
    accounts = up()
    for number in range(1, 8):
        committed(accounts, number, 19.0 + number)
        accounts.heard(19.5 + number)
        assert not accounts.tick(19.5 + number)
    accounts.heard(26.9)
    assert not accounts.tick(27.0)


def test_until_the_first_event_it_is_starting_and_nothing_counts_as_an_outage() -> None:
    accounts = tally()
    accounts.attempt_failed(Part.GATEWAY, "refused", 0.5)
    accounts.subscribed(2.0, 1.0)
    committed(accounts, 1, 2.1)  # before the slot is there
    committed(accounts, 2, 3.1)
    assert accounts.state is State.STARTING
    accounts.event(2, 3.2)
    accounts.tick(30.0)
    found = summary(accounts, 30)
    assert found.ok
    assert (found.outage_count, found.uptime, found.lost_in_outages) == (0, 1.0, 1)
    assert (found.start.seconds, found.start.part, found.start.attempts) == (3.2, Part.GATEWAY, 1)


def test_a_watch_to_which_no_event_ever_came_is_not_well() -> None:
    assert summary(tally(), 10).unexplained == ("no event ever came",)


@pytest.mark.parametrize(
    ("failure", "part"),
    [
        (unreachable("ws://x", "refused", 1), Part.GATEWAY),
        (refused(401, '{"message":"Invalid authentication credentials"}'), Part.GATEWAY),
        (refused(403, ""), Part.REALTIME),
        (unavailable(503, "name resolution failed", 1), Part.REALTIME),
        (Failure(cause=Cause.NOT_SUBSCRIBED, waited_for="x", seen="x", likely="x"), Part.SUBSCRIPTION),
    ],
)
def test_a_failed_attempt_shows_which_part_is_down(failure: Failure, part: Part) -> None:
    assert part_of(failure) is part


# --- constant memory --------------------------------------------------------------------------------------------


def test_buckets_merge_when_they_are_full_and_lose_nothing() -> None:
    timeline = Timeline()
    for second in range(BUCKETS * 5):
        bucket = timeline.at(second)
        bucket.latencies.record(50 + second % 10)
        bucket.outcomes[Outcome.RECEIVED] = bucket.outcomes.get(Outcome.RECEIVED, 0) + 1
        bucket.duplicates += second % 100 == 0
    assert timeline.width == 8
    assert len(timeline) == BUCKETS * 5 / 8
    assert sum(bucket.outcomes[Outcome.RECEIVED] for _, bucket in timeline) == BUCKETS * 5
    assert sum(bucket.latencies.count for _, bucket in timeline) == BUCKETS * 5
    assert sum(bucket.duplicates for _, bucket in timeline) == BUCKETS * 5 / 100
    assert [moment for moment, _ in timeline][:2] == [4.0, 12.0]
    assert next(iter(timeline))[1].latencies.percentiles((50, 100)) == pytest.approx([53, 57], rel=0.01)


def test_outages_that_no_plot_can_tell_apart_become_one() -> None:
    spans = Spans()
    for number in range(SPANS):
        spans.add(Span(number * 100.0, number * 100.0 + 10, Part.REALTIME))
    spans.add(Span(SPANS * 100.0 - 50, SPANS * 100.0, Part.DATABASE))
    assert len(spans) == SPANS
    assert list(spans)[-1] == Span((SPANS - 1) * 100.0, SPANS * 100.0, Part.DATABASE)


def test_percentiles_are_exact_to_three_digits_whatever_comes() -> None:
    accounts = up()
    for number in range(1, 1001):
        committed(accounts, number, number * 20.0)
        accounts.event(number, number * 20.0 + number / 1000)
    latency = summary(accounts, 30_000).latency_ms
    assert latency is not None
    assert (latency.p50, latency.p95, latency.p99) == pytest.approx((500, 950, 990), rel=0.002)
    assert (latency.min, latency.max) == (1.0, 1000.0)


def test_days_of_losses_and_outages_need_no_more_memory_than_an_hour() -> None:
    """Three days and a half at one row a second; every kind of trouble again and again."""
    accounts = tally()
    accounts.subscribed(0.5, 0.0)

    def rounds(first: int, last: int) -> tuple[int, int]:
        """How many objects there are after these rounds, and how many bytes."""
        for number in range(first, last):
            at = float(number)
            accounts.writing(number, at)
            accounts.committed(number, at)
            if number % 500 == 0:
                accounts.failed(Part.REALTIME, "HTTP 502", at + 0.1)
                accounts.subscribed(at + 0.5, at + 0.2)
            elif number % 37 or number % 1000 < 20:
                accounts.event(number, at + 0.08 + number % 7 / 100)
            if number % 211 == 0:
                accounts.event(number, at + 0.3)
            accounts.tick(at + 0.9)
        gc.collect()
        return len(gc.get_objects()), psutil.Process().memory_info().rss

    objects, size = rounds(1, 3_600 * 16)
    later_objects, later_size = rounds(3_600 * 16, 300_000)
    assert later_objects - objects < 500
    assert later_size - size < 5_000_000
    found = summary(accounts, 300_000)
    assert found.rounds == 299_999
    assert found.outage_count > 590 and len(found.outages) == OUTAGES_KEPT
    assert sum(total.outages for total in found.parts) == found.outage_count
    assert found.lost > 3_000 and found.duplicated > 1_000
    assert accounts.awaited < 20
    assert len(accounts.timeline) <= BUCKETS
    assert len(list(accounts.spans(300_000))) <= SPANS + OUTAGES_KEPT + 1


def test_rows_whose_event_may_come_once_more_are_remembered_up_to_a_number() -> None:
    accounts = up()
    for number in range(1, 2 * REPEATABLE_KEPT):
        committed(accounts, number, 20.0 + number / 1000)
        accounts.event(number, 20.0 + number / 1000)
    assert sum(accounts.may_repeat(number) for number in range(2 * REPEATABLE_KEPT)) == REPEATABLE_KEPT


# --- a whole watch, through the real client, of a server that answers as Kong and Realtime do -------------------


class Wells(Rows):
    """Rows of a database that is nothing but a list; a commit sends the event, unless the server withholds it."""

    def __init__(self, outputs: Outputs) -> None:
        super().__init__(outputs)
        self.sockets: list[tuple[ServerConnection, str]] = []
        self.there: set[int] = set()
        self.written = 0
        self.most = 0
        self.withheld: Callable[[int], bool] = lambda _: False
        self.repeated: Callable[[int], bool] = lambda _: False
        self.down: Callable[[int], bool] = lambda _: False
        self.unreadable = False
        self.unremovable = False

    async def choose(self) -> tuple[Chosen, list[str]]:
        column = Column(name="id", number=1, type=Type("int8", Kind.BASE), sql_type="bigint", cast="bigint")
        wells = PublishedTable(table="public.wells", events=(Event.INSERT,))
        table = Table(schema="public", name="wells", columns=(column,), primary_key=("id",))
        return Chosen(Plan(wells, ApiRole.ANON, ApiRole.ANON), table, (column,)), []

    async def write(self, chosen: Chosen) -> Written:
        if self.down(self.written + 1):
            self.written += 1
            raise DatabaseDownError(
                Failure(cause=Cause.DATABASE, waited_for="x", seen="connection refused", likely="stopped")
            )
        self.written += 1
        return Written((str(self.written),), {"id": self.written}, "1", "1")

    async def commit(self) -> None:
        number = self.written
        self.there.add(number)
        self.most = max(self.most, len(self.there))
        with suppress(ConnectionClosed):  # nobody is there to be told
            await self._send(number)

    async def _send(self, number: int) -> None:
        for socket, topic in self.sockets:
            if self.unreadable:
                errors = ["Error 401: Unauthorized"]
                await insert_event(socket, topic, record={}, columns=[], errors=errors, commit_timestamp=None)
            elif not self.withheld(number):
                for _ in range(2 if self.repeated(number) else 1):
                    await insert_event(socket, topic, record={"id": number})

    async def remove(self, chosen: Chosen) -> None:
        if self.unremovable:
            raise ProbeFailedError(
                Failure(cause=Cause.LEFT_BEHIND, waited_for="x", seen="a trigger", likely="a trigger refuses it")
            )
        while self._removable:
            written, _ = self._removable.popleft()
            self.there.remove(int(written.key[0]))

    async def why(self, chosen: Chosen, written: Written) -> str:
        return "row level security"


@asynccontextmanager
async def stack(*refusals: tuple[int, bytes]) -> AsyncIterator[Wells]:
    """A gateway and its database, which the watch reaches."""

    async def joined(socket: ServerConnection, topic: str) -> None:
        await live(socket, topic)
        wells.sockets = [(socket, topic)]

    async with server(joined, *refusals) as url:
        wells = Wells(parse(json.dumps(DOCUMENT | {"realtime_url": url}), source="x"))
        yield wells


def options(every: float, patience: float = 1.0, length: float | None = None) -> Options:
    """Faster than a person may choose."""
    return Options.model_construct(every=every, patience=patience, seconds=length)


async def watched(wells: Wells, told: Told, *, every: float = 0.02, until: Callable[[Watch], bool]) -> Summary:
    """A watch that is stopped when the condition holds."""
    watch = Watch(wells.outputs, options(every), tell=told.append, rows=wells)
    running = asyncio.ensure_future(watch.run())
    async with asyncio.timeout(40):
        while not until(watch) and not running.done():
            await asyncio.sleep(0.02)
        watch.stop()
        return await running


# realtime 2.34.1 reads what websockets 13 deprecated
pytestmark = pytest.mark.filterwarnings("ignore:ConnectionClosed.(code|reason) is deprecated:DeprecationWarning")


def received(number: int) -> Callable[[Watch], bool]:
    return lambda watch: watch.summary().received >= number


def test_rows_are_received_and_removed() -> None:
    told = Told()

    async def run() -> Wells:
        async with stack() as wells:
            found = await watched(wells, told, until=received(30))
            assert found.ok and found.received == found.rounds and found.outage_count == 0
            return wells

    wells = asyncio.run(run())
    assert wells.there == set()
    assert wells.most <= 20, "rows stay after their event came"
    assert [record.model_dump()["type"] for record in told[:4]] == ["started", "subscribed", "round", "state"]
    assert told[-1].model_dump()["type"] == "summary"


def test_a_gateway_that_cannot_reach_realtime_is_tried_until_it_can() -> None:
    async def run() -> Summary:
        async with stack((502, b""), (503, b"")) as wells:
            return await watched(wells, Told(), until=received(3))

    found = asyncio.run(run())
    assert found.ok
    assert (found.start.part, found.start.attempts) == (Part.REALTIME, 2)


def test_a_database_that_is_gone_is_an_outage_and_its_rows_are_not_written() -> None:
    async def run() -> Summary:
        async with stack() as wells:
            wells.down = lambda number: 10 <= number < 15
            return await watched(wells, Told(), until=received(30))

    found = asyncio.run(run())
    assert found.ok and found.not_written == 5
    assert [outage.part for outage in found.outages] == [Part.DATABASE]


def test_a_connection_that_breaks_is_replaced_and_what_is_written_meanwhile_is_missed() -> None:
    async def run() -> Summary:
        async with stack() as wells:
            broken: list[ServerConnection] = []

            def breaks(watch: Watch) -> bool:
                if watch.summary().received >= 10 and not broken:
                    broken.append(wells.sockets.pop()[0])
                    broken[0].transport.abort()
                return watch.summary().received >= 40

            return await watched(wells, Told(), until=breaks)

    found = asyncio.run(run())
    assert found.ok, found
    assert (found.reconnects, found.outage_count) == (1, 1)
    assert found.outages[0].part is Part.SUBSCRIPTION
    assert found.missed > 0


def test_silence_is_noticed_diagnosed_and_ended_by_a_new_connection() -> None:
    told = Told()

    async def run() -> Summary:
        async with stack() as wells:
            watches: list[Watch] = []
            wells.withheld = lambda number: number >= 10 and bool(watches) and watches[0].summary().subscriptions == 1

            def until(watch: Watch) -> bool:
                watches[:] = [watch]
                return watch.summary().subscriptions == 2 and watch.summary().received >= 20

            return await watched(wells, told, until=until)

    found = asyncio.run(run())
    assert [outage.part for outage in found.outages] == [Part.SILENCE]
    assert found.unexplained == ("1 times silence on a live subscription",)
    assert found.lost == 0 and found.lost_in_outages > 3
    assert "row level security" in [record.model_dump().get("likely") for record in told]


def test_events_without_columns_are_diagnosed_and_count_as_lost() -> None:
    told = Told()

    async def run() -> Summary:
        async with stack() as wells:

            def until(watch: Watch) -> bool:
                wells.unreadable = watch.summary().received >= 5
                return watch.summary().rounds >= 100

            return await watched(wells, told, until=until)

    found = asyncio.run(run())
    assert found.lost + found.lost_in_outages > 50
    likely = [record.model_dump()["likely"] for record in told if record.model_dump()["type"] == "diagnosis"]
    assert len(likely) == 1 and "anon may not select the primary key of public.wells" in likely[0]


def test_an_event_that_is_withheld_is_lost_and_one_sent_twice_is_a_duplicate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("doctor.watching.tally.SETTLING_SECONDS", 0.2)

    async def run() -> tuple[Summary, Wells]:
        async with stack() as wells:
            wells.withheld = lambda number: number == 60  # after the start has settled
            wells.repeated = lambda number: number == 20
            found = await watched(wells, Told(), until=lambda watch: watch.summary().rounds > 70)
            return found, wells

    found, wells = asyncio.run(run())
    assert (found.lost, found.duplicated, found.received) == (1, 1, found.rounds - 1)
    assert set(found.unexplained) == {"1 lost outside of outages", "1 duplicated"}
    assert wells.there == set()


def test_a_row_that_cannot_be_removed_ends_the_watch_and_is_named() -> None:
    told = Told()

    async def run() -> Summary:
        async with stack() as wells:
            wells.unremovable = True
            return await watched(wells, told, until=lambda _: False)

    found = asyncio.run(run())
    assert found.rounds < 10
    assert 'DELETE FROM "public"."wells" WHERE "id" = \'1\'' in found.left_behind
    assert not found.ok
    assert "a trigger refuses it" in [record.model_dump().get("likely") for record in told]


def test_what_the_callback_raises_ends_the_watch_and_its_rows_are_removed() -> None:
    async def run() -> Wells:
        async with stack() as wells:

            def full(record: Record) -> None:
                if isinstance(record, Round) and record.number >= 5:
                    raise OSError("no space left")

            with pytest.raises(OSError, match="no space left"):
                await Watch(wells.outputs, options(0.02), tell=full, rows=wells).run()
            return wells

    assert asyncio.run(run()).there == set()


def test_a_cancelled_watch_removes_its_rows() -> None:
    async def run() -> Wells:
        async with stack() as wells:
            wells.withheld = lambda _: True
            running = asyncio.ensure_future(Watch(wells.outputs, options(0.02, patience=30), rows=wells).run())
            while len(wells.there) < 5:
                await asyncio.sleep(0.02)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            return wells

    assert asyncio.run(run()).there == set()


def test_a_second_stop_waits_for_no_event() -> None:
    async def run() -> Summary:
        async with stack() as wells:
            wells.withheld = lambda number: number > 3
            watch = Watch(wells.outputs, options(0.02, patience=30), rows=wells)
            running = asyncio.ensure_future(watch.run())
            while watch.summary().received < 3 or watch.summary().awaited < 5:
                await asyncio.sleep(0.02)
            watch.stop()
            watch.stop()
            return await asyncio.wait_for(running, 5)

    found = asyncio.run(run())
    assert found.undecided >= 5 and found.awaited == 0


def test_thousands_of_rounds_and_many_reconnects_leave_nothing_behind_in_the_process() -> None:
    """Memory, tasks, threads, sockets and the handlers of the client library's log."""
    process = psutil.Process()

    def held() -> tuple[int, int, int, int]:
        gc.collect()
        handlers = len(logging.getLogger("realtime").handlers)
        return len(asyncio.all_tasks()), threading.active_count(), process.num_fds(), handlers

    async def run() -> tuple[Summary, int]:
        async with stack() as wells:
            before = held()
            sizes: list[int] = []

            def until(watch: Watch) -> bool:
                count = watch.summary().received
                if count >= 500 and not sizes:
                    gc.collect()
                    sizes.append(process.memory_info().rss)
                if watch.summary().subscriptions <= count / 300 and wells.sockets:
                    (socket, _) = wells.sockets.pop()
                    socket.transport.abort()
                return count >= 3_000

            found = await watched(wells, Told.discarding(), every=0.002, until=until)
            await asyncio.sleep(0.1)
            gc.collect()
            after = held()
            # The server's side of the last connection and its task may still be closing.
            assert all(later <= earlier + 1 for earlier, later in zip(before, after, strict=True)), (before, after)
            assert before[3] == after[3]
            return found, process.memory_info().rss - sizes[0]

    found, growth = asyncio.run(run())
    assert found.reconnects >= 9
    assert growth < 8_000_000


# --- as a person sees it ----------------------------------------------------------------------------------------


def history() -> tuple[Tally, Told]:
    """Some minutes with a restart of everything, and one row that was lost."""
    told = Told()
    accounts = up(told)
    for number in range(1, 300):
        at = 1.0 + number
        if 100 <= number < 110:
            accounts.attempt_failed(Part.REALTIME, "HTTP 502", at)
        if number == 110:
            accounts.subscribed(at, at - 1)
        if 200 <= number < 205:
            accounts.failed(Part.DATABASE, "connection refused", at, likely="Postgres is stopped")
            accounts.refused(number, at)
            continue
        committed(accounts, number, at)
        if number not in (50, 205):
            accounts.event(number, at + 0.05 + number % 10 / 100)
        accounts.tick(at + 0.5)
    return accounts, told


def test_every_record_is_a_line_of_json_that_says_what_it_is() -> None:
    accounts, told = history()
    for record in [*told, summary(accounts, 301)]:
        text = record.model_dump_json()
        assert "\n" not in text
        document = json.loads(text)
        assert datetime.fromisoformat(document["at"]).tzinfo is not None
        assert document["type"] in {"round", "state", "subscribed", "summary"}
    document = json.loads(summary(accounts, 301).model_dump_json())
    assert document["ok"] is False
    assert document["unexplained"] == ["1 lost outside of outages"]
    assert [outage["part"] for outage in document["outages"]] == ["realtime", "database"]
    assert document["parts"][0] == {"part": "database", "outages": 1, "seconds": 6.11}


def test_the_report_says_how_it_was_and_why_it_is_not_well() -> None:
    accounts, told = history()
    text = "\n".join(view.report(summary(accounts, 301)))
    assert "public.wells: watched for 5 min 01 s, first event after 1.1 s, uptime 94.6" in text
    assert "1 lost, 0 duplicated; 10 missed while disconnected, 1 lost in outages, 5 not written" in text
    assert "2 outages, 1 reconnects" in text
    assert "outage 2: the database" in text and "1 lost, 5 not written" in text
    assert text.endswith("not well: 1 lost outside of outages")
    lines = [line for record in told if (line := view.line(record)) is not None]
    assert any("down: database: connection refused; likely: Postgres is stopped" in line for line in lines)
    assert any("lost: round 50" in line for line in lines)
    assert len(lines) < 12, "rows that came are no news"


def test_the_plot_shows_latencies_outages_and_losses(tmp_path: Path) -> None:
    accounts, _ = history()
    plot(accounts, summary(accounts, 301), tmp_path / "watch.png")
    with Image.open(tmp_path / "watch.png") as image:
        assert image.format == "PNG" and image.size == (1320, 660)
        colours = image.convert("RGB").getcolors(maxcolors=2**20)
    assert colours is not None
    drawn = {colour for _, colour in colours}
    assert (214, 39, 40) in drawn, "no mark of a loss"
    assert (247, 220, 239) in drawn, "no shade of Realtime's outage"
    assert (31, 119, 180) in drawn, "no p50"


def test_a_watch_of_which_nothing_came_has_a_plot_too(tmp_path: Path) -> None:
    accounts = tally()
    accounts.attempt_failed(Part.GATEWAY, "refused", 1.0)
    plot(accounts, summary(accounts, 20), tmp_path / "watch.png")
    assert (tmp_path / "watch.png").stat().st_size > 10_000


@pytest.mark.parametrize(("text", "length"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("1d", 86_400)])
def test_a_duration_is_written_as_people_write_it(text: str, length: float) -> None:
    assert seconds(text) == length


@pytest.mark.parametrize("text", ["", "0", "-1", "ten", "5 weeks", "nan"])
def test_what_is_no_duration_is_refused_with_the_cure(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write 90, 90s, 10m, 2h or 1d"):
        seconds(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--every", "0"], "--every: input should be greater than or equal to 0.05"),
        (["--plot", "/nowhere/watch.png"], "/nowhere/watch.png cannot be written"),
        (["--log", "/nowhere/watch.jsonl"], "/nowhere/watch.jsonl cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    running = command(tmp_path, *arguments)
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 3
    assert message in errors


def test_sigterm_ends_a_watch_of_what_is_not_there_with_a_summary_and_exit_1(tmp_path: Path) -> None:
    running = command(tmp_path, "--log", str(tmp_path / "watch.jsonl"), "--plot", str(tmp_path / "watch.png"))
    while not (tmp_path / "watch.jsonl").exists() or "database" not in (tmp_path / "watch.jsonl").read_text():
        assert running.poll() is None
    os.kill(running.pid, signal.SIGTERM)
    output, errors = running.communicate(timeout=30)
    assert running.returncode == 1, errors
    assert "database: " in output and output.endswith("not well: no event ever came\n")
    lines = [json.loads(line) for line in (tmp_path / "watch.jsonl").read_text().splitlines()]
    assert [line["type"] for line in lines] == ["state", "summary"]
    assert lines[0]["outage"]["part"] == "database"
    assert (tmp_path / "watch.png").read_bytes().startswith(b"\x89PNG")
    assert not any(secret in output + errors + str(lines) for secret in (*SECRETS, "the-anon-key"))


def test_the_records_are_what_json_prints_and_nothing_else(tmp_path: Path) -> None:
    output, _ = command(tmp_path, "--json", "--for", "1").communicate(timeout=30)
    assert [json.loads(line)["type"] for line in output.splitlines()] == ["state", "summary"]


def test_a_reader_of_the_records_may_go_away(tmp_path: Path) -> None:
    running = command(tmp_path, "--json", "--for", "1")
    assert running.stdout is not None
    running.stdout.readline()
    running.stdout.close()
    assert running.wait(30) == 3
    assert running.stderr is not None
    with running.stderr as errors:
        assert errors.read() == ""


def command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`python -m doctor watch` of a stack on ports that nobody listens on."""
    document = DOCUMENT | {"database": DOCUMENT["database"] | {"port": 1}, "realtime_url": "ws://127.0.0.1:1/x"}
    (folder / "outputs.json").write_text(json.dumps(document))
    return subprocess.Popen(
        [sys.executable, "-m", "doctor", "watch", "--outputs", str(folder / "outputs.json"), *arguments],
        cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
