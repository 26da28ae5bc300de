"""Rows for a trial, made from the columns' types and from what the policies look at.

A policy tells rows apart by who is named in them and by what they hold, so there are rows of both kinds: of the
subject (every uuid, and every text that a policy compares with a claim, is the subject's own) and of somebody else;
each with every value of the booleans and enums that a policy mentions and with the constants in its expressions.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from psycopg import sql

from doctor.catalog import Kind
from doctor.sample_values import INTEGERS, TEXTS, candidates, constants
from providers.connection import Cursor
from rehearsal.catalog import Check, Column, Table
from rehearsal.trials import EMAIL, OTHER, SUB, UnusableTableError, run

CONTENTS = 6
"""How many different contents a table's rows have at most."""
COMBINATIONS = 2_000
"""How many combinations of candidates Postgres may try against one CHECK constraint."""
NUMBERS = (*INTEGERS, "numeric", "float4", "float8")
CLAIMS = re.compile(r"auth\.|jwt|current_setting", re.IGNORECASE)
"""What a policy mentions that looks at the token."""
SEED = 20260101
"""The same rows on every run."""


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """A row's values, in their types' input syntax."""

    values: Mapping[str, str | None]
    own: bool
    """It names the subject."""


def sample_rows(cursor: Cursor, table: Table) -> list[SampleRow]:
    """Rows that a table accepts, as far as its types and CHECK constraints say.

    Raises UnusableTableError. Writes nothing.
    """
    rng = random.Random(SEED)  # noqa: S311 - not a secret
    mentioned = _mentioned(table)
    base: dict[str, str | None] = {}
    for column in table.columns:
        if column.always or (column.has_default and not column.required and column.name not in mentioned):
            continue
        value = _first_accepted(cursor, table, column, rng)
        if value is not None:
            base[column.name] = value
    for check in table.checks:
        base |= _satisfying(cursor, table, check, base, rng)
    people = {column.name: _name_of_subject(column) for column in table.columns if _names_people(column, table)}
    people = {name: value for name, value in people.items() if not table.column(name).always}
    rows = []
    for content in itertools.islice(_contents(cursor, table, mentioned - set(people)), CONTENTS):
        others = {name: OTHER if table.column(name).type.name == "uuid" else base.get(name) for name in people}
        if people:
            rows.append(SampleRow(values={**base, **people, **content}, own=True))
        rows.append(SampleRow(values={**base, **others, **content}, own=False))
    return rows


def _mentioned(table: Table) -> set[str]:
    words = {
        word
        for policy in table.policies
        for expression in policy.expressions
        for word in re.findall(r"\w+", expression)
    }
    return {name for name in table.column_names if name in words}


def _names_people(column: Column, table: Table) -> bool:
    if column.type.name == "uuid":
        return True
    return column.type.name in TEXTS and any(
        CLAIMS.search(expression) and re.search(rf"\b{re.escape(column.name)}\b", expression)
        for policy in table.policies
        for expression in policy.expressions
    )


def _name_of_subject(column: Column) -> str:
    return EMAIL if "mail" in column.name else SUB


def _first_accepted(cursor: Cursor, table: Table, column: Column, rng: random.Random) -> str | None:
    """A value of the column's type; none when it needs none and no value of the type is known."""
    offered = candidates(column.type, unique=column.unique, rng=rng)
    if column.type.kind is Kind.DOMAIN:
        rules = [text for rule in column.type.rules for text in constants(rule)]
        offered = [value for value in (*offered, *rules) if _castable(cursor, column, value)]
    if offered:
        return offered[0]
    if column.required:
        raise UnusableTableError(
            f"{table}: no value of type {column.sql_type} is known for column {column.name}, which needs one; "
            "give it a default, or try the table's policies in tests/access.yaml with rows of your own"
        )
    return None


def _castable(cursor: Cursor, column: Column, value: str) -> bool:
    statement = sql.SQL("SELECT CAST({} AS {})").format(sql.Literal(value), sql.SQL(column.sql_type))
    return run(cursor, [(None, statement)])[0].code is None


def _satisfying(
    cursor: Cursor, table: Table, check: Check, base: Mapping[str, str | None], rng: random.Random
) -> dict[str, str | None]:
    """Other values for a CHECK constraint's columns, where the ones in hand do not satisfy it."""
    names = [name for name in check.columns if name in base]
    if not names:
        return {}
    choices: list[list[str | None]] = []
    literals = constants(check.expression)
    for name in names:
        column = table.column(name)
        own = candidates(column.type, unique=column.unique, rng=rng)
        more = [text for text in literals if text not in own and _castable(cursor, column, text)]
        choices.append([base[name], *own, *more, *([] if column.not_null else [None])])
    most = max(2, int(COMBINATIONS ** (1 / len(names))))
    unnamed = [name for name in check.columns if name not in base]
    columns = [
        sql.SQL(
            "(SELECT given AS {given}, CAST(given AS {type}) AS {name}, place AS {place} "
            "FROM unnest(CAST({values} AS text[])) WITH ORDINALITY AS x (given, place)) AS {alias}"
        ).format(
            given=sql.Identifier(f"given {name}"),
            type=sql.SQL(table.column(name).sql_type),
            name=sql.Identifier(name),
            place=sql.Identifier(f"place {name}"),
            values=sql.Literal(choice[:most]),
            alias=sql.Identifier(f"choice {name}"),
        )
        for name, choice in zip(names, choices, strict=True)
    ]
    nulls = [
        sql.SQL("(SELECT CAST(NULL AS {}) AS {}) AS {}").format(
            sql.SQL(table.column(name).sql_type), sql.Identifier(name), sql.Identifier(f"choice {name}")
        )
        for name in unnamed
    ]
    cursor.execute(
        sql.SQL("SELECT {} FROM {} WHERE ({}) IS NOT FALSE ORDER BY {} LIMIT 1").format(
            sql.SQL(", ").join(sql.Identifier(f"given {name}") for name in names),
            sql.SQL(" CROSS JOIN ").join([*columns, *nulls]),
            sql.SQL(check.expression),
            sql.SQL(" + ").join(sql.Identifier(f"place {name}") for name in names),
        )
    )
    found = cursor.fetchone()
    if found is None:
        raise UnusableTableError(
            f"{table}: no sample value of {', '.join(names)} satisfies constraint {check.name} ({check.expression}); "
            "try the table's policies in tests/access.yaml with rows of your own"
        )
    return {name: found[f"given {name}"] for name in names}


def _contents(cursor: Cursor, table: Table, mentioned: set[str]) -> Iterator[Mapping[str, str | None]]:
    """What rows may hold that makes a difference to a policy, the ordinary content first."""
    yield {}
    flags = [name for name in mentioned if table.column(name).type.name == "bool"]
    if flags:
        yield dict.fromkeys(sorted(flags), "false")
    expressions = [expression for policy in table.policies for expression in policy.expressions]
    literals = [text for expression in expressions for text in constants(expression)]
    for name in sorted(mentioned - set(flags)):
        column = table.column(name)
        if column.always or column.unique:
            continue
        if column.type.kind is Kind.ENUM:
            yield from ({name: label} for label in column.type.labels[1:])
        elif column.type.name in (*TEXTS, *NUMBERS):
            yield from ({name: text} for text in dict.fromkeys(literals) if _castable(cursor, column, text))
