"""How Realtime shows a row to a subscriber, and whether an event shows the row that was written.

Realtime takes a column's text from wal2json, casts it to the column's type **without its modifier**, and makes it
JSON (v2.32.12, lib/realtime/tenants/repo/migrations: realtime.cast, realtime.apply_rls). So char(5) 'abc' comes as
"a" and bit(8) as its first bit, and the text of a bytea, cast once more, as the hexadecimal of its hexadecimal
(until 2026's migration fix_bytea_double_encoding_in_cast). Columns that the role may not select are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from psycopg import sql

from doctor.catalog import Column, Connection, Kind, Table, UnusableTableError, catalog_sql, quoted

SELECTABLE = """
    SELECT a.attname::text FROM pg_attribute a
    WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
      AND has_column_privilege(%s, a.attrelid, a.attnum, 'SELECT')
"""


CUT_SHORT = ("bpchar", "bit")
"""Types whose name alone means a length of one."""


async def selectable(connection: Connection, table: Table, role: str) -> tuple[Column, ...]:
    """The columns of the table that a role may select, which are those an event of its subscription has."""
    name = table.identifier.as_string(connection)
    rows = await (await connection.execute(SELECTABLE, (name, role))).fetchall()
    names = {row[0] for row in rows}
    return tuple(column for column in table.columns if column.name in names)


async def rendered(
    connection: Connection, table: Table, key: Sequence[str], columns: Sequence[Column]
) -> dict[str, Any]:
    """The row with that primary key as an event will show it, to be read in the transaction that wrote it."""
    query = sql.SQL("SELECT {} FROM {} WHERE {}").format(
        sql.SQL(", ").join(as_json(column, quoted(column.name)) for column in columns),
        table.quoted,
        by_key(table),
    )
    row = await (await connection.execute(query, tuple(key))).fetchone()
    if row is None:
        raise UnusableTableError(
            f"{table}: the row just written is not there: a trigger or rule moved it; declare another table"
        )
    return dict(zip((column.name for column in columns), row, strict=True))


def as_json(column: Column, value: sql.Composable) -> sql.Composable:
    """A value of the column as Realtime shows it, as an expression of type jsonb.

    Realtime's casts are made only where they change something: the role that reads may lack USAGE on the schema of a
    type, which naming it would need.
    """
    inner = column.type.inner if column.type.kind is Kind.ARRAY else None
    if (inner or column.type).name not in CUT_SHORT:
        return sql.SQL("to_jsonb({})").format(value)
    return sql.SQL("to_jsonb(CAST(CAST({} AS text) AS {}))").format(value, catalog_sql(column.cast))


def by_key(table: Table) -> sql.Composed:
    """The condition that names one row, with a placeholder for each column of the primary key."""
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(quoted(name), sql.Placeholder()) for name in table.primary_key
    )


def differences(expected: Mapping[str, Any], seen: Mapping[str, Any], columns: Sequence[Column]) -> list[str]:
    """What is different about an event's record, one phrase a column, without its values.

    A generated column may be missing: whether it is decoded depends on the versions of Postgres and wal2json.
    """
    found = []
    by_name = {column.name: column for column in columns}
    for name, column in by_name.items():
        if name not in seen:
            if not column.generated:
                found.append(f"column {name} is missing")
        elif not same(expected[name], seen[name], column):
            found.append(f"column {name} has another value")
    return found + [f"column {name} is there, which the role may not select" for name in seen if name not in by_name]


def same(expected: Any, seen: Any, column: Column) -> bool:
    """Whether two JSON renderings are of the same value of the column."""
    if column.cast == "bytea" and isinstance(expected, str) and isinstance(seen, str):
        twice = "\\x" + expected.removeprefix("\\x").encode().hex()
        return seen in (expected, twice)
    return _equal(expected, seen)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, float) or isinstance(other, float):
        # Realtime's JSON turns fractions into 64-bit floats.
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        return numbers and math.isclose(one, other, rel_tol=1e-12)
    if isinstance(one, str) and isinstance(other, str):
        # A timestamptz is shown in the time zone of Realtime's session.
        return one == other or ((instant := _instant(one)) is not None and instant == _instant(other))
    return bool(one == other)


def _instant(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else None
