"""The subcommand ``load`` of ``python -m doctor``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from doctor import interruption, load_report, outputs
from doctor.examine import COULD_NOT_LOOK, stack_setup
from doctor.load import load
from doctor.load_limits import CannotLoadError
from settings import DEVELOPMENT_STACK


def add_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand. It sets ``run`` in the parsed arguments."""
    loading = subparsers.add_parser(
        "load",
        help="put a running stack under load: many subscribers, a steady rate of inserts",
        description="N subscribers through the gateway, R inserts a second into a declared table for S seconds: what "
        "was delivered, lost and duplicated, how soon, with which errors, and what it cost. The rows are removed "
        "again. Exit 0 all delivered, 1 something lost, duplicated or refused, 3 could not look.",
    )
    loading.add_argument("--clients", type=int, required=True, metavar="N", help="subscribers, 1 to 20000")
    loading.add_argument("--rate", type=float, required=True, metavar="R", help="inserts a second, 0.1 to 1000")
    loading.add_argument("--seconds", type=float, required=True, metavar="S", help="how long to insert, 1 to 3600")
    loading.add_argument("--stack", help=f"stack to put under load (default: {DEVELOPMENT_STACK})")
    loading.add_argument(
        "--outputs",
        metavar="FILE",
        help="its outputs as JSON in a file, - for standard input; --stack then says whose containers to look at",
    )
    loading.add_argument("--direct", action="store_true", help="to Realtime's own port, not through the gateway")
    loading.add_argument(
        "--reconnect", action="store_true", help="subscribers come back when cut off, as supabase-js does"
    )
    loading.add_argument("--json", action="store_true", help="print the result as JSON (docs/doctor.md)")
    loading.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the run over time")
    loading.add_argument(
        "--allow-remote",
        action="append",
        default=[],
        metavar="HOST",
        help="a host, other than this machine, that you may put under load and write into; otherwise it is refused",
    )
    loading.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Runs the load test in the arguments and reports; the exit status."""
    if given.plot is not None and not given.plot.absolute().parent.is_dir():
        print(f"--plot: there is no folder {given.plot.parent}; make it first", file=sys.stderr)
        return COULD_NOT_LOOK
    try:
        with stack_setup(given.stack, given.outputs, environ=os.environ) as setup:
            result = interruption.run(
                load(
                    setup,
                    clients=given.clients,
                    rate=given.rate,
                    seconds=given.seconds,
                    direct=given.direct,
                    reconnect=given.reconnect,
                    allow_remote=given.allow_remote,
                    progress=lambda line: print(line, file=sys.stderr, flush=True),
                )
            )
    except (outputs.OutputsError, CannotLoadError) as impossible:
        print(impossible, file=sys.stderr)
        return COULD_NOT_LOOK
    if given.json:
        print(result.model_dump_json(indent=2))
    else:
        for line in load_report.lines(result):
            print(line)
    if given.plot is not None:
        load_report.plot(result, given.plot)
    return result.exit_status
