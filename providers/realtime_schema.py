"""The schema that Realtime has migrated, which an older Realtime may not be able to use."""

from __future__ import annotations

from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from providers.connection import Cursor, DatabaseError, DatabaseProvider, transaction
from realtime_versions import POINTS_OF_NO_RETURN, Version


def downgrade_fault(cursor: Cursor, version: Version) -> str | None:
    """Why a version of Realtime cannot use this database, with the cure; None when it can.

    Asked from the migrations that Realtime has recorded, so that it does not matter which image made them.
    """
    cursor.execute("SELECT to_regclass('realtime.schema_migrations') AS migrations")
    row = cursor.fetchone()
    if row is None or row["migrations"] is None:
        return None
    cursor.execute("SELECT version FROM realtime.schema_migrations")
    applied = {row["version"] for row in cursor}
    passed = [point for point in POINTS_OF_NO_RETURN if point.since > version and point.migration in applied]
    if not passed:
        return None
    last = passed[-1]
    return (
        f"realtime.image: Realtime {version} cannot use this database any more: {last.since} or newer has migrated it "
        f"({last.migration} in realtime.schema_migrations) and {last.consequence}; set realtime.image to {last.since} "
        "or newer, or restore a backup into a new stack of the older one (docs/upgrade.md)"
    )


def _check(realtime_version: str) -> None:
    if realtime_version:
        with transaction() as cursor:
            fault = downgrade_fault(cursor, Version.parse(realtime_version))
        if fault is not None:
            raise DatabaseError(fault)


class RealtimeSchemaProvider(DatabaseProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        _check(props["realtime_version"])
        return CreateResult(id_="realtime-schema", outs={"realtime_version": props["realtime_version"]})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Realtime migrates its schema by itself whenever it starts: none of that is drift."""
        return ReadResult(id_=id_, outs=props, inputs=props)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Says at preview already that a version cannot use the schema."""
        changed = _olds.get("realtime_version") != _news["realtime_version"]
        if changed:
            _check(_news["realtime_version"])
        return DiffResult(changes=changed)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(outs={"realtime_version": _news["realtime_version"]})

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Leaves what Realtime has made."""


class RealtimeSchema(Resource, module="index", name="RealtimeSchema"):
    """A database whose migrations the version of Realtime that comes next can use; the empty version is any.

    Raises DatabaseError, at preview already, when a newer Realtime has left one behind that it cannot.
    """

    def __init__(self, name: str, *, realtime_version: str, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(RealtimeSchemaProvider(), name, {"realtime_version": realtime_version}, opts)
