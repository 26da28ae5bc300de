"""A watch as a picture: latencies over time, outages shaded, losses marked. Imports matplotlib, which takes a while."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, ScalarFormatter

from doctor.watching.records import Outcome, Part, Summary
from doctor.watching.tally import Tally
from doctor.watching.timeline import Bucket, Timeline
from doctor.watching.view import duration, report

INCHES = (12, 6)
DOTS_PER_INCH = 110
PERCENTILES = ((50.0, "p50", "#1f77b4"), (95.0, "p95", "#ff7f0e"), (100.0, "max", "#9e9e9e"))
SHADES = {
    Part.DATABASE: "#d62728",
    Part.GATEWAY: "#9467bd",
    Part.REALTIME: "#e377c2",
    Part.SUBSCRIPTION: "#8c564b",
    Part.SILENCE: "#000000",
}
MARKS: tuple[tuple[str, str, str, Callable[[Bucket], int]], ...] = (
    ("lost", "x", "#d62728", lambda bucket: bucket.outcomes.get(Outcome.LOST, 0)),
    ("lost in outage", "v", "#d62728", lambda bucket: bucket.outcomes.get(Outcome.LOST_IN_OUTAGE, 0)),
    ("missed", "|", "#555555", lambda bucket: bucket.outcomes.get(Outcome.MISSED, 0)),
    ("late", "^", "#bcbd22", lambda bucket: bucket.outcomes.get(Outcome.LATE, 0)),
    ("duplicated", "D", "#17becf", lambda bucket: bucket.duplicates),
)


def plot(tally: Tally, summary: Summary, path: Path) -> None:
    """Writes a PNG. Raises OSError."""
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _latencies(upper, tally.timeline)
    _marks(lower, tally.timeline)
    labelled: set[Part] = set()
    for span in tally.spans(tally.started + summary.seconds):
        if span.part is None:
            continue
        label = None if span.part in labelled else f"outage: {span.part}"
        labelled.add(span.part)
        upper.axvspan(span.began, span.ended, color=SHADES[span.part], alpha=0.25, linewidth=0, label=label)
        lower.axvspan(span.began, span.ended, color=SHADES[span.part], alpha=0.25, linewidth=0)
    upper.set_title(
        f"{summary.table} from {summary.began:%Y-%m-%d %H:%M:%S} UTC for {duration(summary.seconds)}\n"
        + "; ".join(report(summary)[1:2]),
        fontsize="medium",
    )
    upper.legend(loc="upper right", fontsize="small")
    lower.set_xlim(0, max(summary.seconds, tally.timeline.width))
    lower.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: str(timedelta(seconds=round(seconds)))))
    lower.set_xlabel(f"time since the start; one point is {duration(tally.timeline.width)}")
    figure.savefig(path, format="png")


def _latencies(axes: Axes, timeline: Timeline) -> None:
    percents = [percent for percent, _, _ in PERCENTILES]
    nothing = [math.nan for _ in percents]  # so that no line is drawn across an outage
    moments = [moment for moment, _ in timeline]
    values = [bucket.latencies.percentiles(percents) if bucket.latencies.count else nothing for _, bucket in timeline]
    for place, (_, name, colour) in enumerate(PERCENTILES):
        axes.plot(moments, [row[place] for row in values], ".-", color=colour, label=name, linewidth=1, markersize=3)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.tick_params(which="minor", labelsize="x-small")
    axes.set_ylabel("commit to event, ms")
    axes.grid(alpha=0.3)


def _marks(axes: Axes, timeline: Timeline) -> None:
    """A row of marks for each kind that there was, the number of rows beside where it is more than one."""
    rows = [(name, mark, colour, count) for name, mark, colour, count in MARKS]
    for height, (_, mark, colour, count) in enumerate(rows):
        found = [(moment, count(bucket)) for moment, bucket in timeline if count(bucket)]
        axes.plot([moment for moment, _ in found], [height] * len(found), mark, color=colour, markersize=6)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize="small")
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.grid(alpha=0.3)
