"""Tries, on a Postgres of its own, who may see and do what with the declared tables; tells it as a table.

Exits 0, or 1 when a case failed, or 2 when nothing could be tried: a fault in the config, a file or the database.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from plan import program
from plan.program import PlanError, Program
from providers.connection import Cursor, DatabaseError
from rehearsal import report
from rehearsal.advice import warnings
from rehearsal.applier import UnknownResourceError, is_database_object
from rehearsal.case_trials import try_cases
from rehearsal.cases import CaseFileError, read_cases
from rehearsal.matrix import try_tables
from rehearsal.report import Rehearsal
from rehearsal.server import EmbeddedServerError, embedded_postgres
from rehearsal.stage import DSN_VARIABLE, StageError, chosen_dsn, staged, staged_in_transaction
from rehearsal.trials import UnusableTableError

CASES = Path("tests/access.yaml")
"""In the project; read when it is there."""
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
WIDTH = 160
"""Columns of a table that does not go to a terminal."""
FAULTS = (
    CaseFileError, DatabaseError, EmbeddedServerError, PlanError, StageError, UnknownResourceError, UnusableTableError,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rehearsal", description=__doc__)
    parser.add_argument("--stack", default="dev", help="the stack whose Pulumi.<stack>.yaml is read (%(default)s)")
    parser.add_argument("--cases", type=Path, help=f"file of cases ({CASES}, if it is there)")
    parser.add_argument(
        "--dsn",
        help="rehearse on this database instead, in a transaction that is rolled back and locks its tables meanwhile: "
        f"use a copy. Without its password (PGPASSWORD or ~/.pgpass has it); {DSN_VARIABLE} may hold all of it",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print Markdown")
    options = parser.parse_args(arguments)
    # As after Ctrl-C: the server is stopped in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        dsn = chosen_dsn(options.dsn, os.environ)
        rehearsal = rehearse(options.stack, cases=options.cases, dsn=dsn)
    except FAULTS as fault:
        print(fault, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    if options.json:
        print(json.dumps(report.document(rehearsal), indent=2))
    elif options.markdown:
        print(report.markdown(rehearsal), end="")
    else:
        report.print_rehearsal(rehearsal, Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH))
    return 1 if rehearsal.failed else 0


def rehearse(
    stack: str, *, cases: Path | None = None, dsn: str | None = None, project: Path = program.PROJECT
) -> Rehearsal:
    """Try a stack's tables and the cases of a file. Raises one of FAULTS."""
    path = cases if cases is not None else project / CASES
    written = read_cases(path) if cases is not None or path.exists() else []
    ours = [case for case in written if not case.stacks or stack in case.stacks]
    declared = program.run(program.stack_config(stack, project))
    with _stage(declared, dsn) as cursor:
        publication = _publication(declared)
        matrix = try_tables(cursor, _tables(declared), publication)
        return Rehearsal(
            stack=stack,
            matrix=matrix,
            warnings=warnings(matrix),
            verdicts=try_cases(cursor, ours, publication, path),
            skipped=len(written) - len(ours),
            not_made=[one for one in declared.resources if one.custom and not is_database_object(one)],
        )


@contextlib.contextmanager
def _stage(declared: Program, dsn: str | None) -> Iterator[Cursor]:
    if dsn is not None:
        with staged_in_transaction(declared, dsn) as cursor:
            yield cursor
    else:
        with embedded_postgres() as conninfo, staged(declared, conninfo) as cursor:
            yield cursor


def _tables(declared: Program) -> list[tuple[str, str]]:
    return [
        (resource.values["schema"], resource.values["table"])
        for resource in declared.resources
        if resource.kind == "TableSecurity"
    ]


def _publication(declared: Program) -> str:
    names = [resource.values["name"] for resource in declared.resources if resource.kind == "Publication"]
    return str(names[0])


if __name__ == "__main__":
    sys.exit(main())
