"""A database with everything that the program declares, in a transaction that is rolled back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, dict_row

from plan.program import Program
from providers.connection import Cursor, connected_through
from rehearsal.applier import apply, connected_to
from rehearsal.one_transaction import undone
from rehearsal.trials import FUNCTION

AUTH = Path(__file__).parent.parent / "sql" / "auth.sql"
"""What the stack's own Postgres gets at its first start; a server of somebody else has its own."""
DSN_VARIABLE = "REHEARSAL_DSN"
SECRETS = ("password", "sslpassword")


class StageError(Exception):
    """Why the declared objects cannot be made on this server, and what to do about it."""


def chosen_dsn(argument: str | None, environ: Mapping[str, str]) -> str | None:
    """The DSN of ``--dsn`` or else of DSN_VARIABLE; None when neither is given.

    Raises StageError, without a word of the DSN, when it is none, or when the argument holds a password.
    """
    if argument is None:
        dsn = environ.get(DSN_VARIABLE) or None
        if dsn is not None:
            _parameters(DSN_VARIABLE, dsn)
        return dsn
    parameters = _parameters("--dsn", argument)
    if any(parameters.get(name) for name in SECRETS):
        raise StageError(
            "--dsn: holds a password, which every user of this machine can see in the process list; "
            f"leave it out and set PGPASSWORD, or put the whole DSN into {DSN_VARIABLE}"
        )
    return argument


def _parameters(source: str, dsn: str) -> dict[str, str]:
    try:
        parameters = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    except psycopg.ProgrammingError:
        raise StageError(
            f"{source}: is not a DSN; write postgresql://user@host:port/database, or host=… port=… dbname=… user=…"
        ) from None
    # What libpq takes for them when a password is not escaped, and repeats in its errors.
    ports = parameters.get("port", "").split(",")
    if "@" in parameters.get("host", "") or not all(port == "" or port.isdigit() for port in ports):
        raise StageError(
            f"{source}: its host or port cannot be one; in a DSN like postgresql://user:password@host:port/database "
            "write @ : / and % of a password as %40 %3A %2F and %25"
        )
    return parameters


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

    Its tables are locked as long. Raises DatabaseError with the name of a migration that fails, and StageError, also
    when the user is no superuser: rows have to be placed past the policies and roles assumed.
    """
    with _opened(dsn) as opened:
        user = opened.execute("SELECT rolname, rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
        if user is None or not user["rolsuper"]:
            raise StageError(
                f"{user and user['rolname']} is no superuser; name a user in the DSN that is, like supabase_admin"
            )
        with undone(opened) as cursor:
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
    except psycopg.ProgrammingError as unusable:
        # Of what the environment adds to the DSN, like PGCONNECT_TIMEOUT.
        raise StageError(f"the database's parameters cannot be used: {unusable}; correct them") from None
    except psycopg.OperationalError as unreachable:
        raise StageError(f"the database cannot be reached: {str(unreachable).strip()}") from None
    try:
        yield opened
    finally:
        opened.close()
