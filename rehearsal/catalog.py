"""The facts of a table that decide who may see and change its rows, read from the catalog."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg import sql

from doctor.catalog import KINDS, Kind, Type
from doctor.catalog import TYPE as TYPE_QUERY
from providers.connection import Cursor
from providers.table_security import COMMANDS, REPLICA_IDENTITIES
from settings import ApiRole, Event

ROLES = tuple(role.value for role in ApiRole)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column as an INSERT sees it."""

    name: str
    type: Type
    sql_type: str
    """The type in SQL, with its modifier."""
    not_null: bool
    has_default: bool
    always: bool
    """Its value is the server's own: generated, or GENERATED ALWAYS AS IDENTITY."""
    unique: bool

    @property
    def required(self) -> bool:
        return self.not_null and not self.has_default and not self.always


@dataclass(frozen=True, kw_only=True)
class Check:
    """A CHECK constraint and the columns it looks at."""

    name: str
    columns: tuple[str, ...]
    expression: str


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A row level security policy in the catalog's words."""

    name: str
    command: str
    """all, select, insert, update or delete."""
    permissive: bool
    roles: tuple[str, ...]
    """With ``public`` for everybody."""
    using: str | None
    check: str | None

    def applies_to(self, role: str, command: str) -> bool:
        return self.command in ("all", command) and bool({"public", role} & set(self.roles))

    @property
    def expressions(self) -> tuple[str, ...]:
        return tuple(expression for expression in (self.using, self.check) if expression is not None)

    def __str__(self) -> str:
        kind = "policy" if self.permissive else "restrictive policy"
        using = f" USING ({self.using})" if self.using is not None else ""
        check = f" WITH CHECK ({self.check})" if self.check is not None else ""
        return f"{kind} “{self.name}” for {self.command} to {', '.join(self.roles)}{using}{check}"


@dataclass(frozen=True, kw_only=True)
class Privileges:
    """What a role holds on a table: for the whole table, or else the columns."""

    table: frozenset[str]
    select: tuple[str, ...]
    insert: tuple[str, ...]
    update: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, its rules and its place in the publication."""

    schema: str
    name: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    checks: tuple[Check, ...]
    row_security: bool
    replica_identity: str
    identity_columns: tuple[str, ...]
    """What a change's old record holds: the replica identity's columns."""
    policies: tuple[Policy, ...]
    privileges: Mapping[str, Privileges]
    """By API role."""
    published: frozenset[Event]
    """The events of the publication that has the table; empty when none has."""

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)


TABLE = """
    SELECT c.oid, c.relrowsecurity, c.relreplident, coalesce(p.events, '{}') AS events,
           coalesce((SELECT i.indkey::int2[] FROM pg_index i
                     WHERE i.indrelid = c.oid AND i.indisprimary), '{}') AS primary_key,
           coalesce((SELECT i.indkey::int2[] FROM pg_index i
                     WHERE i.indrelid = c.oid AND i.indisreplident), '{}') AS replica_index
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN LATERAL (
        SELECT array_remove(ARRAY[CASE WHEN pubinsert THEN 'insert' END, CASE WHEN pubupdate THEN 'update' END,
                                  CASE WHEN pubdelete THEN 'delete' END], NULL) AS events
        FROM pg_publication_tables t JOIN pg_publication USING (pubname)
        WHERE t.schemaname = n.nspname AND t.tablename = c.relname AND t.pubname = %(publication)s
    ) p ON true
    WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND c.relkind IN ('r', 'p')
"""
COLUMNS = """
    SELECT a.attname AS name, a.attnum AS number, a.atttypid AS type, a.atttypmod AS modifier,
           format_type(a.atttypid, a.atttypmod) AS sql_type,
           a.attnotnull OR t.typnotnull AS not_null,
           a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL AS has_default,
           a.attgenerated <> '' OR a.attidentity = 'a' AS always,
           EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisunique
                   AND a.attnum = ANY (i.indkey::int2[])) AS "unique"
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
"""
CHECKS = """
    SELECT conname AS name, conkey AS numbers, pg_get_expr(conbin, conrelid) AS expression
    FROM pg_constraint WHERE conrelid = %s AND contype = 'c' AND conkey IS NOT NULL ORDER BY conname
"""
POLICIES = """
    SELECT p.polname AS name, p.polcmd AS command, p.polpermissive AS permissive,
           ARRAY(SELECT CASE r WHEN 0 THEN 'public' ELSE pg_get_userbyid(r) END
                 FROM unnest(p.polroles) r ORDER BY 1) AS roles,
           pg_get_expr(p.polqual, p.polrelid) AS using, pg_get_expr(p.polwithcheck, p.polrelid) AS check
    FROM pg_policy p WHERE p.polrelid = %s ORDER BY p.polname
"""
PRIVILEGES = """
    SELECT role, array_remove(ARRAY(
               SELECT CASE WHEN has_table_privilege(role, %(oid)s::oid, privilege) THEN privilege END
               FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) privilege), NULL) AS table,
           (SELECT array_agg(held) FROM (
               SELECT array_to_string(array_remove(ARRAY[
                          CASE WHEN has_column_privilege(role, %(oid)s::oid, attnum, 'SELECT') THEN 'S' END,
                          CASE WHEN has_column_privilege(role, %(oid)s::oid, attnum, 'INSERT') THEN 'I' END,
                          CASE WHEN has_column_privilege(role, %(oid)s::oid, attnum, 'UPDATE') THEN 'U' END
                      ], NULL), '') AS held
               FROM pg_attribute WHERE attrelid = %(oid)s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
           ) columns) AS columns
    FROM unnest(%(roles)s::text[]) role
"""


class Catalog:
    """Reads tables, and every type once."""

    def __init__(self, cursor: Cursor, publication: str) -> None:
        self._cursor = cursor
        self._publication = publication
        self._types: dict[tuple[int, int], Type] = {}

    def table(self, schema: str, name: str) -> Table | None:
        """The facts of a table, None when there is no such table."""
        where = {"schema": schema, "table": name, "publication": self._publication}
        relation = self._cursor.execute(TABLE, where).fetchone()
        if relation is None:
            return None
        oid = relation["oid"]
        attributes = self._cursor.execute(COLUMNS, [oid]).fetchall()
        names = {row["number"]: row["name"] for row in attributes}
        checks = self._cursor.execute(CHECKS, [oid]).fetchall()
        policies = self._cursor.execute(POLICIES, [oid]).fetchall()
        privileges = self._cursor.execute(PRIVILEGES, {"oid": oid, "roles": list(ROLES)}).fetchall()
        primary_key = tuple(names[number] for number in relation["primary_key"])
        replica_identity = REPLICA_IDENTITIES[relation["relreplident"]]
        return Table(
            schema=schema,
            name=name,
            columns=tuple(
                Column(
                    name=row["name"],
                    type=self._type(row["type"], row["modifier"]),
                    sql_type=row["sql_type"],
                    not_null=row["not_null"],
                    has_default=row["has_default"],
                    always=row["always"],
                    unique=row["unique"],
                )
                for row in attributes
            ),
            primary_key=primary_key,
            checks=tuple(
                Check(
                    name=row["name"],
                    columns=tuple(names[number] for number in row["numbers"]),
                    expression=row["expression"],
                )
                for row in checks
                if 0 not in row["numbers"]
            ),
            row_security=relation["relrowsecurity"],
            replica_identity=replica_identity,
            identity_columns={
                "default": primary_key,
                "full": tuple(names.values()),
                "nothing": (),
                "index": tuple(names[number] for number in relation["replica_index"]),
            }[replica_identity],
            policies=tuple(
                Policy(
                    name=row["name"],
                    command=COMMANDS[row["command"]],
                    permissive=row["permissive"],
                    roles=tuple(row["roles"]),
                    using=row["using"],
                    check=row["check"],
                )
                for row in policies
            ),
            privileges={
                row["role"]: Privileges(
                    table=frozenset(row["table"]),
                    select=_holding("S", names, row["columns"]),
                    insert=_holding("I", names, row["columns"]),
                    update=_holding("U", names, row["columns"]),
                )
                for row in privileges
            },
            published=frozenset(Event(event) for event in relation["events"]),
        )

    def _type(self, oid: int, modifier: int) -> Type:
        if (oid, modifier) not in self._types:
            self._types[oid, modifier] = self._read_type(oid, modifier)
        return self._types[oid, modifier]

    def _read_type(self, oid: int, modifier: int) -> Type:
        row = self._cursor.execute(TYPE_QUERY, [oid]).fetchone()
        assert row is not None, f"pg_type has no row {oid}"
        kind = KINDS.get(row["kind"], Kind.ARRAY if row["category"] == "A" else Kind.BASE)
        inner = row["range"] if kind in (Kind.RANGE, Kind.MULTIRANGE) else row["inner"]
        base = None
        if inner and kind is not Kind.BASE:
            base = self._type(inner, row["modifier"] if kind is Kind.DOMAIN else modifier)
        return Type(
            name=row["name"],
            kind=kind,
            modifier=modifier,
            labels=tuple(row["labels"] or ()),
            rules=tuple(row["rules"] or ()),
            attributes=row["attributes"],
            inner=base,
        )


def _holding(letter: str, names: Mapping[int, str], held: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(name for name, letters in zip(names.values(), held or (), strict=True) if letter in letters)
