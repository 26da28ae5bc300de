"""Test rows: inserted, changed and deleted in the name of a role, so that policies apply, and removed at the end."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors, sql

from doctor.api_role import become, resume
from doctor.catalog import Column, Connection, Table, catalog_sql, quoted, read_table
from doctor.console.answers import RefusedError
from doctor.console.rows import ANSWER_SECONDS, row_json
from doctor.database import RETRY_SECONDS, session
from doctor.outputs import Outputs, PublishedTable
from doctor.plan import Written
from doctor.removal import RowKeptError, by_hand, removed, require_removable
from doctor.rendering import by_key, selectable
from doctor.sample_row import SampleRow, sample_changes, sample_row

REMOVE_SECONDS = 5.0
"""How long the rows that are left are tried to be removed at the end."""

Values = Mapping[str, Any]

UPDATABLE = """
    SELECT a.attname::text FROM pg_attribute a
    WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
      AND a.attgenerated = '' AND a.attidentity <> 'a' AND has_column_privilege(%s, a.attrelid, a.attnum, 'UPDATE')
"""
NOT_OURS = "only rows that this console inserted can be changed or deleted here; use SQL for the others"


@dataclass
class MadeRow:
    """A row that the console inserted. ``key`` is its primary key as JSON shows it.

    Until ``committed`` it is not known whether the row was.
    """

    table: Table
    key: dict[str, Any]
    written: Written
    committed: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """The primary key as text."""
        return self.written.key


class MadeRows:
    """The rows that the console has inserted and that are still to be removed."""

    def __init__(self, outputs: Outputs) -> None:
        self.outputs = outputs
        self._rng = random.SystemRandom()
        self._rows: list[MadeRow] = []

    def __len__(self) -> int:
        return len(self._rows)

    async def insert(
        self, published: PublishedTable, claims: Values, values: Values | None = None
    ) -> tuple[str | None, str]:
        """Inserts a sample row, with ``values`` over it: the row, None when the role may not see it, and its key.

        Both are JSON text. Raises psycopg.Error, UnusableTableError and RefusedError.
        """
        async with session(self.outputs, ANSWER_SECONDS) as connection:
            table = await read_table(connection, published.schema_name, published.name)
            sample = await sample_row(connection, table, self._rng)
            row = SampleRow(table, sample.values | await _texts(connection, table, values or {}))
            transaction = await _one(connection, "SELECT pg_current_xact_id()::text")
            texts = await _inserted(connection, row, claims)
            if texts is None:
                raise RefusedError(409, f"{table}: a trigger or rule of the table drops the insert")
            key = await _shown(connection, table, texts, table.key_columns)
            if key is None:
                raise RefusedError(409, f"{table}: a trigger or rule of the table moves the row elsewhere")
            shown = await _shown_to(connection, table, texts, claims)
            query = sql.SQL("SELECT CAST(xmin AS text) FROM {} WHERE {}").format(table.quoted, by_key(table))
            version = await _one(connection, query, texts)
            made = MadeRow(table, json.loads(key), Written(texts, {}, transaction, version))
            async with connection.transaction(force_rollback=True):
                await require_removable(connection, table, made.written)
            self._rows.append(made)
            await connection.commit()
            made.committed = True
            return shown, key

    async def change(
        self, published: PublishedTable, claims: Values, key: Values, values: Values | None = None
    ) -> str | None:
        """Changes a test row: sets ``values``, or one column of its own choice. The row, None if it is not to be seen.

        Raises psycopg.Error, UnusableTableError and RefusedError.
        """
        made = self._of(published, key)
        async with session(self.outputs, ANSWER_SECONDS) as connection:
            table = await read_table(connection, published.schema_name, published.name)
            if values:
                if fixed := [name for name in values if name in table.primary_key]:
                    raise RefusedError(400, f"{fixed[0]} is of the primary key", "a test row keeps its key")
                await become(connection, claims)
                await self._update(connection, made, await _texts(connection, table, values))
            else:
                changes = await self._changes(connection, table, made, str(claims["role"]))
                await become(connection, claims)
                await self._first_update(connection, made, changes)
            await resume(connection)
            shown = await _shown_to(connection, table, made.texts, claims)
            await connection.commit()
            return shown

    async def delete(self, published: PublishedTable, claims: Values, key: Values) -> None:
        """Deletes a test row. Raises psycopg.Error and RefusedError."""
        made = self._of(published, key)
        async with session(self.outputs, ANSWER_SECONDS) as connection:
            await become(connection, claims)
            statement = sql.SQL("DELETE FROM {} WHERE {}").format(made.table.quoted, by_key(made.table))
            _require_one(await connection.execute(statement, made.texts))
            await connection.commit()
        self._rows.remove(made)

    async def remove_all(self) -> tuple[str, ...]:
        """Removes the rows that are left, as the stack's database user; tries for REMOVE_SECONDS.

        The statements for those that cannot be removed are the result, to be run by hand.
        """
        deadline = time.monotonic() + REMOVE_SECONDS
        kept: list[MadeRow] = []
        while self._rows:
            try:
                async with session(self.outputs, ANSWER_SECONDS) as connection:
                    while self._rows:
                        if not await self._remove(connection, self._rows[-1]):
                            kept.append(self._rows[-1])
                        self._rows.pop()
            except psycopg.Error:
                if time.monotonic() >= deadline:
                    break
                await asyncio.sleep(RETRY_SECONDS)
        left = (*kept, *self._rows)
        return tuple(by_hand(made.table, made.written, committed=made.committed) for made in left)

    async def _remove(self, connection: Connection, made: MadeRow) -> bool:
        """Whether the row is gone; False when the database refuses. Raises psycopg.OperationalError."""
        try:
            if not await removed(connection, made.table, made.written, committed=made.committed):
                raise psycopg.OperationalError("the row's transaction is still under way")
        except psycopg.OperationalError:
            raise
        except (psycopg.Error, RowKeptError):
            await connection.rollback()
            return False
        return True

    def _of(self, published: PublishedTable, key: Values) -> MadeRow:
        found = next((row for row in self._rows if str(row.table) == published.table and _same_key(row.key, key)), None)
        if found is None:
            raise RefusedError(403, "not a test row of this console", NOT_OURS)
        return found

    async def _changes(self, connection: Connection, table: Table, made: MadeRow, role: str) -> list[tuple[str, str]]:
        rows = await (await connection.execute(UPDATABLE, (table.identifier.as_string(connection), role))).fetchall()
        others = [column.name for column in table.columns if column.name not in table.primary_key]
        # Of a role that may change none, Postgres says so in its own words.
        names = [name for name in others if (name,) in rows] or others
        if not names:
            raise RefusedError(409, f"{table}: has no column beside its primary key", "use another table")
        query = sql.SQL("SELECT {} FROM {} WHERE {}").format(
            sql.SQL(", ").join(sql.SQL("CAST({} AS text)").format(quoted(name)) for name in names),
            table.quoted,
            by_key(table),
        )
        row = await (await connection.execute(query, made.texts)).fetchone()
        if row is None:
            raise _none()
        return sample_changes(table, dict(zip(names, row, strict=True)), self._rng)

    async def _first_update(self, connection: Connection, made: MadeRow, changes: Sequence[tuple[str, str]]) -> None:
        """The first of the changes that Postgres takes."""
        refused: psycopg.Error | None = None
        for column, value in changes:
            try:
                async with connection.transaction():
                    await self._update(connection, made, {column: value})
            except (psycopg.DataError, psycopg.IntegrityError, errors.RaiseException) as unfit:
                refused = refused or unfit
            else:
                return
        words = f" ({refused.diag.message_primary})" if refused is not None else ""
        raise RefusedError(409, f"{made.table}: takes no sample change of a column{words}", "send values")

    async def _update(self, connection: Connection, made: MadeRow, texts: Mapping[str, str | None]) -> None:
        statement = sql.SQL("UPDATE {} SET {} WHERE {}").format(
            made.table.quoted,
            sql.SQL(", ").join(sql.SQL("{} = {}").format(quoted(name), sql.Placeholder()) for name in texts),
            by_key(made.table),
        )
        _require_one(await connection.execute(statement, [*texts.values(), *made.texts]))
        await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")


async def _inserted(connection: Connection, row: SampleRow, claims: Values) -> tuple[str, ...] | None:
    """The key of the row, inserted in the name of the role. Raises psycopg.Error.

    A role that may not see what it wrote may not have its key returned either: then the stack's user looks for it.
    """
    try:
        async with connection.transaction():
            await become(connection, claims)
            answer = await (await connection.execute(*row.insert_returning_key())).fetchone()
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            await resume(connection)
    except errors.InsufficientPrivilege:
        await become(connection, claims)
        await connection.execute(*row.insert())
        await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        await resume(connection)
        key = [sql.SQL("CAST({} AS text)").format(quoted(name)) for name in row.table.primary_key]
        query = sql.SQL("SELECT {} FROM {} WHERE xmin = pg_current_xact_id()::xid LIMIT 1").format(
            sql.SQL(", ").join(key), row.table.identifier
        )
        answer = await (await connection.execute(query)).fetchone()
    return None if answer is None else tuple(answer)


async def _texts(connection: Connection, table: Table, values: Values) -> dict[str, str | None]:
    """JSON values as text of their columns' types. Raises psycopg.DataError, and RefusedError for no such column."""
    if not values:
        return {}
    columns = {column.name: column for column in table.columns}
    if unknown := [name for name in values if name not in columns]:
        raise RefusedError(400, f"{table}: has no column {unknown[0]!r}", f"it has {', '.join(columns)}")
    query = sql.SQL("SELECT {} FROM jsonb_to_record(CAST({} AS jsonb)) AS given ({})").format(
        sql.SQL(", ").join(sql.SQL("CAST({} AS text)").format(quoted(name)) for name in values),
        sql.Placeholder(),
        sql.SQL(", ").join(
            sql.SQL("{} {}").format(quoted(name), catalog_sql(columns[name].sql_type)) for name in values
        ),
    )
    row = await (await connection.execute(query, (json.dumps(values),))).fetchone()
    assert row is not None, "a record is a row"
    return dict(zip(values, row, strict=True))


async def _shown_to(connection: Connection, table: Table, texts: Sequence[str], claims: Values) -> str | None:
    """The row as JSON text as the role sees it; None when it does not."""
    columns = await selectable(connection, table, str(claims["role"])) or table.key_columns
    try:
        async with connection.transaction():
            await become(connection, claims)
            shown = await _shown(connection, table, texts, columns)
            await resume(connection)
            return shown
    except errors.InsufficientPrivilege:
        return None


async def _shown(connection: Connection, table: Table, texts: Sequence[str], columns: Sequence[Column]) -> str | None:
    query = sql.SQL("SELECT {} FROM {} AS r WHERE {}").format(row_json(columns), table.quoted, by_key(table))
    shown: str | None = await _one(connection, query, tuple(texts))
    return shown


async def _one(connection: Connection, query: Any, parameters: Sequence[Any] = ()) -> Any:
    row = await (await connection.execute(query, parameters)).fetchone()
    return None if row is None else row[0]


def _require_one(done: psycopg.AsyncCursor[Any]) -> None:
    if done.rowcount == 0:
        raise _none()


def _none() -> RefusedError:
    return RefusedError(404, "no row that this role may change", "its policies hide the row, or it is gone")


def _same_key(one: Values, other: Values) -> bool:
    """Whether two keys are the same. Numbers that a browser has rounded to 64-bit floats are."""
    return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)


def _same(one: Any, other: Any) -> bool:
    numbers = [value for value in (one, other) if isinstance(value, int | float) and not isinstance(value, bool)]
    return one == other or str(one) == other or (len(numbers) == 2 and float(one) == float(other))  # noqa: PLR2004
