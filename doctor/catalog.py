"""Tables as Postgres's catalog describes them: columns, types, keys and constraints."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from psycopg import AsyncConnection, sql
from psycopg.rows import dict_row

Connection = AsyncConnection[Any]


class UnusableTableError(Exception):
    """The probe cannot use a table; the message names the table, the column and the cure."""


class Kind(StrEnum):
    """What sort of type it is, in the words of pg_type.typtype, with arrays taken apart from base types."""

    BASE = "base"
    ARRAY = "array"
    ENUM = "enum"
    DOMAIN = "domain"
    RANGE = "range"
    MULTIRANGE = "multirange"
    COMPOSITE = "composite"


@dataclass(frozen=True)
class Type:
    """A type as a column uses it, with its modifier.

    ``inner`` is an array's element, a range's bound, a multirange's range, a domain's base; ``rules`` are the
    constraints of a domain, and of those under it.
    """

    name: str
    kind: Kind = Kind.BASE
    modifier: int = -1
    labels: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    attributes: int = 0
    inner: Type | None = None

    @property
    def constrained(self) -> bool:
        """Whether a value of the right form may still be refused: by a domain, or by one inside it."""
        return self.kind in (Kind.DOMAIN, Kind.COMPOSITE) or (self.inner is not None and self.inner.constrained)


@dataclass(frozen=True)
class Column:
    """A column of a table. ``sql_type`` is its type in SQL, with the modifier; ``cast`` is the same without."""

    name: str
    number: int
    type: Type
    sql_type: str
    cast: str
    not_null: bool = False
    has_default: bool = False
    generated: bool = False
    unique: bool = False

    @property
    def required(self) -> bool:
        """Whether an INSERT has to give it a value."""
        return self.not_null and not self.has_default and not self.generated


@dataclass(frozen=True)
class ForeignKey:
    """A foreign key: these columns must name an existing row of another table, or one of them be null."""

    name: str
    columns: tuple[str, ...]
    schema: str
    table: str
    referenced: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """A CHECK constraint and the columns it looks at."""

    name: str
    columns: tuple[str, ...]
    expression: str


@dataclass(frozen=True)
class Table:
    """A table as the catalog describes it. ``unique`` are the columns of each unique index, the primary key's too."""

    schema: str
    name: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    foreign_keys: tuple[ForeignKey, ...] = ()
    checks: tuple[Check, ...] = ()
    unique: tuple[tuple[str, ...], ...] = ()

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        """Its qualified name, for a statement without parameters."""
        return sql.Identifier(self.schema, self.name)

    @property
    def quoted(self) -> sql.Identifier:
        """Its qualified name, for a statement with parameters."""
        return quoted(self.schema, self.name)

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    @property
    def key_columns(self) -> tuple[Column, ...]:
        """The columns of the primary key, in its order."""
        return tuple(self.column(name) for name in self.primary_key)


def quoted(*names: str) -> sql.Identifier:
    """A name in a statement with parameters, where psycopg would take a % in it for a placeholder."""
    return sql.Identifier(*(name.replace("%", "%%") for name in names))


def catalog_sql(text: str) -> sql.SQL:
    """SQL text that Postgres itself printed from its catalog (a type's name, a constraint's expression).

    For a statement with parameters.
    """
    return sql.SQL(text.replace("%", "%%"))


TABLE = """
    SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')
"""
COLUMNS = """
    SELECT a.attname AS name, a.attnum AS number, a.atttypid AS type, a.atttypmod AS modifier,
           format_type(a.atttypid, a.atttypmod) AS sql_type, a.atttypid::regtype::text AS cast,
           a.attnotnull OR t.typnotnull AS not_null,
           a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL AS has_default,
           a.attgenerated <> '' AS generated
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
"""
CONSTRAINTS = """
    SELECT o.conname AS name, o.contype::text AS kind, o.conkey AS numbers,
           n.nspname AS schema, f.relname AS table,
           (SELECT array_agg(a.attname::text ORDER BY k.position)
            FROM unnest(o.confkey) WITH ORDINALITY AS k (number, position)
            JOIN pg_attribute a ON a.attrelid = o.confrelid AND a.attnum = k.number) AS referenced,
           CASE WHEN o.contype = 'c' THEN pg_get_expr(o.conbin, o.conrelid) END AS expression
    FROM pg_constraint o
    LEFT JOIN pg_class f ON f.oid = o.confrelid
    LEFT JOIN pg_namespace n ON n.oid = f.relnamespace
    WHERE o.conrelid = %s AND o.contype IN ('p', 'u', 'x', 'f', 'c')
    ORDER BY o.contype, o.conname
"""
UNIQUE_INDEXES = """
    SELECT (i.indkey::int2[])[0:i.indnkeyatts - 1] AS numbers FROM pg_index i WHERE i.indrelid = %s AND i.indisunique
    ORDER BY i.indexrelid
"""
TYPE = """
    SELECT t.typname AS name, t.typtype::text AS kind, t.typcategory::text AS category,
           CASE WHEN t.typtype <> 'd' AND t.typcategory = 'A' THEN t.typelem ELSE t.typbasetype END AS inner,
           t.typtypmod AS modifier,
           coalesce(r.rngsubtype, m.rngtypid, 0) AS range,
           (SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid)
               AS labels,
           (SELECT array_agg(pg_get_constraintdef(o.oid) ORDER BY o.conname) FROM pg_constraint o
            WHERE o.contypid = t.oid) AS rules,
           (SELECT count(*) FROM pg_attribute a
            WHERE a.attrelid = t.typrelid AND t.typrelid <> 0 AND a.attnum > 0 AND NOT a.attisdropped) AS attributes
    FROM pg_type t
    LEFT JOIN pg_range r ON r.rngtypid = t.oid
    LEFT JOIN pg_range m ON m.rngmultitypid = t.oid
    WHERE t.oid = %s
"""
KINDS = {"e": Kind.ENUM, "d": Kind.DOMAIN, "r": Kind.RANGE, "m": Kind.MULTIRANGE, "c": Kind.COMPOSITE}


async def read_table(connection: Connection, schema: str, name: str) -> Table:
    """The table as the catalog has it. Raises UnusableTableError when it is not there, or has no primary key."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        found = await (await cursor.execute(TABLE, (schema, name))).fetchone()
        if found is None:
            raise UnusableTableError(f"{schema}.{name}: there is no such table; create it, or run `pulumi up`")
        relation = found["oid"]
        attributes = await (await cursor.execute(COLUMNS, (relation,))).fetchall()
        constraints = await (await cursor.execute(CONSTRAINTS, (relation,))).fetchall()
        indexes = [row["numbers"] for row in await (await cursor.execute(UNIQUE_INDEXES, (relation,))).fetchall()]
        unique = {number for numbers in indexes for number in numbers}
        unique |= {number for row in constraints if row["kind"] == "x" for number in row["numbers"]}
        columns = tuple(
            [
                Column(
                    name=row["name"],
                    number=row["number"],
                    type=await _type(connection, row["type"], row["modifier"]),
                    sql_type=row["sql_type"],
                    cast=row["cast"],
                    not_null=row["not_null"],
                    has_default=row["has_default"],
                    generated=row["generated"],
                    unique=row["number"] in unique,
                )
                for row in attributes
            ]
        )
    names = {column.number: column.name for column in columns}
    keys = [row for row in constraints if row["kind"] == "p"]
    if not keys:
        raise UnusableTableError(
            f"{schema}.{name}: has no primary key, and Realtime sends no rows of such a table "
            "(Error 400: Bad Request, no primary key); add one"
        )
    return Table(
        schema=schema,
        name=name,
        columns=columns,
        primary_key=tuple(names[number] for number in keys[0]["numbers"]),
        foreign_keys=tuple(
            ForeignKey(
                name=row["name"],
                columns=tuple(names[number] for number in row["numbers"]),
                schema=row["schema"],
                table=row["table"],
                referenced=tuple(row["referenced"]),
            )
            for row in constraints
            if row["kind"] == "f"
        ),
        checks=tuple(
            Check(row["name"], tuple(names[number] for number in row["numbers"]), row["expression"])
            for row in constraints
            # A check without columns, or of the whole row (number 0), offers nothing to choose.
            if row["kind"] == "c" and row["numbers"] and 0 not in row["numbers"]
        ),
        # An index with an expression (number 0) is not of columns alone.
        unique=tuple(tuple(names[number] for number in numbers) for numbers in indexes if 0 not in numbers),
    )


async def _type(connection: Connection, oid: int, modifier: int) -> Type:
    async with connection.cursor(row_factory=dict_row) as cursor:
        row = await (await cursor.execute(TYPE, (oid,))).fetchone()
    assert row is not None, f"pg_type has no row {oid}"
    kind = KINDS.get(row["kind"], Kind.ARRAY if row["category"] == "A" else Kind.BASE)
    inner = row["range"] if kind in (Kind.RANGE, Kind.MULTIRANGE) else row["inner"]
    inner_modifier = row["modifier"] if kind is Kind.DOMAIN else modifier
    base = await _type(connection, inner, inner_modifier) if inner and kind is not Kind.BASE else None
    return Type(
        name=row["name"],
        kind=kind,
        modifier=modifier,
        labels=tuple(row["labels"] or ()),
        rules=tuple(row["rules"] or ()) + (base.rules if base and kind is Kind.DOMAIN else ()),
        attributes=row["attributes"],
        inner=base,
    )
