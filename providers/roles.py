"""Database roles that Realtime and the API need: made where missing, never altered, never dropped."""

from __future__ import annotations

from typing import Any

import pulumi
from psycopg import sql
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from providers.connection import Cursor, DatabaseProvider, transaction

BYPASS_RLS = frozenset({"service_role"})
"""Supabase's roles.sql makes service_role with BYPASSRLS and the other API roles without."""


def existing_roles(cursor: Cursor, roles: list[str]) -> list[str]:
    """Those of the roles that the server has, in the order asked."""
    cursor.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", [roles])
    found = {row["rolname"] for row in cursor}
    return [role for role in roles if role in found]


def create_role(role: str) -> sql.Composed:
    """CREATE ROLE of a role that people become by SET ROLE and never log in as."""
    bypass = sql.SQL(" BYPASSRLS" if role in BYPASS_RLS else " NOBYPASSRLS")
    return sql.SQL("CREATE ROLE {} NOLOGIN NOINHERIT").format(sql.Identifier(role)) + bypass


def _make_missing(roles: list[str]) -> dict[str, Any]:
    with transaction() as cursor:
        existing = existing_roles(cursor, roles)
        for role in roles:
            if role not in existing:
                cursor.execute(create_role(role))
    return {"roles": roles}


class DatabaseRolesProvider(DatabaseProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(id_="roles", outs=_make_missing(props["roles"]))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        with transaction() as cursor:
            live = {"roles": existing_roles(cursor, props["roles"])}
        return ReadResult(id_=id_, outs=live, inputs=live)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        return DiffResult(changes=_olds.get("roles") != _news["roles"])

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(outs=_make_missing(_news["roles"]))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Leaves the roles: they may own objects, and other services of the server use them."""


class DatabaseRoles(Resource, module="index", name="DatabaseRoles"):
    """The roles anon, authenticated, service_role and postgres, as far as the server lacks them."""

    roles: pulumi.Output[list[str]]

    def __init__(self, name: str, *, roles: list[str], opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(DatabaseRolesProvider(), name, {"roles": roles}, opts)
