"""Single statements tried as a role with a token's claims, each undone at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psycopg import sql

from providers.connection import Cursor
from rehearsal.catalog import Table
from settings import ApiRole

FUNCTION = Path(__file__).with_name("trial.sql")
SUB = "00000000-0000-4000-8000-000000000001"
"""Who the matrix signs in as."""
OTHER = "00000000-0000-4000-8000-000000000002"
EMAIL = "somebody@example.com"
NO_ROLE = "none"
"""As SET ROLE NONE: the superuser that rehearses."""
INSUFFICIENT_PRIVILEGE = "42501"


class UnusableTableError(Exception):
    """No row can be made for a table, or none gets into it; names what stands against it, and the cure."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """Somebody who asks: a role of the database and the claims of their token."""

    role: ApiRole
    claims: Mapping[str, Any] = field(default_factory=dict)

    @property
    def token(self) -> str:
        """The claims as Realtime and PostgREST hand them to the database (request.jwt.claims)."""
        return json.dumps({"role": self.role.value, **self.claims}, default=str)


ANYONE = tuple(
    Subject(role=role, claims={"sub": SUB, "email": EMAIL, "aud": role.value} if role is ApiRole.AUTHENTICATED else {})
    for role in ApiRole
)
"""Somebody of each API role, as the matrix has them."""


@dataclass(frozen=True)
class Outcome:
    """What a statement did: rows touched, or the error's SQLSTATE and message."""

    touched: int
    code: str | None
    message: str | None

    @property
    def refused(self) -> bool:
        """The role lacks a privilege, or a policy's WITH CHECK said no (Postgres gives both the same code)."""
        return self.code == INSUFFICIENT_PRIVILEGE


def run(cursor: Cursor, attempts: Sequence[tuple[Subject | None, sql.Composed]]) -> list[Outcome]:
    """The outcome of each attempt, in one round trip; nobody is the superuser. Nothing of it stays.

    Needs the function of trial.sql in the session.
    """
    if not attempts:
        return []
    cursor.execute(
        "SELECT t.touched, t.code, t.message "
        "FROM unnest(%s::text[], %s::text[], %s::text[]) WITH ORDINALITY AS a (role, claims, statement, place), "
        "LATERAL pg_temp.trial(a.role, a.claims, a.statement) t ORDER BY a.place",
        [
            [subject.role.value if subject else NO_ROLE for subject, _ in attempts],
            [subject.token if subject else "{}" for subject, _ in attempts],
            [statement.as_string(cursor) for _, statement in attempts],
        ],
    )
    return [Outcome(**row) for row in cursor]


@dataclass(frozen=True, kw_only=True)
class PlacedRow:
    """A row that is in its table: how to find it again."""

    table: Table
    key: Mapping[str, str]
    """The primary key's values, as text."""
    place: str
    """ctid."""

    def where(self, role: str) -> sql.Composed | None:
        """The condition by which a role may name the row; None when it may read nothing to name it by."""
        held = self.table.privileges[role]
        if self.key and set(self.key) <= set(held.select):
            return self.by_key()
        if "SELECT" in held.table:
            return sql.SQL("ctid = {}").format(sql.Literal(self.place))
        return None

    def by_key(self) -> sql.Composed:
        return sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, value in self.key.items()
        )


def insert(table: Table, values: Mapping[str, str | None]) -> sql.Composed:
    """INSERT of a row, values in their types' input syntax."""
    if not values:
        return sql.SQL("INSERT INTO {} DEFAULT VALUES").format(table.identifier)
    return sql.SQL("INSERT INTO {} ({}) {}VALUES ({})").format(
        table.identifier,
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL("OVERRIDING SYSTEM VALUE " if any(table.column(name).always for name in values) else ""),
        sql.SQL(", ").join(map(sql.Literal, values.values())),
    )


def place(cursor: Cursor, table: Table, values: Mapping[str, str | None]) -> PlacedRow:
    """Insert a row as the superuser. Raises what Postgres raises, and UnusableTableError when no row comes of it."""
    placed = _returned(cursor, table, insert(table, values))
    if placed is None:
        raise UnusableTableError(
            f"{table}: a trigger or rule swallows the row; write a case with a row that it lets through, "
            "or about the table to which it sends them"
        )
    return placed


def change(cursor: Cursor, row: PlacedRow, changes: Mapping[str, str | None]) -> PlacedRow | None:
    """Update a row as the superuser: the row after it, None when a trigger or rule swallows the change.

    Its key may be another then. Raises what Postgres raises.
    """
    where = row.by_key() if row.key else sql.SQL("ctid = {}").format(sql.Literal(row.place))
    return _returned(cursor, row.table, update(row, changes, where))


def _returned(cursor: Cursor, table: Table, statement: sql.Composed) -> PlacedRow | None:
    """The row that a statement writes, as the triggers leave it."""
    key = [
        sql.SQL("CAST({} AS text) AS {}").format(sql.Identifier(name), sql.Identifier(name))
        for name in table.primary_key
    ]
    returning = sql.SQL(", ").join([*key, sql.SQL('CAST(ctid AS text) AS "the row\'s ctid"')])
    row = cursor.execute(sql.SQL("{} RETURNING {}").format(statement, returning)).fetchone()
    return None if row is None else PlacedRow(table=table, place=row.pop("the row's ctid"), key=row)


def _where(condition: sql.Composed | None) -> sql.Composed:
    return sql.SQL(" WHERE {}").format(condition) if condition is not None else sql.Composed([])


def select(row: PlacedRow, role: str) -> sql.Composed:
    """SELECT of every column that the role may read, of the row."""
    readable = row.table.privileges[role].select or row.table.column_names
    return sql.SQL("SELECT {} FROM {}{}").format(
        sql.SQL(", ").join(map(sql.Identifier, readable)), row.table.identifier, _where(row.where(role))
    )


def update(row: PlacedRow, changes: Mapping[str, str | None], condition: sql.Composed | None) -> sql.Composed:
    """UPDATE of the row, or of every row in reach."""
    return sql.SQL("UPDATE {} SET {}{}").format(
        row.table.identifier,
        sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, value in changes.items()
        ),
        _where(condition),
    )


def delete(row: PlacedRow, condition: sql.Composed | None) -> sql.Composed:
    """DELETE of the row, or of every row in reach."""
    return sql.SQL("DELETE FROM {}{}").format(row.table.identifier, _where(condition))


def truncate(table: Table) -> sql.Composed:
    """TRUNCATE of the table alone."""
    return sql.SQL("TRUNCATE {}").format(table.identifier)


def seen_by_realtime(row: PlacedRow) -> sql.Composed:
    """The question that Realtime asks of a changed row, as the subscriber: is it there?

    realtime.build_prepared_statement_sql, supabase/realtime v2.32.12 and v2.129.8.
    """
    return sql.SQL("SELECT 1 FROM {} WHERE {}").format(row.table.identifier, row.by_key())


def harmless_update(row: PlacedRow, values: Mapping[str, str | None], role: str) -> dict[str, str | None] | None:
    """A change that leaves a row as it is, of a column that the role may change; None when there is no such column."""
    known = {**row.key, **values}
    own = [column.name for column in row.table.columns if not column.always and column.name in known]
    allowed = row.table.privileges[role].update
    ranked: Iterable[str] = sorted(own, key=lambda name: (name not in allowed, name in row.table.primary_key))
    return next(({name: known[name]} for name in ranked), None)
