"""Taking the probe's row away again, whatever became of the probe and of its connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from doctor.catalog import Connection, Table
from doctor.database import RETRY_SECONDS, connected, first_line
from doctor.failures import Cause, Failure, ProbeFailedError
from doctor.outputs import Outputs
from doctor.plan import Written

REMOVE_SECONDS = 30.0
"""How long a row is tried to be removed, while Postgres restarts for instance."""

ResultT = TypeVar("ResultT")


async def remove(
    outputs: Outputs, connection: Connection, table: Table, written: Written, *, committed: bool
) -> Failure | None:
    """Removes the row; a failure says how to do it by hand.

    With ``committed`` false, for a commit that was broken off, it first waits until the transaction has ended one
    way or the other: before, its row cannot be seen.
    """
    statement = deletion(table, written.key)
    deadline = time.monotonic() + REMOVE_SECONDS
    while True:
        try:
            if committed and connection.info.transaction_status is TransactionStatus.IDLE:
                await connection.execute(statement)
                await connection.commit()
                return None
            async with connected(outputs, REMOVE_SECONDS) as another:
                if committed or await finished(another, written):
                    await another.execute(statement)
                    await another.commit()
                    return None
                reason = "its transaction is still under way"
        except ProbeFailedError as failed:
            reason = failed.failure.seen
        except psycopg.OperationalError as failed:
            reason = first_line(failed)
        except psycopg.Error as refused:
            reason, deadline = first_line(refused), 0.0
        if time.monotonic() >= deadline:
            return Failure(
                cause=Cause.LEFT_BEHIND,
                waited_for=f"the removal of the probe's row from {table}",
                seen=reason,
                likely="the database is down, or refuses the deletion; remove the row by hand: "
                + statement.as_string(),
            )
        await asyncio.sleep(RETRY_SECONDS)


def deletion(table: Table, key: Sequence[str]) -> sql.Composed:
    """The statement that removes one row by its primary key, the values in it."""
    condition = sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in zip(table.primary_key, key, strict=True)
    )
    return sql.SQL("DELETE FROM {} WHERE {}").format(table.identifier, condition)


async def finished(connection: Connection, written: Written) -> bool:
    """Whether the transaction that wrote the row has been committed or rolled back."""
    query = "SELECT pg_xact_status(CAST(%s AS xid8))"
    row = await (await connection.execute(query, (written.transaction,))).fetchone()
    return row is not None and row[0] != "in progress"


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
