"""A database with everything that the program declares, in a transaction that is rolled back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg.rows import DictRow, dict_row

from plan.program import Program
from providers.connection import Cursor, connected_through
from rehearsal.applier import apply, connected_to
from rehearsal.trials import FUNCTION

AUTH = Path(__file__).parent.parent / "sql" / "auth.sql"
"""What the stack's own Postgres gets at its first start; a server of somebody else has its own."""


class StageError(Exception):
    """Why the declared objects cannot be made on this server, and what to do about it."""


@contextlib.contextmanager
def staged(program: Program, conninfo: str) -> Iterator[Cursor]:
    """The declared objects on an empty server of one's own, and a cursor in a transaction for the trials.

    Everything is made as `up` makes it, migrations by yoyo included. Raises StageError.
    """
    with _opened(conninfo) as opened:
        opened.execute(AUTH.read_bytes())
    with connected_to(conninfo):
        _apply(program, in_transaction=False)
    with _opened(conninfo) as opened, opened.transaction(force_rollback=True), opened.cursor() as cursor:
        cursor.execute(FUNCTION.read_bytes())
        yield cursor


@contextlib.contextmanager
def staged_in_transaction(program: Program, dsn: str) -> Iterator[Cursor]:
    """The declared objects on somebody's server, in one transaction with the trials: it is left as it was.

    Its tables are locked as long. Raises StageError, also when the user is no superuser: rows have to be placed past
    the policies and roles assumed.
    """
    with _opened(dsn) as opened, opened.transaction(force_rollback=True), opened.cursor() as cursor:
        cursor.execute("SELECT rolname, rolsuper FROM pg_roles WHERE rolname = current_user")
        user = cursor.fetchone()
        if user is None or not user["rolsuper"]:
            raise StageError(
                f"{user and user['rolname']} is no superuser; give --dsn a user that is, like supabase_admin"
            )
        with connected_through(opened):
            _apply(program, in_transaction=True)
        cursor.execute(FUNCTION.read_bytes())
        yield cursor


def _apply(program: Program, *, in_transaction: bool) -> None:
    try:
        apply(program.resources, program.config.project, in_transaction=in_transaction)
    except psycopg.Error as refused:
        raise StageError(f"Postgres refuses what is declared: {str(refused).strip()}") from refused


@contextlib.contextmanager
def _opened(conninfo: str) -> Iterator[psycopg.Connection[DictRow]]:
    try:
        opened = psycopg.connect(
            conninfo, autocommit=True, row_factory=dict_row, application_name="supabase-realtime-rehearsal"
        )
    except psycopg.OperationalError as unreachable:
        raise StageError(f"the database of --dsn cannot be reached: {str(unreachable).strip()}") from None
    try:
        yield opened
    finally:
        opened.close()
