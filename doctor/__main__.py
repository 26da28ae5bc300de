"""`python -m doctor`: looks at a running stack. Exit 0 when all is well, 1 when it is not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from doctor import examine, interruption, load_command, metrics, outputs, probe, watch
from doctor.console import serve as console
from settings import DEVELOPMENT_STACK

FAILED = 1


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m doctor", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    probing = commands.add_parser(
        "probe",
        help="insert rows and receive their events through the gateway",
        description="Inserts rows into a declared table as role anon and receives their events through the gateway "
        "with the anon key, as a browser would. Removes the rows again. Exit 0 only if every event came.",
    )
    which = probing.add_mutually_exclusive_group()
    which.add_argument("--stack", default=DEVELOPMENT_STACK, help="stack whose outputs to use (default: %(default)s)")
    which.add_argument(
        "--outputs", metavar="FILE", help="`pulumi stack output --json --show-secrets` in a file; - for standard input"
    )
    probing.add_argument("--count", type=_count, default=probe.DEFAULT_COUNT, help="rows (default: %(default)s)")
    probing.add_argument(
        "--timeout",
        type=_seconds,
        default=probe.DEFAULT_TIMEOUT_SECONDS,
        metavar="S",
        help="seconds to wait for the subscription; each event has at least a third of it (default: %(default)g)",
    )
    probing.add_argument("--json", action="store_true", help="print the result as JSON")
    probing.set_defaults(run=_probe)
    examine.add_arguments(commands)
    metrics.add_arguments(commands)
    watch.add_arguments(commands)
    load_command.add_arguments(commands)
    console.add_arguments(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, "examine")
    given = arguments().parse_args(words)
    try:
        status: int = given.run(given)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # what could not be removed was said already
        return interruption.INTERRUPTED
    return status


def _probe(given: argparse.Namespace) -> int:
    try:
        found = outputs.read_file(given.outputs) if given.outputs else outputs.read_stack(given.stack)
    except outputs.OutputsError as unreadable:
        print(unreadable, file=sys.stderr)
        return FAILED
    result = interruption.run(probe.probe(found, count=given.count, timeout=given.timeout))
    if given.json:
        print(result.model_dump_json(indent=2))
    else:
        for line in report(result):
            print(line)
    for failure in result.failures:
        print(failure, file=sys.stderr)
    return 0 if result.ok else FAILED


def report(result: probe.ProbeResult) -> list[str]:
    """What a probe saw, for a person; its failures apart."""
    lines = [f"note: {note}" for note in result.notes]
    if result.subscribed_after_ms is not None:
        lines.append(
            f"{result.table}: {result.subscriber} subscribed after {result.subscribed_after_ms / 1000:.1f} s, "
            f"{result.writer} inserts"
        )
    if result.latencies_ms:
        lines.append("latency, ms: " + " ".join(f"{latency:.0f}" for latency in result.latencies_ms))
    summary = f"{result.received} of {result.requested} events came"
    if result.lost:
        summary += f", {result.lost} lost"
    if result.percentiles_ms:
        summary += ": " + ", ".join(f"{name} {value:.0f}" for name, value in result.percentiles_ms.items()) + " ms"
    return [*lines, summary]


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 10_000:  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 10000")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 1 <= seconds <= 3600:  # noqa: PLR2004 - also refuses nan
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 3600 seconds")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
