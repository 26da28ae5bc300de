"""A watch as text for a person: live, line by line, and at its end."""

from __future__ import annotations

from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from doctor.watching.records import (
    Diagnosis,
    Duplicate,
    Evidence,
    Outage,
    Outcome,
    Part,
    Record,
    Round,
    Started,
    State,
    StateChanged,
    Subscribed,
    Summary,
)

STYLES = {State.STARTING: "yellow", State.UP: "bold green", State.DOWN: "bold red"}
OUTAGES_SHOWN = 8
LOSSES = (Outcome.LOST, Outcome.LATE)
WORDS = {
    Part.DATABASE: "the database",
    Part.GATEWAY: "the gateway",
    Part.REALTIME: "Realtime",
    Part.SUBSCRIPTION: "the subscription",
    Part.SILENCE: "silence, nothing seen down",
}


def live(summary: Summary, *, subscribed: bool) -> RenderableType:
    """All of it at this moment. "Live" is the server's word for the subscription, and no promise of an event."""
    title = Text.assemble(
        (f" {summary.state} ", f"reverse {STYLES[summary.state]}"),
        f"  {summary.table or 'no table yet'}  ",
        ("Live" if subscribed else "not live", "green" if subscribed else "red"),
        f"  for {duration(summary.seconds)}",
        f"  uptime {_percent(summary.uptime)}",
    )
    counts = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(4):
        counts.add_column(justify="right", style="bold")
        counts.add_column(style="dim")
    pairs = [
        (summary.rounds, "rounds"),
        (summary.received, "received"),
        (summary.late, "late"),
        (summary.lost, "lost"),
        (summary.missed, "missed while disconnected"),
        (summary.lost_in_outages, "lost in outages"),
        (summary.not_written, "not written"),
        (summary.duplicated, "duplicated"),
        (summary.outage_count, "outages"),
        (summary.reconnects, "reconnects"),
        (summary.awaited, "awaited"),
        (summary.different, "different"),
    ]
    for start in range(0, len(pairs), 4):
        counts.add_row(*(cell for number, word in pairs[start : start + 4] for cell in (str(number), word)))
    outages = [Text(_outage(outage)) for outage in summary.outages[-OUTAGES_SHOWN:]]
    return Group(title, Text(_latency(summary)), counts, *outages, Text("Ctrl-C ends it", style="dim"))


def line(record: Record) -> str | None:
    """A record in one line, None for what is no news: a row that came in time, or that an outage explains."""
    text: str | None = None
    match record:
        case Started():
            notes = "".join(f"; {note}" for note in record.notes)
            text = (
                f"{record.table}: {record.writer} inserts every {record.every_seconds:g} s, "
                f"{record.subscriber} subscribes{notes}"
            )
        case Subscribed():
            text = f'"Subscribed to PostgreSQL" after {record.after_ms / 1000:.1f} s'
        case StateChanged(state=State.UP, outage=outage) if outage is not None:
            text = f"up: events come through; {_outage(outage)}"
        case StateChanged(outage=outage) if outage is not None:
            latest = max(outage.parts, key=lambda evidence: evidence.last)
            text = f"{record.state}: {latest.part}: {_seen(latest)}"
        case Round(outcome=outcome) if outcome in LOSSES:
            latency = f" after {record.latency_ms:.0f} ms" if record.latency_ms is not None else ""
            text = f"{outcome}: round {record.number} of {_clock(record.began)}{latency}"
        case Round(differences=found) if found:
            text = f"round {record.number} differs from the row written: {', '.join(found)}"
        case Duplicate():
            text = f"duplicate: round {record.number} came once more"
        case Diagnosis():
            text = f"likely: {record.likely}"
    return None if text is None else f"{_clock(record.at)}  {text}"


def report(summary: Summary) -> list[str]:
    """The summary in lines."""
    started = summary.start.seconds if summary.start.ended else None
    lines = [
        f"{summary.table or 'no table'}: watched for {duration(summary.seconds)}, "
        + (f"first event after {started:.1f} s, " if started is not None else "no event ever came, ")
        + f"uptime {_percent(summary.uptime)}",
        f"{summary.rounds} rounds: {summary.received} received, {summary.late} late, {summary.lost} lost, "
        f"{summary.duplicated} duplicated; {summary.missed} missed while disconnected, "
        f"{summary.lost_in_outages} lost in outages, {summary.not_written} not written"
        + (f", {summary.undecided} undecided" if summary.undecided else ""),
        _latency(summary),
        f"{summary.outage_count} outages, {summary.reconnects} reconnects",
    ]
    if len(summary.outages) < summary.outage_count:
        lines.append(f"  the last {len(summary.outages)} of them:")
    lines += [f"  {_outage(outage)}" for outage in summary.outages]
    if summary.state is State.STARTING:
        lines += [f"  {evidence.part}: {_seen(evidence)}" for evidence in summary.start.parts]
    lines += [f"remove this row by hand: {statement}" for statement in summary.left_behind]
    lines.append("well: nothing unexplained" if summary.ok else f"not well: {', '.join(summary.unexplained)}")
    return lines


def duration(seconds: float) -> str:
    """A length of time as a person writes it."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {left:02} s" if minutes else f"{seconds:.1f} s"


def _seen(evidence: Evidence) -> str:
    return evidence.seen + (f"; likely: {evidence.likely}" if evidence.likely else "")


def _outage(outage: Outage) -> str:
    part = WORDS[outage.part] if outage.part else "nothing seen down"
    also = [str(evidence.part) for evidence in outage.parts if evidence.part is not outage.part]
    name = f"outage {outage.number}" if outage.number else "start"
    until = f"{_clock(outage.began)}–{_clock(outage.ended) if outage.ended else 'now'}"
    counts = [
        f"{count} {word}"
        for count, word in (
            (outage.missed, "missed"),
            (outage.lost, "lost"),
            (outage.late, "late"),
            (outage.not_written, "not written"),
        )
        if count
    ]
    return (
        f"{name}: {part}"
        + (f" (also {', '.join(also)})" if also else "")
        + f", {until}, {duration(outage.seconds)}"
        + (f": {', '.join(counts)}" if counts else "")
    )


def _latency(summary: Summary) -> str:
    found = summary.latency_ms
    if found is None:
        return "latency: none yet"
    return "latency, ms: " + ", ".join(
        f"{name} {getattr(found, name):.0f}" for name in ("min", "p50", "p95", "p99", "max")
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:.2f} %"


def _clock(moment: datetime) -> str:
    return f"{moment.astimezone():%H:%M:%S}"
