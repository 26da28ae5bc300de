"""Taking the probe's row away again, whatever became of the probe and of its connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from doctor.catalog import Connection, Table, UnusableTableError
from doctor.database import RETRY_SECONDS, connected, first_line
from doctor.failures import Cause, Failure, ProbeFailedError
from doctor.outputs import Outputs
from doctor.rendering import by_key

if TYPE_CHECKING:
    from doctor.plan import Written

REMOVE_SECONDS = 30.0
"""How long a row is tried to be removed, while Postgres restarts for instance."""

ResultT = TypeVar("ResultT")


class Fate(StrEnum):
    """What became of a transaction, in the words of pg_xact_status."""

    UNDER_WAY = "in progress"
    COMMITTED = "committed"
    ABORTED = "aborted"


class RowKeptError(Exception):
    """A deletion went through, and the row is still there. The message says what that means."""


async def remove(
    outputs: Outputs, connection: Connection, table: Table, written: Written, *, committed: bool
) -> Failure | None:
    """Removes the row, as removed(), for REMOVE_SECONDS; a failure says how to do it by hand."""
    deadline = time.monotonic() + REMOVE_SECONDS
    while True:
        try:
            if committed and connection.info.transaction_status is TransactionStatus.IDLE:
                await removed(connection, table, written, committed=True)
                return None
            async with connected(outputs, REMOVE_SECONDS) as another:
                if await removed(another, table, written, committed=committed):
                    return None
                reason = "its transaction is still under way"
        except ProbeFailedError as failed:
            reason = failed.failure.seen
        except psycopg.OperationalError as failed:
            reason = first_line(failed)
        except (psycopg.Error, RowKeptError) as refused:
            reason, deadline = first_line(refused), 0.0
        if time.monotonic() >= deadline:
            return Failure(
                cause=Cause.LEFT_BEHIND,
                waited_for=f"the removal of the probe's row from {table}",
                seen=reason,
                likely="the database is down, or refuses the deletion; remove the row by hand: "
                + by_hand(table, written, committed=committed),
            )
        await asyncio.sleep(RETRY_SECONDS)


async def removed(connection: Connection, table: Table, written: Written, *, committed: bool) -> bool:
    """Deletes the row and commits that. True once it is gone, False while its transaction is under way.

    With ``committed`` false, for a commit that was broken off, the transaction is asked after first. Of one that was
    rolled back nothing is deleted: the row with that key, if there is one, is somebody else's. Raises RowKeptError, and
    psycopg.Error.
    """
    if not committed:
        found = await fate(connection, written.transaction)
        if found is not Fate.COMMITTED:
            return found is Fate.ABORTED
    gone = await connection.execute(deletion(table, written.key, version=None if committed else written.version))
    await connection.commit()
    if gone.rowcount == 0 and await _is_there(connection, table, written.key):
        raise RowKeptError(
            "the database deletes nothing: a trigger, rule or policy of the table keeps the row"
            if committed
            else "the row with its primary key is another one, or was changed since; look whose it is"
        )
    return True


async def require_removable(connection: Connection, table: Table, written: Written) -> None:
    """Deletes a row in the transaction that wrote it, which is to be rolled back.

    Raises UnusableTableError when the table keeps it: every row would be left behind.
    """
    reason = "a trigger, rule or policy keeps its rows from being deleted"
    try:
        # As removed() finds the session, for triggers that ask who deletes.
        await connection.execute("SELECT set_config('request.jwt.claims', '', true)")
        gone = await connection.execute(deletion(table, written.key))
        await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    except psycopg.OperationalError:  # no answer, or a lock that somebody holds
        raise
    except psycopg.Error as refused:
        message = refused.diag.message_primary or first_line(refused)
        raise UnusableTableError(f"{table}: {reason} ({message}); declare another table") from None
    if gone.rowcount != 1:
        raise UnusableTableError(f"{table}: {reason}; declare another table")


def deletion(table: Table, key: Sequence[str], *, version: str | None = None) -> sql.Composed:
    """The statement that removes one row by its primary key, the values in it.

    ``version`` is the row's xmin. With it, no row is removed that has the key and was written by another transaction:
    after a crash, Postgres gives out anew what it had not flushed, numbers of transactions and of sequences too.
    """
    conditions = [
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in zip(table.primary_key, key, strict=True)
    ]
    if version is not None:
        conditions.append(sql.SQL("xmin = {}").format(sql.Literal(version)))
    return sql.SQL("DELETE FROM {} WHERE {}").format(table.identifier, sql.SQL(" AND ").join(conditions))


def by_hand(table: Table, written: Written, *, committed: bool) -> str:
    """The statement for a person."""
    return deletion(table, written.key, version=None if committed else written.version).as_string()


async def fate(connection: Connection, transaction: str) -> Fate:
    """What became of a transaction, by its number. It ends the connection's own."""
    try:
        query = "SELECT pg_xact_status(CAST(%s AS xid8))"
        row = await (await connection.execute(query, (transaction,))).fetchone()
    except psycopg.errors.InvalidParameterValue:  # in the future: given out, and lost in a crash before it was flushed
        return Fate.ABORTED
    finally:
        if not connection.closed:
            await connection.rollback()
    assert row is not None, "a function call has a row"
    # Without a status it is older than what Postgres remembers: as committed, which the row's version has to confirm.
    return Fate(row[0] or Fate.COMMITTED)


async def _is_there(connection: Connection, table: Table, key: Sequence[str]) -> bool:
    query = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE {})").format(table.quoted, by_key(table))
    row = await (await connection.execute(query, tuple(key))).fetchone()
    await connection.rollback()
    return row is not None and bool(row[0])


async def in_any_case(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Does the work to its end, also when the task is cancelled meanwhile, or was before."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as interruption:
            cancelled = interruption
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result
