"""The application's migrations in the one transaction of a rehearsal on somebody's database.

`up` runs each file in a transaction and on a connection of its own (providers/migrations.py). Here the end of both
is played after each file, so that the next one meets what it meets there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from providers import connection
from providers.connection import Cursor, DatabaseError
from providers.migrations import applied_migrations, changed_files
from providers.transaction_statements import told, transaction_statements
from rehearsal.one_transaction import forbid_commit, number

if TYPE_CHECKING:
    from yoyo.migrations import Migration

WITHOUT_DSN = "rehearse without --dsn, where each file runs as in `up`"
DEFERRABLE = """
    SELECT n.nspname AS schema, c.conname AS name, bool_or(c.condeferred) AS deferred
    FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace
    WHERE c.condeferrable GROUP BY 1, 2 ORDER BY 1, 2
"""


def refuse_transaction_statements(inputs: Mapping[str, Any]) -> None:
    """Raise DatabaseError if a file that is still to run begins or ends a transaction. Runs nothing."""
    faults = []
    for migration in _to_run(inputs):
        if own := transaction_statements(Path(migration.path).read_text()):
            cure = f"remove {'it' if len(own) == 1 else 'them'}, since `up` runs each file in a transaction anyway, or "
            faults.append(
                f"{migration.path}:{own[0].line}: has a transaction of its own ({told(own)}), which would end the one "
                "that a rehearsal with --dsn rolls back, so that what was made by then would stay in the database; "
                f"{cure if migration.use_transactions else ''}{WITHOUT_DSN}"
            )
    if faults:
        raise DatabaseError("\n".join(faults))


def migrate(inputs: Mapping[str, Any]) -> None:
    """Run the files that the database has not run yet, in yoyo's order.

    Raises DatabaseError with the name of the file that fails.
    """
    for migration in _to_run(inputs):
        try:
            with connection.transaction() as cursor:
                _run(cursor, migration)
        except psycopg.errors.ActiveSqlTransaction as impossible:
            raise DatabaseError(
                f"migration {migration.id}.sql cannot be rehearsed with --dsn: {str(impossible).strip()}; {WITHOUT_DSN}"
            ) from impossible
        except psycopg.Error as error:
            raise DatabaseError(
                f"migration {migration.id}.sql failed: {str(error).strip()}; correct the file"
            ) from error


def _to_run(inputs: Mapping[str, Any]) -> list[Migration]:
    from yoyo.migrations import (  # noqa: PLC0415 - only a rehearsal on somebody's server pays for the import
        read_migrations,
        topological_sort,
    )

    applied = applied_migrations()
    if faults := changed_files(inputs["files"], applied):
        raise DatabaseError("; ".join(faults))
    left = [one for one in topological_sort(read_migrations(inputs["folder"])) if one.id not in applied]
    for migration in left:
        migration.load()
    return left


def _run(cursor: Cursor, migration: Migration) -> None:
    from yoyo.migrations import read_sql_migration  # noqa: PLC0415

    before = number(cursor)
    # As in `up`, where only a file without a transaction is split.
    whole = [Path(migration.path).read_bytes()]
    for part in whole if migration.use_transactions else map(str.encode, read_sql_migration(migration.path)[2]):
        try:
            cursor.execute(part)
        except psycopg.Error as error:
            if cursor.connection.info.transaction_status is TransactionStatus.IDLE:
                raise _ended(migration) from error
            raise
    if number(cursor) != before:
        raise _ended(migration)
    _end_session(cursor)


def _ended(migration: Migration) -> DatabaseError:
    return DatabaseError(
        f"migration {migration.id}.sql ended the transaction in which it was rehearsed; nothing of it was kept. "
        f"Take out what begins or ends a transaction, or {WITHOUT_DSN}"
    )


def _end_session(cursor: Cursor) -> None:
    """Check deferred constraints and forget what the file set for itself: dumps empty search_path."""
    cursor.execute("RESET SESSION AUTHORIZATION")
    cursor.execute("RESET ROLE")
    cursor.execute("RESET ALL")
    constraints = cursor.execute(DEFERRABLE).fetchall()
    _set_constraints(cursor, constraints, "IMMEDIATE")
    _set_constraints(cursor, [constraint for constraint in constraints if constraint["deferred"]], "DEFERRED")
    cursor.execute("DISCARD TEMP")
    forbid_commit(cursor)


def _set_constraints(cursor: Cursor, constraints: list[dict[str, Any]], mode: str) -> None:
    if constraints:
        names = (sql.Identifier(constraint["schema"], constraint["name"]) for constraint in constraints)
        cursor.execute(sql.SQL("SET CONSTRAINTS {} {}").format(sql.SQL(", ").join(names), sql.SQL(mode)))
