"""The whole path of a change, by making one."""

from __future__ import annotations

from doctor import interruption
from doctor.checks import gateway, postgres, tables
from doctor.checks.finding import Finding, check, failed, ok, skipped
from doctor.checks.setup import Setup
from doctor.probe import probe

COUNT = 3
SECONDS = 15.0


@check("an insert reaches a subscriber", after=(tables.published, postgres.wal2json, gateway.websocket))
def arrives(setup: Setup) -> Finding:
    """The only check that writes: rows that it removes again."""
    if setup.outputs is None:
        return skipped("the probe needs the outputs of a stack: its tables and both keys")
    result = interruption.run(probe(setup.outputs, count=COUNT, timeout=SECONDS))
    if result.failures:
        failure = result.failures[0]
        seen = f"{failure.cause}: waited for {failure.waited_for}; got {failure.seen}"
        return failed("probe-failed", seen, likely=failure.likely)
    latencies = ", ".join(f"{name} {value:.0f}" for name, value in (result.percentiles_ms or {}).items())
    return ok(f"{result.received} of {result.requested} inserts into {result.table} came; latency, ms: {latencies}")
