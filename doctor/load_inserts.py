"""The rows of a load test: inserted at a steady rate, and removed again."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Hashable, Sequence

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from doctor.api_role import become, claims_of
from doctor.catalog import Connection, Table, UnusableTableError, catalog_sql, quoted
from doctor.database import RETRY_SECONDS, connected, first_line
from doctor.deliveries import Deliveries, row_key
from doctor.failures import ProbeFailedError
from doctor.outputs import Outputs
from doctor.plan import Chosen, key_of
from doctor.removal import REMOVE_SECONDS, Fate, fate
from doctor.rendering import as_json, by_key
from doctor.sample_row import sample_row

INSERTS_A_WRITER = 40
"""A second, for one connection: an insert is four round trips and the flush of its commit."""
STATEMENT_SECONDS = 15.0
ROWS_A_DELETE = 1000


class Inserts:
    """Inserts rows in the name of the plan's writer, each in a transaction of its own, at fixed moments.

    ``failed(message)`` is called for each insert that the database did not take. An insert that is late is made at
    once, and those that are still to be made when the time is over are left out.
    """

    def __init__(
        self, outputs: Outputs, chosen: Chosen, deliveries: Deliveries, *, failed: Callable[[str], None]
    ) -> None:
        self.outputs = outputs
        self.chosen = chosen
        self.deliveries = deliveries
        self.failed = failed
        self.seconds = 0.0
        self._claims = claims_of(key_of(outputs, chosen.plan.writer))
        self._rng = random.SystemRandom()
        self._keys: list[tuple[str, ...]] = []
        self._doubtful: dict[str, tuple[str, ...]] = {}
        """By the number of their transactions, the rows of which the database has not said that they are committed."""
        self._kept: list[tuple[str, ...]] = []
        self._others: list[tuple[str, ...]] = []
        self.last_key: tuple[str, ...] = ()
        """The primary key of the row inserted last, as text."""

    async def run(self, *, rate: float, seconds: float, inserts: int) -> None:
        """Makes the inserts, with as many connections as the rate needs; returns when the time is over."""
        writers = math.ceil(rate / INSERTS_A_WRITER)
        started = time.perf_counter()
        end = started + seconds
        async with asyncio.TaskGroup() as group:
            for writer in range(writers):
                moments = [started + number / rate for number in range(writer, inserts, writers)]
                group.create_task(self._write(moments, end))
        # Up to the last insert's share of a second, so that inserts / seconds is the rate when all were in time.
        self.seconds = max(seconds, time.perf_counter() - started)

    async def _write(self, moments: Sequence[float], end: float) -> None:
        remaining = list(reversed(moments))
        while remaining and time.perf_counter() < end:
            try:
                async with connected(self.outputs, STATEMENT_SECONDS) as connection:
                    while remaining:
                        row = await sample_row(connection, self.chosen.table, self._rng)
                        if connection.info.transaction_status is not TransactionStatus.IDLE:
                            await connection.rollback()
                        await asyncio.sleep(max(0.0, remaining[-1] - time.perf_counter()))
                        if time.perf_counter() >= end:
                            return
                        remaining.pop()
                        await self._insert(connection, *row.insert())
            except UnusableTableError as unfit:
                self.failed(str(unfit))
                return
            except ProbeFailedError as unreachable:
                self.failed(unreachable.failure.seen)
            except psycopg.Error as cut:
                self.failed(first_line(cut))
                await asyncio.sleep(RETRY_SECONDS)
            # The moments that passed meanwhile are over: what nobody could insert is not made up for.
            now = time.perf_counter()
            while remaining and remaining[-1] < now:
                remaining.pop()

    async def _insert(self, connection: Connection, statement: sql.Composed, values: Sequence[str | None]) -> None:
        key_columns = self.chosen.table.key_columns
        returning = [sql.SQL("CAST({} AS text)").format(quoted(column.name)) for column in key_columns] + [
            as_json(column, quoted(column.name)) for column in key_columns
        ]
        query = sql.SQL("{} RETURNING pg_current_xact_id()::text, {}").format(statement, sql.SQL(", ").join(returning))
        try:
            await become(connection, self._claims)
            answer = await (await connection.execute(query, values)).fetchone()
        except (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError, psycopg.InternalError) as refused:
            await connection.rollback()
            self.failed(refused.diag.message_primary or first_line(refused))
            return
        if answer is None:
            await connection.rollback()
            self.failed("a trigger or rule of the table drops the insert")
            return
        transaction, *rendered = answer
        texts, seen = rendered[: len(key_columns)], rendered[len(key_columns) :]
        key: Hashable = row_key(key_columns, dict(zip((c.name for c in key_columns), seen, strict=True)))
        self.last_key = self._doubtful[transaction] = tuple(texts)
        number = self.deliveries.committing(key, time.perf_counter())
        await connection.commit()
        self.deliveries.committed(number)
        self._keys.append(self._doubtful.pop(transaction))

    async def remove(self) -> str | None:
        """Removes every row, those of broken-off commits too, within REMOVE_SECONDS; else why not, in words.

        To be called once nothing is inserted any more.
        """
        deadline = time.monotonic() + REMOVE_SECONDS
        reason = ""
        while self._keys or self._doubtful:
            try:
                async with connected(self.outputs, REMOVE_SECONDS) as connection:
                    await self._settle(connection)
                    await self._remove(connection)
                reason = ""
            except ProbeFailedError as failed:
                reason = failed.failure.seen
            except psycopg.OperationalError as failed:
                reason = first_line(failed)
            except psycopg.Error as refused:
                reason, deadline = first_line(refused), 0.0
            if time.monotonic() >= deadline:
                break
            if self._keys or self._doubtful:
                await asyncio.sleep(RETRY_SECONDS)
        return self._left_behind(reason)

    def _left_behind(self, reason: str) -> str | None:
        table = self.chosen.table
        if left := [*self._keys, *self._kept]:
            reason = reason or "a trigger, rule or policy of the table keeps them"
            return (
                f"{len(left)} rows of {table} could not be removed ({reason}); remove them by hand: "
                f"the first has the primary key {', '.join(left[0])}"
            )
        if self._others:
            return (
                f"{len(self._others)} rows of {table} have the primary key of a row whose commit was broken off, and "
                "are other ones or were changed since; look whose they are: the first has the primary key "
                + ", ".join(self._others[0])
            )
        if self._doubtful:
            return (
                f"{len(self._doubtful)} transactions of this run are still under way, whose rows of "
                f"{table} cannot be seen yet; end their sessions (application_name 'doctor probe')"
            )
        return None

    async def _settle(self, connection: Connection) -> None:
        """Asks what became of the commits that were broken off.

        Of one that was rolled back, or whose row another transaction has written since, nothing is deleted: a row with
        that key would be the application's.
        """
        table = self.chosen.table
        query = sql.SQL("SELECT CAST(xmin AS text) FROM {} WHERE {}").format(table.quoted, by_key(table))
        for transaction, key in list(self._doubtful.items()):
            found = await fate(connection, transaction)
            if found is Fate.UNDER_WAY:
                continue
            if found is Fate.COMMITTED:
                row = await (await connection.execute(query, key)).fetchone()
                await connection.rollback()
                if row is not None:
                    same = int(row[0]) == int(transaction) % 2**32  # what a row keeps of an xid8
                    (self._keys if same else self._others).append(key)
            del self._doubtful[transaction]

    async def _remove(self, connection: Connection) -> None:
        statement, remaining = deletion(self.chosen.table), still_there(self.chosen.table)
        while self._keys:
            batch = self._keys[-ROWS_A_DELETE:]
            columns = [list(column) for column in zip(*batch, strict=True)]
            gone = await connection.execute(statement, columns)
            await connection.commit()
            del self._keys[-ROWS_A_DELETE:]
            if gone.rowcount < len(batch):  # or somebody else has deleted them
                self._kept += [tuple(row) for row in await (await connection.execute(remaining, columns)).fetchall()]
                await connection.rollback()


def deletion(table: Table) -> sql.Composed:
    """The statement that removes rows by their primary keys, with an array of texts for each column of the key."""
    keys, condition = _by_keys(table)
    return sql.SQL("DELETE FROM {} AS t USING {} WHERE {}").format(table.quoted, keys, condition)


def still_there(table: Table) -> sql.Composed:
    """The query for those of the rows that are there, with the parameters of the deletion: their keys as texts."""
    keys, condition = _by_keys(table)
    columns = sql.SQL(", ").join(
        sql.SQL("CAST(t.{} AS text)").format(quoted(column.name)) for column in table.key_columns
    )
    return sql.SQL("SELECT {} FROM {} AS t, {} WHERE {}").format(columns, table.quoted, keys, condition)


def _by_keys(table: Table) -> tuple[sql.Composed, sql.Composed]:
    """Keys as a table k, and the condition that a row t has one of them."""
    names = [sql.Identifier(f"key {number}") for number in range(len(table.primary_key))]
    return (
        sql.SQL("unnest({}) AS k ({})").format(
            sql.SQL(", ").join([sql.SQL("CAST({} AS text[])").format(sql.Placeholder())] * len(names)),
            sql.SQL(", ").join(names),
        ),
        sql.SQL(" AND ").join(
            sql.SQL("t.{} = CAST(k.{} AS {})").format(quoted(column.name), name, catalog_sql(column.cast))
            for column, name in zip(table.key_columns, names, strict=True)
        ),
    )
