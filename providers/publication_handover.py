"""Handing an existing publication over to the Publication resource, whose create does not adopt."""

from __future__ import annotations

from typing import Any

import pulumi
from psycopg import sql
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from providers.connection import Cursor, DatabaseError, DatabaseProvider, transaction


def published_tables(cursor: Cursor, publication: str) -> list[str] | None:
    """What the publication publishes, as schema.table; None when there is no such publication."""
    cursor.execute("SELECT 1 FROM pg_publication WHERE pubname = %s", [publication])
    if cursor.fetchone() is None:
        return None
    cursor.execute(
        "SELECT schemaname || '.' || tablename AS name FROM pg_publication_tables WHERE pubname = %s ORDER BY 1",
        [publication],
    )
    return [row["name"] for row in cursor]


class PublicationHandoverProvider(DatabaseProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        publication, declared = props["publication"], props["tables"]
        with transaction() as cursor:
            published = published_tables(cursor, publication)
            if undeclared := sorted(set(published or ()) - set(declared)):
                raise DatabaseError(
                    f"publication {publication} exists and publishes {', '.join(undeclared)}, which `tables` does not "
                    "declare, so taking it over would silence whoever listens to them: declare them, or take them out "
                    f"with ALTER PUBLICATION {publication} DROP TABLE"
                )
            if published is not None:
                cursor.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(publication)))
        return CreateResult(id_=publication, outs={"publication": publication, "tables": declared})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """The handover happened once: what the publication is now, the Publication resource reads."""
        inputs = {"publication": props["publication"], "tables": props["tables"]}
        return ReadResult(id_=id_, outs=inputs, inputs=inputs)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Only another publication is handed over anew; a changed list of tables is the Publication's business."""
        replaces = ["publication"] if _olds.get("publication") != _news["publication"] else []
        return DiffResult(changes=bool(replaces), replaces=replaces)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(outs={"publication": _news["publication"], "tables": _news["tables"]})

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Nothing to undo: the publication belongs to the Publication resource."""


class PublicationHandover(Resource, module="index", name="PublicationHandover"):
    """The moment at which an existing publication gives way to the declared one.

    The image's own empty publication, one left by an earlier stack on a kept volume, or one on an adopted server
    is dropped right before postgresql.Publication makes it with the declared tables; a publication that publishes
    anything undeclared is refused with an error, so that nobody is cut off unawares.
    """

    def __init__(
        self, name: str, *, publication: str, tables: list[str], opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__(PublicationHandoverProvider(), name, {"publication": publication, "tables": tables}, opts)
