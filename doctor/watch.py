"""The subcommand ``watch`` of ``python -m doctor``."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError
from rich.console import Console
from rich.live import Live

from doctor import outputs
from doctor.failures import ProbeFailedError
from doctor.watching import view
from doctor.watching.records import Record, Summary
from doctor.watching.watcher import DEFAULT_EVERY_SECONDS, DEFAULT_PATIENCE_SECONDS, Options, Watch
from settings import DEVELOPMENT_STACK

NOT_WELL = 1
COULD_NOT_LOOK = 3
VIEW_SECONDS = 0.5
UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


class CannotRecordError(Exception):
    """The log or the plot cannot be written; the message has the cure."""


def add_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand. It sets ``run`` in the parsed arguments."""
    watching = subparsers.add_parser(
        "watch",
        help="insert rows and receive their events for as long as you like, through restarts",
        description="Inserts a row at an interval and receives its event through the gateway with the anon key, until "
        "Ctrl-C or SIGTERM (once: waits for the last events; twice: at once). Reports outages with the part that was "
        "down, and removes its rows. Exit 0 well, 1 something unexplained, 3 could not look.",
    )
    which = watching.add_mutually_exclusive_group()
    which.add_argument("--stack", default=DEVELOPMENT_STACK, help="stack whose outputs to use (default: %(default)s)")
    which.add_argument(
        "--outputs", metavar="FILE", help="`pulumi stack output --json --show-secrets` in a file; - for standard input"
    )
    watching.add_argument(
        "--every", type=float, default=DEFAULT_EVERY_SECONDS, metavar="S", help="seconds (default: %(default)g)"
    )
    watching.add_argument(
        "--for", type=seconds, dest="seconds", metavar="DURATION", help="as 90, 10m, 2h (default: until Ctrl-C)"
    )
    watching.add_argument(
        "--patience",
        type=float,
        default=DEFAULT_PATIENCE_SECONDS,
        metavar="S",
        help="an event is late after so many seconds, lost after three times as many (default: %(default)g)",
    )
    watching.add_argument("--log", type=Path, metavar="FILE.jsonl", help="append every record as a line of JSON")
    watching.add_argument("--plot", type=Path, metavar="FILE.png", help="write a plot at the end")
    how = watching.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print every record as a line of JSON (docs/doctor.md)")
    how.add_argument("--quiet", "-q", action="store_true", help="print the summary only")
    watching.set_defaults(run=run)


def seconds(text: str) -> float:
    """A duration in seconds: a number with s, m, h or d, or without."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip())
    if found is None or found[2] not in UNITS or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a duration; write 90, 90s, 10m, 2h or 1d")
    return float(found[1]) * UNITS[found[2]]


def run(given: argparse.Namespace) -> int:
    """Watches the stack in the arguments and reports; the exit status."""
    try:
        options = Options(every=given.every, patience=given.patience, seconds=given.seconds)
    except ValidationError as invalid:
        for error in invalid.errors(include_input=False, include_url=False):
            print(f"--{error['loc'][0]}: {error['msg'].lower()}", file=sys.stderr)
        return COULD_NOT_LOOK
    try:
        found = outputs.read_file(given.outputs) if given.outputs else outputs.read_stack(given.stack)
        with ExitStack() as stack:
            if given.plot is not None:
                _require_writable(given.plot)
            log = None if given.log is None else stack.enter_context(_opened(given.log))
            return asyncio.run(_run(found, options, given, log))
    except (outputs.OutputsError, ProbeFailedError, CannotRecordError) as unusable:
        print(unusable, file=sys.stderr)
    except BrokenPipeError:  # who read the records has gone; what is still buffered would fail at exit once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:  # before the watch began: later it is a signal that it handles
        print("interrupted", file=sys.stderr)
    return COULD_NOT_LOOK


async def _run(found: outputs.Outputs, options: Options, given: argparse.Namespace, log: TextIO | None) -> int:
    console = Console(highlight=False)
    seen: list[Callable[[Record], None]] = []
    with ExitStack() as stack:
        if log is not None:
            seen.append(_writer(log, str(given.log)))
        shown: Live | None = None
        if given.json:
            seen.append(_writer(sys.stdout, "standard output"))
        elif not given.quiet:
            shown = stack.enter_context(Live(console=console, auto_refresh=False)) if console.is_terminal else None
            seen.append(lambda record: _print(record, console))

        def tell(record: Record) -> None:
            for write in seen:
                write(record)

        watch = Watch(found, options, tell=tell)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, watch.stop)
        showing = None if shown is None else asyncio.ensure_future(_show(watch, shown))
        try:
            summary = await watch.run()
        finally:
            if showing is not None:
                showing.cancel()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
        if shown is not None:
            shown.update("", refresh=True)
    _finish(watch, summary, given)
    return 0 if summary.ok else NOT_WELL


def _finish(watch: Watch, summary: Summary, given: argparse.Namespace) -> None:
    if not given.json:
        for text in view.report(summary):
            print(text)
    if given.plot is None:
        return
    from doctor.watching.plot import plot  # noqa: PLC0415 - matplotlib takes half a second to import

    try:
        plot(watch.tally, summary, given.plot)
    except OSError as failed:
        raise _cannot(str(given.plot), failed) from None


async def _show(watch: Watch, shown: Live) -> None:
    while True:
        shown.update(view.live(watch.summary(), subscribed=watch.tally.live), refresh=True)
        await asyncio.sleep(VIEW_SECONDS)


def _print(record: Record, console: Console) -> None:
    text = view.line(record)
    if text is not None:
        console.print(text, soft_wrap=True, markup=False)


def _writer(file: TextIO, name: str) -> Callable[[Record], None]:
    """Writes records as lines of JSON, each at once: what was written before a crash is whole."""

    def write(record: Record) -> None:
        try:
            file.write(record.model_dump_json() + "\n")
            file.flush()
        except BrokenPipeError:
            raise
        except OSError as failed:
            raise _cannot(name, failed) from None

    return write


def _opened(path: Path) -> TextIO:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as failed:
        raise _cannot(str(path), failed) from None


def _require_writable(path: Path) -> None:
    """Found out before hours of watching, not after. Raises CannotRecordError."""
    if path.is_dir() or not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise CannotRecordError(f"{path} cannot be written; name a file in a folder that you may write to")


def _cannot(name: str, failed: OSError) -> CannotRecordError:
    return CannotRecordError(f"{name} cannot be written: {failed.strerror}; name another file, or make room")
