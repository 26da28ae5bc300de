"""`python -m bench`: measures what the stack costs against doing without it."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import first_event, preview, tables
from bench.measure import BenchError
from bench.projects import machine
from bench.report import Result, write
from deploy.errors import DeployError

BENCHMARKS: dict[str, tuple[Callable[[Path, int], Result], int]] = {
    "first-event": (first_event.run, first_event.ROUNDS),
    "preview": (preview.run, preview.ROUNDS),
    "tables": (tables.run, tables.ROUNDS),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    top.add_argument("benchmark", nargs="?", choices=BENCHMARKS, help="default: all of them")
    top.add_argument("--rounds", type=int, help="default: " + ", ".join(f"{n} {r}" for n, (_, r) in BENCHMARKS.items()))
    top.add_argument("--markdown", type=Path, metavar="FILE", help="a document with a place for the results")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and keep the results; 1 when something could not be measured."""
    chosen = parser().parse_args(argv)
    try:
        for name in [chosen.benchmark] if chosen.benchmark else BENCHMARKS:
            measure, rounds = BENCHMARKS[name]
            with tempfile.TemporaryDirectory(prefix="bench-") as work:
                result = measure(Path(work), chosen.rounds or rounds)
            print(f"{machine()}\n\n{result.markdown()}", flush=True)
            if chosen.markdown:
                write(chosen.markdown, result)
    except (BenchError, DeployError) as failed:
        print(failed, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
