"""What a watch tells while it runs, and at its end: frozen models, each one line of JSON (docs/doctor.md)."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field

from settings import ApiRole


class Part(StrEnum):
    """What was seen down, the one to look at first before those that fail along with it.

    A gateway that is gone hides Realtime behind it, and a database that is gone takes subscriptions with it.
    """

    DATABASE = "database"
    """It cannot be reached, or refuses the insert."""
    GATEWAY = "gateway"
    """It does not answer, or refuses the key."""
    REALTIME = "realtime"
    """The gateway answers 5xx for it or hangs on it, or it refuses the websocket."""
    SUBSCRIPTION = "subscription"
    """The connection broke, the channel was closed, or the server told of an error; and nothing worse was seen."""
    SILENCE = "silence"
    """The subscription is live, nothing comes, and nothing else was seen down: without an explanation."""


class Outcome(StrEnum):
    """What became of one row."""

    RECEIVED = "received"
    LATE = "late"
    """Its event came after the patience, before the limit."""
    LOST = "lost"
    """Committed while the subscription was live and all was well, and no event came before the limit."""
    LOST_IN_OUTAGE = "lost in outage"
    """As lost, but around an outage: from patience before it was noticed until SETTLING_SECONDS after its end."""
    MISSED = "missed"
    """Committed while there was no live subscription."""
    NOT_WRITTEN = "not written"
    """The database could not be reached, refused the row, or broke its commit off."""
    UNDECIDED = "undecided"
    """Its event was no longer waited for, because the watch was ended at once."""


class State(StrEnum):
    """Whether events come through, which nothing but an event proves."""

    STARTING = "starting"
    UP = "up"
    DOWN = "down"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Evidence(Frozen):
    """A part that was seen down: first, last and how often, and what was seen at first."""

    part: Part
    first: datetime
    last: datetime
    times: int
    seen: str
    likely: str | None = None


class Outage(Frozen):
    """From the first thing seen down until an event came through again; ``ended`` is null while it lasts.

    Number 0 is the start: from the first attempt to the first event. ``attempts`` are those to subscribe that failed.
    """

    number: int
    began: datetime
    ended: datetime | None
    seconds: float
    parts: tuple[Evidence, ...]
    missed: int
    lost: int
    late: int
    not_written: int
    attempts: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def part(self) -> Part | None:
        """The part to look at first, None when nothing was seen down."""
        seen = {evidence.part for evidence in self.parts}
        return next((part for part in Part if part in seen), None)


class Record(Frozen):
    """One line: ``type`` says which, ``at`` when it was known, in UTC."""

    at: datetime


class Started(Record):
    """What is watched, as soon as the table is chosen."""

    type: Literal["started"] = "started"
    table: str
    subscriber: ApiRole
    writer: ApiRole
    every_seconds: float
    patience_seconds: float
    limit_seconds: float
    notes: tuple[str, ...]


class Round(Record):
    """What became of one row, once it is known. Latency from just before COMMIT to the event's arrival.

    ``differences`` are phrases for what the event shows that is not in the row. ``outage`` is the number of the
    outage that explains a row that was not received.
    """

    type: Literal["round"] = "round"
    number: int
    began: datetime
    outcome: Outcome
    latency_ms: float | None = None
    differences: tuple[str, ...] = ()
    outage: int | None = None


class Duplicate(Record):
    """The event of a round came once more."""

    type: Literal["duplicate"] = "duplicate"
    number: int


class Subscribed(Record):
    """The server said "Subscribed to PostgreSQL", so long after the attempt began. Events are yet to prove it."""

    type: Literal["subscribed"] = "subscribed"
    number: int
    after_ms: float


class Diagnosis(Record):
    """What Postgres says is likely the reason why nothing, or nothing readable, comes."""

    type: Literal["diagnosis"] = "diagnosis"
    likely: str


class StateChanged(Record):
    """Events come through, or no longer do. With ``down`` the outage, once more for each part seen down; with ``up``
    the outage that ended."""

    type: Literal["state"] = "state"
    state: State
    outage: Outage | None = None


class LatencySummary(Frozen):
    """Percentiles of every latency, milliseconds, to three digits."""

    min: float
    p50: float
    p95: float
    p99: float
    max: float


class PartTotal(Frozen):
    """The outages for which a part is the one to look at first."""

    part: Part
    outages: int
    seconds: float


class Summary(Record):
    """All of a watch. ``uptime`` is the share of the time since the first event in which there was no outage.

    ``outages`` are the last of them, ``outage_count`` counts all. ``left_behind`` are statements that remove rows
    which the watch could not remove. ``unexplained`` says in words why it is not ``ok``.
    """

    type: Literal["summary"] = "summary"
    table: str | None
    state: State
    began: datetime
    seconds: float
    uptime: float | None
    rounds: int
    received: int
    late: int
    lost: int
    lost_in_outages: int
    missed: int
    not_written: int
    undecided: int
    awaited: int
    duplicated: int
    different: int
    latency_ms: LatencySummary | None
    subscriptions: int
    reconnects: int
    start: Outage
    outage_count: int
    parts: tuple[PartTotal, ...]
    outages: tuple[Outage, ...]
    left_behind: tuple[str, ...] = ()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def unexplained(self) -> tuple[str, ...]:
        """Everything that no outage accounts for, one phrase each."""
        silent = sum(total.outages for total in self.parts if total.part is Part.SILENCE)
        found = {
            f"{self.lost} lost outside of outages": self.lost,
            f"{self.duplicated} duplicated": self.duplicated,
            f"{self.different} different from the row written": self.different,
            f"{silent} times silence on a live subscription": silent,
            f"{len(self.left_behind)} rows left behind": len(self.left_behind),
            "no event ever came": self.state is State.STARTING,
            "down at the end": self.state is State.DOWN,
        }
        return tuple(words for words, applies in found.items() if applies)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        """Whether events came, still come, and nothing is unexplained."""
        return not self.unexplained
