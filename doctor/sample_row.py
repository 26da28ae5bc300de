"""A row that a table accepts, made from nothing but the catalog: the types, keys and constraints of its columns.

Only columns that must be given a value get one: NOT NULL without default, identity or generation, and the
primary key. Where CHECK constraints or a domain restrict a column, Postgres itself is asked which of the
candidates they accept. No value is taken from the application's rows, except the key of an existing row that a
foreign key needs.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from psycopg import DataError, IntegrityError, sql

from doctor.catalog import Check, Column, Connection, ForeignKey, Table, UnusableTableError, catalog_sql, quoted
from doctor.sample_values import INTEGERS, MOMENTS, TEXTS, candidates, constants

MAX_COMBINATIONS = 20_000
"""How many combinations of candidates Postgres may try against constraints over several columns."""

CHANGES_OF_A_COLUMN = 4
"""How many values of one column are tried, before another column."""


@dataclass(frozen=True)
class SampleRow:
    """The values to insert, by column; what is not named is left to its default, or null."""

    table: Table
    values: dict[str, str | None] = field(default_factory=dict)

    def insert(self) -> tuple[sql.Composed, list[str | None]]:
        """An INSERT and its parameters."""
        if not self.values:
            return sql.SQL("INSERT INTO {} DEFAULT VALUES").format(self.table.quoted), []
        statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            self.table.quoted,
            sql.SQL(", ").join(map(quoted, self.values)),
            sql.SQL(", ").join([sql.Placeholder()] * len(self.values)),
        )
        return statement, list(self.values.values())

    def insert_returning_key(self) -> tuple[sql.Composed, list[str | None]]:
        """An INSERT that answers with the primary key as text, for which the role has to see the row it wrote."""
        statement, values = self.insert()
        key = [sql.SQL("CAST({} AS text)").format(quoted(column)) for column in self.table.primary_key]
        return sql.SQL("{} RETURNING {}").format(statement, sql.SQL(", ").join(key)), values


async def sample_row(connection: Connection, table: Table, rng: random.Random) -> SampleRow:
    """A row for the table that differs from every other in its unique columns. Reads, and writes nothing.

    Raises UnusableTableError with the column and the reason when there is none: a type without known values, a foreign
    key to an empty table, constraints that no candidate satisfies, or a row of the application's that has to stand in
    the same place. Constraints over columns with defaults, and triggers, are left for the INSERT to find out.
    """
    required = {column.name: column for column in table.columns if column.required}
    values = await _referenced_keys(connection, table, set(required))
    offered: dict[str, list[str]] = {name: [value] for name, value in values.items()}
    for name, column in required.items():
        if name not in offered:
            offered[name] = await _accepted(connection, table, column, rng)
    for checks in _components([check for check in table.checks if not _mentions_default(check, table)]):
        for name, value in (await _satisfying(connection, table, checks, offered, rng)).items():
            if value is None:
                offered.pop(name, None)
            else:
                offered[name] = [value]
    return SampleRow(table, {name: choices[0] for name, choices in offered.items()})


def sample_changes(table: Table, current: Mapping[str, str | None], rng: random.Random) -> list[tuple[str, str]]:
    """Columns and another value for each, the likeliest first, of which Postgres may refuse some: a change of a row.

    ``current`` are the row's values, as text, of the columns to choose from.
    """
    related = {name for key in table.foreign_keys for name in key.columns}
    columns = [column for column in table.columns if column.name in current and column.name not in related]
    changes = []
    for column in sorted(columns, key=_plainness):
        moment = column.type.name in MOMENTS
        offered = candidates(column.type, unique=column.unique or not moment, rng=rng)
        others = [value for value in offered if value != current[column.name]]
        changes += [(column.name, value) for value in others[:CHANGES_OF_A_COLUMN]]
    return changes


def _plainness(column: Column) -> tuple[bool, int]:
    """Order of the columns to change: words first, then numbers; what is restricted or unique after the rest."""
    kinds = (TEXTS, (*INTEGERS, "numeric", "float4", "float8"), ("bool",), MOMENTS)
    rank = next((number for number, names in enumerate(kinds) if column.type.name in names), len(kinds))
    return column.unique or column.type.constrained, rank


async def _referenced_keys(connection: Connection, table: Table, required: set[str]) -> dict[str, str]:
    """Values for the columns of every foreign key that has to be satisfied, from rows that exist."""
    values: dict[str, str] = {}
    for key in _to_satisfy(table, required):
        pairs = list(zip(key.columns, key.referenced, strict=True))
        fixed = [(referenced, values[name]) for name, referenced in pairs if name in values]
        conditions: list[sql.Composable] = [
            sql.SQL("{} = {}").format(quoted("r", name), sql.Placeholder()) for name, _ in fixed
        ]
        query = sql.SQL("SELECT {} FROM {} AS r WHERE {}").format(
            sql.SQL(", ").join(sql.SQL("CAST({} AS text)").format(quoted("r", referenced)) for _, referenced in pairs),
            quoted(key.schema, key.table),
            sql.SQL(" AND ").join(conditions or [sql.SQL("true")]),
        )
        queries = [query]
        if all(table.column(name).unique for name in key.columns):  # one without a row here, if there is one
            unused = sql.SQL("NOT EXISTS (SELECT FROM {} AS t WHERE {})").format(
                table.quoted,
                sql.SQL(" AND ").join(
                    sql.SQL("{} = {}").format(quoted("t", name), quoted("r", referenced)) for name, referenced in pairs
                ),
            )
            queries.insert(0, sql.SQL("{} AND {}").format(query, unused))
        row = None
        for query in queries:
            parameters = [value for _, value in fixed]
            row = row or await (await connection.execute(query + sql.SQL(" LIMIT 1"), parameters)).fetchone()
        if row is None:
            raise UnusableTableError(
                f"{table}: {', '.join(key.columns)} must name a row of {key.schema}.{key.table} ({key.name}), "
                "which has none to offer; insert one there, or declare another table"
            )
        values |= dict(zip(key.columns, row, strict=True))
    return values


def _to_satisfy(table: Table, required: set[str]) -> list[ForeignKey]:
    """The foreign keys for which an existing row is needed: not those of which a column stays null (MATCH SIMPLE).

    Raises UnusableTableError when they make up a whole unique key, as a 1:1 table's does: the application may write
    that very row meanwhile. Its insert would fail, and what its upsert wrote would be deleted with the sample row.
    """
    found = []
    for key in table.foreign_keys:
        columns = [table.column(name) for name in key.columns]
        null = any(not column.required and not column.has_default for column in columns)
        if not null and any(column.name in required for column in columns):
            found.append(key)
    related = {name for key in found for name in key.columns}
    for unique in table.unique:
        if related.issuperset(unique):
            raise UnusableTableError(
                f"{table}: there is one row for each value of {', '.join(unique)} in the rows it refers to, so that a "
                "sample row would stand in for one of the application's; declare another table"
            )
    return found


async def _accepted(connection: Connection, table: Table, column: Column, rng: random.Random) -> list[str]:
    """Candidates for a column that its type takes: where a domain has a say, those that it accepts."""
    offered = candidates(column.type, unique=column.unique, rng=rng)
    if not offered:
        raise UnusableTableError(
            f"{table}: {column.name} is {column.sql_type}, for which no sample value is known; "
            "give the column a default, or declare another table"
        )
    if not column.type.constrained:
        return offered
    offered += [constant for rule in column.type.rules for constant in constants(rule)]
    accepted = await _castable(connection, column, offered)
    if not accepted:
        raise UnusableTableError(
            f"{table}: {column.name} is {column.sql_type}, which accepts none of the sample values "
            f"({'; '.join(column.type.rules)}); give the column a default, or declare another table"
        )
    return accepted


async def _castable(connection: Connection, column: Column, offered: Iterable[str]) -> list[str]:
    """Those of the values that the column's type takes, each asked of Postgres in a savepoint."""
    query = sql.SQL("SELECT CAST({} AS {})").format(sql.Placeholder(), catalog_sql(column.sql_type))
    accepted = []
    for value in dict.fromkeys(offered):
        try:
            async with connection.transaction():
                await connection.execute(query, (value,))
        except (DataError, IntegrityError):  # not of the type, or refused by the domain
            continue
        accepted.append(value)
    return accepted


def _mentions_default(check: Check, table: Table) -> bool:
    columns = [table.column(name) for name in check.columns]
    return any(column.has_default or column.generated for column in columns)


def _components(checks: Sequence[Check]) -> list[list[Check]]:
    """The checks, those together that share a column."""
    components: list[list[Check]] = []
    for check in checks:
        touching = [c for c in components if any(set(other.columns) & set(check.columns) for other in c)]
        components = [c for c in components if c not in touching]
        components.append([*(other for c in touching for other in c), check])
    return components


async def _satisfying(
    connection: Connection,
    table: Table,
    checks: Sequence[Check],
    offered: dict[str, list[str]],
    rng: random.Random,
) -> dict[str, str | None]:
    """The first combination of candidates for the checks' columns that all of them accept, as Postgres evaluates it."""
    names = list(dict.fromkeys(name for check in checks for name in check.columns))
    choices: dict[str, list[str | None]] = {}
    literals = [constant for check in checks for constant in constants(check.expression)]
    for name in names:
        column = table.column(name)
        if name in offered and len(offered[name]) == 1 and any(name in key.columns for key in table.foreign_keys):
            choices[name] = list(offered[name])
            continue
        nothing: list[str | None] = [] if column.not_null else [None]
        own = offered.get(name) or candidates(column.type, unique=column.unique, rng=rng)
        choices[name] = [*nothing, *own, *(x for x in await _castable(connection, column, literals) if x not in own)]
    most = max(2, int(MAX_COMBINATIONS ** (1 / len(names))))
    aliases = {name: quoted(f"candidates {number}") for number, name in enumerate(names)}
    query = sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} LIMIT 1").format(
        sql.SQL(", ").join(sql.SQL("{}.given").format(aliases[name]) for name in names),
        sql.SQL(" CROSS JOIN ").join(
            sql.SQL(
                "(SELECT x.given, CAST(x.given AS {}) AS {}, x.place "
                "FROM unnest(CAST({} AS text[])) WITH ORDINALITY AS x (given, place)) AS {}"
            ).format(catalog_sql(table.column(name).sql_type), quoted(name), sql.Placeholder(), aliases[name])
            for name in names
        ),
        sql.SQL(" AND ").join(sql.SQL("({}) IS NOT FALSE").format(catalog_sql(check.expression)) for check in checks),
        sql.SQL(" + ").join(sql.SQL("{}.place").format(aliases[name]) for name in names),
    )
    row = await (await connection.execute(query, [choices[name][:most] for name in names])).fetchone()
    if row is None:
        rules = "; ".join(f"{check.name}: {check.expression}" for check in checks)
        raise UnusableTableError(
            f"{table}: no sample value of {', '.join(names)} satisfies its constraint ({rules}); "
            "declare another table for the probe to use"
        )
    return dict(zip(names, row, strict=True))
