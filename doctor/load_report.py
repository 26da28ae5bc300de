"""A load test's result for a person: as text, and as a plot."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from doctor.load_result import LoadResult

LATENCIES = ("min", "p50", "p90", "p95", "p99", "p999", "max")


def lines(result: LoadResult) -> Iterator[str]:
    """What was done and what came of it."""
    way = "directly" if result.direct else "through the gateway"
    yield f"{result.url}, {result.table}: {result.subscriber} subscribes {way}, {result.writer} inserts"
    when = f" after {result.all_live_after_s:.1f} s" if result.all_live_after_s is not None else ""
    gone = f", {result.live - result.live_at_end} gone at the end" if result.live_at_end < result.live else ""
    yield f"clients   {result.live} of {result.clients} live{when}{gone}"
    if result.insert_seconds:
        rate = result.inserted / result.insert_seconds
        yield f"inserts   {result.inserted} in {result.insert_seconds:.1f} s, {rate:.1f} a second"
        yield "events    " + _events(result)
    if result.lost:
        yield f"lost      {result.lost_everywhere} inserts to everybody, {result.lost_in_part} to some"
    if result.reconnects:
        yield (
            f"outages   {result.reconnects} × a subscriber came back, after {result.outage_s_median:.1f} s (median), "
            f"{result.outage_s_max:.1f} s at most"
        )
    if result.latency_ms is not None:
        found = result.latency_ms.model_dump()
        yield "latency   " + "  ".join(f"{name} {found[name]:.0f}" for name in LATENCIES) + "  ms"
    for errors in result.errors:
        yield f"error     {errors.count} × {errors.kind}: {errors.message} (first after {errors.first_after_s:.0f} s)"
    if result.usage:
        width = max(len(used.name) for used in result.usage)
        yield f"{'':{width}}  CPU % of a core   memory, MiB"
        yield f"{'':{width}}    mean      max    start    mean     max"
        for used in result.usage:
            yield (
                f"{used.name:{width}}  {used.cpu_percent_mean:6.1f}   {used.cpu_percent_max:6.1f}   "
                f"{used.memory_mib_start:6.0f}  {used.memory_mib_mean:6.0f}  {used.memory_mib_max:6.0f}"
            )
    if result.usage_skipped is not None:
        yield f"containers: skipped, {result.usage_skipped}"
    for note in result.notes:
        yield f"note: {note}"


def _events(result: LoadResult) -> str:
    text = f"{result.delivered} of {result.expected} delivered, {result.lost} lost, {result.duplicated} duplicated"
    each = result.delivered_by_subscriber
    if each:
        text += f"; a subscriber had {min(each)} to {max(each)}, median {statistics.median_low(each)}"
    if result.strange:
        text += f"; {result.strange} of rows by others"
    return text


def plot(result: LoadResult, path: Path) -> None:
    """Draws the run over time into a PNG: events a second, latency, CPU, memory. Raises OSError.

    matplotlib is imported here, since it takes a second that nothing else of the doctor should wait for.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    samples = result.timeline
    times = [sample.after_s for sample in samples]
    figure = Figure(figsize=(10, 11), layout="constrained")
    FigureCanvasAgg(figure)
    events, latency, cpu, memory = figure.subplots(4, 1, sharex=True)
    figure.suptitle(
        f"{result.clients} subscribers, {result.rate:g} inserts/s for {result.seconds:g} s, "
        f"{'direct' if result.direct else 'through the gateway'}: {result.delivered} of {result.expected} delivered"
    )
    steps = [
        (late.delivered - early.delivered) / max(0.001, late.after_s - early.after_s)
        for early, late in pairwise(samples)
    ]
    events.plot(times[1:], steps, label="events delivered a second")
    events.plot(times, [sample.live for sample in samples], label="subscribers live", linestyle="--")
    measured = [sample for sample in samples if sample.p50_ms is not None]
    for name, latencies in (("p50", [s.p50_ms for s in measured]), ("p99", [s.p99_ms for s in measured])):
        latency.plot([sample.after_s for sample in measured], [value or 0.0 for value in latencies], ".-", label=name)
    for name in dict.fromkeys(name for sample in samples for name in sample.memory_mib):
        for axes, values in ((cpu, [s.cpu_percent for s in samples]), (memory, [s.memory_mib for s in samples])):
            if name == "this machine" and axes is memory:
                continue
            known = [(at, found[name]) for at, found in zip(times, values, strict=True) if name in found]
            axes.plot([at for at, _ in known], [value for _, value in known], label=name)
    latency.set_ylabel("latency, ms")
    cpu.set_ylabel("CPU, % of a core")
    memory.set_ylabel("memory, MiB")
    memory.set_xlabel("seconds")
    for axes in (events, latency, cpu, memory):
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
        if axes.get_lines():
            axes.legend(loc="upper left", fontsize="small")
    figure.savefig(path, format="png", dpi=100)
