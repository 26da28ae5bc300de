"""What a load test found, typed and as JSON."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from hdrh.histogram import HdrHistogram
from pydantic import BaseModel, ConfigDict, computed_field

from settings import ApiRole

DELIVERED = 0
NOT_ALL_DELIVERED = 1


class ErrorKind(StrEnum):
    """What went wrong, in the order of a subscriber's life; the writer's errors last."""

    UNREACHABLE = "unreachable"
    HANDSHAKE_REFUSED = "handshake refused"
    JOIN_REFUSED = "join refused"
    RATE_LIMITED = "rate limited"
    NEVER_LIVE = "never live"
    NO_SLOT = "no replication slot"
    EVENT_WITHOUT_COLUMNS = "event without columns"
    UNREADABLE_MESSAGE = "unreadable message"
    CHANNEL_CLOSED = "channel closed"
    SOCKET_CLOSED = "socket closed"
    HEARTBEAT_UNANSWERED = "heartbeat unanswered"
    INSERT_FAILED = "insert failed"
    ROWS_LEFT_BEHIND = "rows left behind"


class Result(BaseModel):
    """Part of a load test's result."""

    model_config = ConfigDict(frozen=True)


class Errors(Result):
    """How often one error was seen. ``message`` is the server's own; ``first_after_s`` counts from the start."""

    kind: ErrorKind
    message: str
    count: int
    first_after_s: float


class Latency(Result):
    """From just before an insert's COMMIT to its event's arrival at a subscriber, milliseconds, over all events."""

    min: float
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float


class Usage(Result):
    """What a container, or the load process itself, used while rows were inserted.

    CPU in percent of one core; memory in MiB without what the kernel can drop (the inactive file cache).
    ``memory_mib_start`` is from before the first subscriber.
    """

    name: str
    cpu_percent_mean: float
    cpu_percent_max: float
    memory_mib_start: float
    memory_mib_mean: float
    memory_mib_max: float


class Sample(Result):
    """One moment of the run, about a second after the one before. Latencies are of the events since then."""

    after_s: float
    live: int
    inserted: int
    delivered: int
    p50_ms: float | None
    p99_ms: float | None
    cpu_percent: dict[str, float]
    memory_mib: dict[str, float]


class LoadResult(Result):
    """What a load test found. Everything counted is counted exactly; percentiles are exact to three digits."""

    started: datetime
    stack: str | None
    url: str
    direct: bool
    reconnect: bool = False
    table: str
    subscriber: ApiRole
    writer: ApiRole
    clients: int
    rate: float
    seconds: float
    synchronous_commit: str

    live: int = 0
    first_live_after_s: float | None = None
    all_live_after_s: float | None = None
    live_at_end: int = 0

    inserted: int = 0
    insert_seconds: float = 0.0
    expected: int = 0
    delivered: int = 0
    delivered_by_subscriber: tuple[int, ...] = ()
    lost: int = 0
    lost_everywhere: int = 0
    lost_in_part: int = 0
    duplicated: int = 0
    strange: int = 0
    reconnects: int = 0
    outage_s_median: float | None = None
    outage_s_max: float | None = None

    latency_ms: Latency | None = None
    errors: tuple[Errors, ...] = ()
    usage: tuple[Usage, ...] = ()
    usage_skipped: str | None = None
    notes: tuple[str, ...] = ()
    timeline: tuple[Sample, ...] = ()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ok(self) -> bool:
        """Whether every client was live, and every insert reached every one of them once, without an error."""
        complete = self.live == self.clients and self.inserted > 0
        return complete and not (self.lost or self.duplicated or self.errors)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def exit_status(self) -> int:
        """0 all delivered, 1 not."""
        return DELIVERED if self.ok else NOT_ALL_DELIVERED

    def count(self, kind: ErrorKind) -> int:
        """How many errors of a kind there were."""
        return sum(errors.count for errors in self.errors if errors.kind is kind)


def latency(histogram: HdrHistogram) -> Latency | None:
    """The percentiles of a histogram of microseconds; None of an empty one."""
    if not histogram.get_total_count():
        return None

    def at(percentile: float) -> float:
        return float(round(histogram.get_value_at_percentile(percentile) / 1000, 2))

    return Latency(
        min=round(histogram.get_min_value() / 1000, 2),
        mean=round(histogram.get_mean_value() / 1000, 2),
        p50=at(50),
        p90=at(90),
        p95=at(95),
        p99=at(99),
        p999=at(99.9),
        max=round(histogram.get_max_value() / 1000, 2),
    )
