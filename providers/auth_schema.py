"""Schema auth on a server that somebody else runs: made where missing, never replaced, never dropped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pulumi
from psycopg import sql
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from providers.connection import Cursor, DatabaseProvider, transaction

SOURCE = Path(__file__).parent.parent / "sql" / "auth.sql"
OWNER = "supabase_auth_admin"
"""Whose functions these are where Supabase Auth runs, so that it can replace them as its own."""
_STATEMENT = re.compile(
    r"^CREATE (?:TABLE IF NOT EXISTS (?P<table>auth\.\w+)|OR REPLACE FUNCTION (?P<function>auth\.\w+\(\))).*?;$",
    re.MULTILINE | re.DOTALL,
)


def definitions() -> dict[str, str]:
    """The statement that makes each table and function of sql/auth.sql, by its name as to_regclass or to_regprocedure
    takes it."""
    found = _STATEMENT.finditer(SOURCE.read_text())
    return {match["table"] or match["function"]: match[0] for match in found}


def existing(cursor: Cursor, objects: list[str]) -> list[str]:
    """Those of the objects that the database has, in the order asked."""
    cursor.execute(
        "SELECT o FROM unnest(%s::text[]) AS o "
        "WHERE CASE WHEN o LIKE '%%()' THEN to_regprocedure(o) IS NOT NULL ELSE to_regclass(o) IS NOT NULL END",
        [objects],
    )
    found = {row["o"] for row in cursor}
    return [name for name in objects if name in found]


def _make_missing(objects: list[str]) -> dict[str, Any]:
    statements = definitions()
    with transaction() as cursor:
        cursor.execute("SELECT to_regnamespace('auth') AS schema, to_regrole(%s) AS owner", [OWNER])
        row = cursor.fetchone()
        assert row is not None
        if row["schema"] is None:
            cursor.execute("CREATE SCHEMA auth; GRANT USAGE ON SCHEMA auth TO PUBLIC")
        present = existing(cursor, objects)
        for name in objects:
            if name in present:
                continue
            cursor.execute(statements[name].encode())
            if row["owner"] is not None and name.endswith("()"):
                function = sql.Identifier(*name.removesuffix("()").split("."))
                cursor.execute(sql.SQL("ALTER FUNCTION {}() OWNER TO {}").format(function, sql.Identifier(OWNER)))
    return {"objects": objects}


class AuthSchemaProvider(DatabaseProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(id_="auth", outs=_make_missing(props["objects"]))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        with transaction() as cursor:
            live = {"objects": existing(cursor, props["objects"])}
        return ReadResult(id_=id_, outs=live, inputs=live)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        return DiffResult(changes=_olds.get("objects") != _news["objects"])

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(outs=_make_missing(_news["objects"]))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Leaves the schema: policies call its functions, and the application's tables refer to its users."""


class AuthSchema(Resource, module="index", name="AuthSchema"):
    """The table and functions of sql/auth.sql, as far as the database lacks them.

    The stack's own Postgres gets all of that file at its first start.
    """

    objects: pulumi.Output[list[str]]

    def __init__(self, name: str, *, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(AuthSchemaProvider(), name, {"objects": list(definitions())}, opts)
