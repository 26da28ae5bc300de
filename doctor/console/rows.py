"""The rows of a table as a role sees them, page by page, each page with proof of how new it is."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg import DataError, IsolationLevel, sql

from doctor.api_role import become
from doctor.catalog import Column, Connection, Table, UnusableTableError, catalog_sql, quoted, read_table
from doctor.console.answers import RefusedError, iso
from doctor.database import session
from doctor.outputs import Outputs, PublishedTable
from doctor.rendering import as_json, selectable

PAGE_ROWS = 500
MOST_ROWS = 1000
ANSWER_SECONDS = 5.0
"""The database has so long for whatever the page asks."""

CLOCK = "SELECT clock_timestamp()"
OLDEST_WRITE = """
    SELECT least(
        (SELECT min(coalesce(xact_start, CASE WHEN state IS DISTINCT FROM 'idle'
                                         THEN coalesce(backend_start, to_timestamp(0)) END))
         FROM pg_stat_activity
         WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() AND datname = current_database()),
        (SELECT min(prepared) FROM pg_prepared_xacts WHERE database = current_database()))
"""
"""When the oldest of the transactions began that have written and not ended; null when there is none.

Without a start (track_activities is off, or the login may not look) it may have begun with its session. One that was
idle when its start was read began later: see as_of.
"""
ESTIMATE = "SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass(%s)"


@dataclass(frozen=True)
class Page:
    """Rows as JSON text. ``following`` is the cursor of the next page, None after the last."""

    rows: tuple[str, ...]
    as_of: datetime
    read_at: datetime
    following: str | None
    total: int | None

    def json(self) -> str:
        """The answer of the API. The rows are Postgres's own text: a number stays as it is, however long."""
        rest = {
            "as_of": iso(self.as_of),
            "read_at": iso(self.read_at),
            "next": self.following,
            "total": self.total,
        }
        return f'{{"rows":[{",".join(self.rows)}],{json.dumps(rest)[1:]}'


async def read_page(
    outputs: Outputs,
    published: PublishedTable,
    claims: Mapping[str, Any],
    *,
    after: str | None = None,
    limit: int = PAGE_ROWS,
) -> Page:
    """The rows after a cursor in the order of the primary key, read in the name of the role in the claims.

    Raises psycopg.Error, UnusableTableError, and RefusedError for a cursor that is not one of the table.
    """
    async with session(outputs, ANSWER_SECONDS) as connection:
        # A snapshot for each statement, whatever the server's default: the rows' one has to come after as_of.
        await connection.set_isolation_level(IsolationLevel.READ_COMMITTED)
        await connection.set_read_only(True)
        table = await read_table(connection, published.schema_name, published.name)
        columns = await selectable(connection, table, str(claims["role"])) or table.key_columns
        name = table.identifier.as_string(connection)
        estimate = await _one(connection, ESTIMATE, (name,))
        moment, read_at = await as_of(connection)
        await become(connection, claims)
        query, parameters = _page(table, columns, after, limit)
        try:
            found = await (await connection.execute(query, parameters)).fetchall()
        except DataError:
            if after is None:
                raise
            raise _no_cursor(table) from None
    rows, more = found[:limit], len(found) > limit
    known = len(rows) if after is None and not more else None
    return Page(
        rows=tuple(row for row, _ in rows),
        as_of=moment,
        read_at=read_at,
        following=_cursor(rows[-1][1]) if more else None,
        total=known if known is not None else estimate if estimate is not None and estimate > limit else None,
    )


async def as_of(connection: Connection) -> tuple[datetime, datetime]:
    """A moment before which every transaction that has a commit timestamp is seen by the next statement, and now.

    For one that the next statement does not see, either was writing when the open transactions were looked at: then it
    began no earlier than the oldest of them. Or it wrote for the first time after that, and has committed later still
    than the clock was read, which is why the clock comes first. A commit timestamp is taken before the commit is to be
    seen (RecordTransactionCommit and ProcArrayEndTransaction, src/backend/access/transam/xact.c), so that the clock
    alone would be no proof: a commit that waits for a standby, for one, lies in between.
    """
    now: datetime = await _one(connection, CLOCK)
    oldest: datetime | None = await _one(connection, OLDEST_WRITE)
    return now if oldest is None else min(now, oldest), now


def row_json(columns: Sequence[Column]) -> sql.Composed:
    """A row of ``r`` as text of a JSON object, its values as Realtime shows them."""
    values = sql.SQL(", ").join(
        sql.SQL("{} AS {}").format(as_json(column, quoted("r", column.name)), quoted(column.name)) for column in columns
    )
    return sql.SQL("(SELECT row_to_json(shown) FROM (SELECT {}) AS shown)::text").format(values)


async def describe(outputs: Outputs, published: Sequence[PublishedTable]) -> list[tuple[PublishedTable, Table | str]]:
    """The declared tables as the catalog has them, or why one is of no use here. Raises psycopg.Error."""
    found: list[tuple[PublishedTable, Table | str]] = []
    async with session(outputs, ANSWER_SECONDS) as connection:
        for table in published:
            try:
                found.append((table, await read_table(connection, table.schema_name, table.name)))
            except UnusableTableError as unfit:
                found.append((table, str(unfit)))
    return found


def declared(outputs: Outputs, name: str | None) -> PublishedTable:
    """A table of the stack by its qualified name. Raises RefusedError."""
    found = next((table for table in outputs.tables if table.table == name), None)
    if found is None:
        names = ", ".join(table.table for table in outputs.tables) or "none"
        raise RefusedError(404, f"{name!r} is not a table of the stack ({names})", "declare it in the setting tables")
    return found


def _page(table: Table, columns: Sequence[Column], after: str | None, limit: int) -> tuple[sql.Composed, list[Any]]:
    key = [quoted("r", name) for name in table.primary_key]
    condition: sql.Composable = sql.SQL("true")
    parameters: list[Any] = []
    if after is not None:
        parameters = _key_in(table, after)
        condition = sql.SQL("({}) > ({})").format(
            sql.SQL(", ").join(key),
            sql.SQL(", ").join(
                sql.SQL("CAST({} AS {})").format(sql.Placeholder(), catalog_sql(column.sql_type))
                for column in table.key_columns
            ),
        )
    query = sql.SQL("SELECT {}, ARRAY[{}] FROM {} AS r WHERE {} ORDER BY {} LIMIT {}").format(
        row_json(columns),
        sql.SQL(", ").join(sql.SQL("CAST({} AS text)").format(column) for column in key),
        table.quoted,
        condition,
        sql.SQL(", ").join(key),
        sql.Placeholder(),
    )
    return query, [*parameters, limit + 1]


def _cursor(key: Sequence[str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def _key_in(table: Table, cursor: str) -> list[str]:
    try:
        key = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError):
        key = None
    if not isinstance(key, list) or len(key) != len(table.primary_key) or not all(isinstance(x, str) for x in key):
        raise _no_cursor(table)
    return key


def _no_cursor(table: Table) -> RefusedError:
    return RefusedError(400, f"after: is no cursor of {table}", "send the `next` of the page before, or none")


async def _one(connection: Connection, query: LiteralString, parameters: Sequence[Any] = ()) -> Any:
    row = await (await connection.execute(query, parameters)).fetchone()
    return None if row is None else row[0]
