"""The accounts of a watch: what became of every row, and from when to when events did not come through.

Pure: it is told what happened and when (seconds of time.perf_counter), and tells records. However long a watch lasts,
it holds the rows that are awaited, those whose event may come once more, the last outages, and histograms.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from doctor.watching.latencies import Latencies
from doctor.watching.records import (
    Duplicate,
    Evidence,
    LatencySummary,
    Outage,
    Outcome,
    Part,
    PartTotal,
    Record,
    Round,
    State,
    StateChanged,
    Subscribed,
    Summary,
)
from doctor.watching.timeline import Span, Spans, Timeline

LIMIT_FACTOR = 3
"""An event that has not come after so many times the patience is lost."""
SETTLING_SECONDS = 5.0
"""After its end an outage still explains a loss for so long, and what is seen down then is the same outage again.

After a restart of Postgres, Realtime v2.32.12 says "Subscribed to PostgreSQL" 0.3 to 2.1 s before its replication slot
is there again; what is committed in between is never sent.
"""
SILENT_ROWS = 3
"""So many rows in a row past the patience, and nothing at all heard since the first: the subscription is silent."""
DIGITS = 3
OUTAGES_KEPT = 100
REPEATABLE_KEPT = 1_000


@dataclass(slots=True)
class _Row:
    """A row that is written and whose event is awaited."""

    number: int
    committed: float
    live: bool
    outage: _Outage | None
    doubtful: bool = False
    overdue: bool = False


@dataclass(slots=True)
class _Seen:
    """A part seen down."""

    first: float
    last: float
    seen: str
    likely: str | None
    times: int = 1


@dataclass(slots=True, eq=False)
class _Outage:
    number: int
    began: float
    ended: float | None = None
    parts: dict[Part, _Seen] = field(default_factory=dict)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    attempts: int = 0

    @property
    def last_seen(self) -> float:
        return max((seen.last for seen in self.parts.values()), default=self.began)

    @property
    def part(self) -> Part | None:
        return next((part for part in Part if part in self.parts), None)

    def seconds(self, at: float) -> float:
        return (at if self.ended is None else self.ended) - self.began


class Tally:
    """The accounts. Every change of them is told to ``tell``; ``clock`` makes a date of a moment."""

    def __init__(
        self, *, patience: float, started: float, clock: Callable[[float], datetime], tell: Callable[[Record], None]
    ) -> None:
        self.patience = patience
        self.limit = LIMIT_FACTOR * patience
        self.started = started
        self.state = State.STARTING
        self.live = False
        self.proven = False
        """Whether an event came since the last subscription."""
        self.latencies = Latencies(DIGITS)
        self.timeline = Timeline()
        self._clock = clock
        self._tell = tell
        self._awaited: OrderedDict[int, _Row] = OrderedDict()
        self._repeatable: OrderedDict[int, float] = OrderedDict()
        self._outcomes: Counter[Outcome] = Counter()
        self._duplicated = 0
        self._different = 0
        self._subscriptions = 0
        self._attempts = 0
        self._unanswered = 0
        self._unanswered_since = started
        self._heard = started
        self._start = _Outage(0, started)
        self._outage: _Outage | None = self._start
        self._outages: deque[_Outage] = deque()
        self._outage_count = 0
        self._down_seconds = 0.0
        self._forgotten_spans = Spans()
        self._forgotten: dict[Part, tuple[int, float]] = {}

    # --- rows

    def writing(self, number: int, at: float) -> None:
        """A row is about to be committed: from here its latency counts."""
        self._awaited[number] = _Row(number, at, self.live, self._outage)

    def committed(self, number: int, at: float) -> None:
        """The commit was answered. Without a live subscription nobody waits for the row."""
        row = self._awaited.get(number)
        if row is not None and not row.live:
            self._conclude(row, Outcome.MISSED, at)

    def doubted(self, number: int) -> None:
        """The commit was broken off: whether the row is there is not known."""
        if number in self._awaited:
            self._awaited[number].doubtful = True

    def refused(self, number: int, at: float) -> None:
        """The row could not be written. To be told after what was seen down."""
        self._conclude(_Row(number, at, self.live, self._outage), Outcome.NOT_WRITTEN, at)

    def heard(self, at: float) -> None:
        """Any change came, of whatever row: the subscription is not silent."""
        self._heard = at
        self._unanswered = 0

    def event(self, number: int, at: float, differences: tuple[str, ...] = ()) -> None:
        """The event of a row came. The event of one committed since anything was last seen down ends the outage."""
        self.heard(at)
        row = self._awaited.get(number)
        if row is None:
            if number in self._repeatable:
                self._duplicated += 1
                self.timeline.at(at - self.started).duplicates += 1
                self._tell(Duplicate(at=self._clock(at), number=number))
            return
        self.proven = True
        latency = at - row.committed
        outcome = Outcome.RECEIVED if latency <= self.patience else Outcome.LATE
        self._different += bool(differences)
        self._repeatable[number] = at + self.limit
        if len(self._repeatable) > REPEATABLE_KEPT:
            self._repeatable.popitem(last=False)
        self._conclude(row, outcome, at, latency * 1000, differences)
        if self._outage is not None and row.live and self.live and row.committed >= self._outage.last_seen:
            self._end_outage(at)

    def tick(self, at: float) -> bool:
        """Time has passed: rows get overdue and lost. True when the subscription turns out to be silent."""
        overdue = [row for row in self._awaited.values() if at - row.committed > self.patience]
        for row in overdue:
            if not row.overdue:
                row.overdue = True
                self._count_unanswered(row)
        silent = self.live and self._unanswered >= SILENT_ROWS
        if silent:  # before any of these rows is concluded, which this explains
            seen = f"connected, and nothing came for the last {self._unanswered} rows"
            self.failed(Part.SILENCE, seen, at, since=self._unanswered_since)
        for row in overdue:
            if at - row.committed > self.limit:
                self._conclude(row, self._absence(row), at)
        while self._repeatable and next(iter(self._repeatable.values())) < at:
            self._repeatable.popitem(last=False)
        return silent

    def abandon(self, at: float) -> None:
        """Nobody waits any longer: what is awaited stays undecided."""
        for row in list(self._awaited.values()):
            self._conclude(row, Outcome.UNDECIDED, at)

    def awaits(self, number: int) -> bool:
        return number in self._awaited

    def may_repeat(self, number: int) -> bool:
        return number in self._repeatable

    @property
    def awaited(self) -> int:
        return len(self._awaited)

    @property
    def ever_live(self) -> bool:
        """Whether there has been a subscription."""
        return self._subscriptions > 0

    # --- the subscription, and what is down

    def subscribed(self, at: float, began: float) -> None:
        """The server said that changes flow."""
        self.live = True
        self.proven = False
        self._unanswered = 0
        self._subscriptions += 1
        self._tell(Subscribed(at=self._clock(at), number=self._subscriptions, after_ms=round((at - began) * 1000, 1)))

    def attempt_failed(self, part: Part, seen: str, at: float, *, likely: str | None = None) -> None:
        """An attempt to subscribe failed."""
        self._attempts += 1
        self.failed(part, seen, at, likely=likely)
        assert self._outage is not None, "something was just seen down"
        self._outage.attempts += 1

    def failed(
        self, part: Part, seen: str, at: float, *, likely: str | None = None, since: float | None = None
    ) -> None:
        """A part was seen down, ``since`` when if that is earlier. Anything but the database ends the subscription."""
        if part is not Part.DATABASE:
            self.live = False
        self._unanswered = 0
        began = at if since is None else since
        continued = self._outage
        outage = continued or self._begin_outage(began)
        known = outage.parts.get(part)
        if known is None:
            outage.parts[part] = _Seen(began, at, seen, likely)
        else:
            known.last = at
            known.times += 1
        if known is None or continued is None:
            self._tell(StateChanged(at=self._clock(at), state=self.state, outage=self._frozen(outage, at)))

    def _begin_outage(self, began: float) -> _Outage:
        last = self._outages[-1] if self._outages else None
        if last is not None and last.ended is not None and began - last.ended <= SETTLING_SECONDS:
            outage = last
            self._down_seconds -= outage.seconds(began)
            outage.ended = None
        else:
            self._outage_count += 1
            outage = _Outage(self._outage_count, began)
            self._outages.append(outage)
            if len(self._outages) > OUTAGES_KEPT:
                self._forget(self._outages.popleft())
        self._outage = outage
        self.state = State.DOWN
        for row in self._awaited.values():
            if row.outage is None and row.committed >= began - self.patience:
                row.outage = outage
        return outage

    def _end_outage(self, at: float) -> None:
        outage = self._outage
        assert outage is not None, "called while there is an outage"
        outage.ended = at
        if outage is not self._start:
            self._down_seconds += outage.seconds(at)
        self._outage = None
        self.state = State.UP
        self._tell(StateChanged(at=self._clock(at), state=self.state, outage=self._frozen(outage, at)))

    def _forget(self, outage: _Outage) -> None:
        part = outage.part
        assert part is not None and outage.ended is not None, "only the last outage may still last"
        count, seconds = self._forgotten.get(part, (0, 0.0))
        self._forgotten[part] = (count + 1, seconds + outage.seconds(outage.ended))
        self._forgotten_spans.add(self._span(outage, outage.ended))

    # --- rows, inside

    def _count_unanswered(self, row: _Row) -> None:
        if not row.live or row.doubtful or row.committed <= self._heard or not self.live:
            return
        if self._unanswered == 0:
            self._unanswered_since = row.committed
        self._unanswered += 1

    def _absence(self, row: _Row) -> Outcome:
        """Why a row's event did not come."""
        if row.doubtful:
            return Outcome.NOT_WRITTEN
        if row.outage is None:
            last = self._outages[-1] if self._outages else self._start
            if last.ended is not None and 0 <= row.committed - last.ended <= SETTLING_SECONDS:
                row.outage = last
        return Outcome.LOST if row.outage is None else Outcome.LOST_IN_OUTAGE

    def _conclude(
        self,
        row: _Row,
        outcome: Outcome,
        at: float,
        latency_ms: float | None = None,
        differences: tuple[str, ...] = (),
    ) -> None:
        self._awaited.pop(row.number, None)
        self._outcomes[outcome] += 1
        bucket = self.timeline.at(row.committed - self.started)
        bucket.outcomes[outcome] = bucket.outcomes.get(outcome, 0) + 1
        if latency_ms is not None:
            self.latencies.record(latency_ms)
            bucket.latencies.record(latency_ms)
        if row.outage is not None:
            row.outage.outcomes[outcome] += 1
        explained = row.outage is not None and outcome is not Outcome.RECEIVED
        self._tell(
            Round(
                at=self._clock(at),
                number=row.number,
                began=self._clock(row.committed),
                outcome=outcome,
                latency_ms=None if latency_ms is None else round(latency_ms, 1),
                differences=differences,
                outage=row.outage.number if explained and row.outage is not None else None,
            )
        )

    # --- as a whole

    def spans(self, at: float) -> Iterator[Span]:
        """When it was down, in order; the start is the first."""
        yield self._span(self._start, at)
        yield from self._forgotten_spans
        for outage in self._outages:
            yield self._span(outage, at)

    def summary(self, at: float, *, table: str | None, left_behind: tuple[str, ...] = ()) -> Summary:
        """All of it, as it is at a moment."""
        began = self._start.ended
        uptime = None
        if began is not None and at > began:
            down = self._down_seconds
            if self._outage is not None and self._outage is not self._start:
                down += self._outage.seconds(at)
            uptime = round(max(0.0, 1 - down / (at - began)), 6)
        return Summary(
            at=self._clock(at),
            table=table,
            state=self.state,
            began=self._clock(self.started),
            seconds=round(at - self.started, 3),
            uptime=uptime,
            rounds=self._outcomes.total() + self.awaited,
            received=self._outcomes[Outcome.RECEIVED],
            late=self._outcomes[Outcome.LATE],
            lost=self._outcomes[Outcome.LOST],
            lost_in_outages=self._outcomes[Outcome.LOST_IN_OUTAGE],
            missed=self._outcomes[Outcome.MISSED],
            not_written=self._outcomes[Outcome.NOT_WRITTEN],
            undecided=self._outcomes[Outcome.UNDECIDED],
            awaited=self.awaited,
            duplicated=self._duplicated,
            different=self._different,
            latency_ms=self._latency_summary(),
            subscriptions=self._subscriptions,
            reconnects=max(0, self._subscriptions - 1),
            start=self._frozen(self._start, at),
            outage_count=self._outage_count,
            parts=tuple(self._part_totals(at)),
            outages=tuple(self._frozen(outage, at) for outage in self._outages),
            left_behind=left_behind,
        )

    def _latency_summary(self) -> LatencySummary | None:
        if not self.latencies.count:
            return None
        p50, p95, p99 = (round(value, 1) for value in self.latencies.percentiles((50, 95, 99)))
        return LatencySummary(
            min=round(self.latencies.min, 1), p50=p50, p95=p95, p99=p99, max=round(self.latencies.max, 1)
        )

    def _part_totals(self, at: float) -> Iterator[PartTotal]:
        for part in Part:
            count, seconds = self._forgotten.get(part, (0, 0.0))
            for outage in self._outages:
                if outage.part is part:
                    count += 1
                    seconds += outage.seconds(at)
            if count:
                yield PartTotal(part=part, outages=count, seconds=round(seconds, 3))

    def _span(self, outage: _Outage, at: float) -> Span:
        ended = at if outage.ended is None else outage.ended
        return Span(outage.began - self.started, ended - self.started, outage.part)

    def _frozen(self, outage: _Outage, at: float) -> Outage:
        return Outage(
            number=outage.number,
            began=self._clock(outage.began),
            ended=None if outage.ended is None else self._clock(outage.ended),
            seconds=round(outage.seconds(at), 3),
            parts=tuple(
                Evidence(
                    part=part,
                    first=self._clock(seen.first),
                    last=self._clock(seen.last),
                    times=seen.times,
                    seen=seen.seen,
                    likely=seen.likely,
                )
                for part, seen in outage.parts.items()
            ),
            missed=outage.outcomes[Outcome.MISSED],
            lost=outage.outcomes[Outcome.LOST_IN_OUTAGE],
            late=outage.outcomes[Outcome.LATE],
            not_written=outage.outcomes[Outcome.NOT_WRITTEN],
            attempts=outage.attempts,
        )
