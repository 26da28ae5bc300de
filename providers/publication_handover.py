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


def undeclared_extent(cursor: Cursor, publication: str) -> list[str]:
    """What the publication publishes other than whole tables named one by one, in the words of CREATE PUBLICATION.

    The Publication resource knows tables only: of what a schema or ALL TABLES brings along it cannot drop one, and
    it does not read column lists and row filters (resource_postgresql_publication.go, terraform-provider-postgresql).
    """
    cursor.execute(
        """
        SELECT 'ALL TABLES' AS extent FROM pg_publication WHERE pubname = %(publication)s AND puballtables
        UNION ALL
        SELECT 'TABLES IN SCHEMA ' || quote_ident(n.nspname)
        FROM pg_publication p JOIN pg_publication_namespace s ON s.pnpubid = p.oid
        JOIN pg_namespace n ON n.oid = s.pnnspid
        WHERE p.pubname = %(publication)s
        UNION ALL
        SELECT 'TABLE ' || quote_ident(n.nspname) || '.' || quote_ident(c.relname)
               || coalesce(' (' || (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
                                    FROM pg_attribute a
                                    WHERE a.attrelid = r.prrelid AND a.attnum = ANY(r.prattrs)) || ')', '')
               || coalesce(' WHERE ' || pg_get_expr(r.prqual, r.prrelid), '')
        FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
        JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE p.pubname = %(publication)s AND (r.prattrs IS NOT NULL OR r.prqual IS NOT NULL)
        ORDER BY 1
        """,
        {"publication": publication},
    )
    return [row["extent"] for row in cursor]


def name_tables_one_by_one(cursor: Cursor, publication: str) -> None:
    """Make the publication again with the same tables, events and owner, each table whole and by its own name."""
    cursor.execute(
        "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = %s ORDER BY 1, 2", [publication]
    )
    tables = [sql.Identifier(row["schemaname"], row["tablename"]) for row in cursor]
    cursor.execute(
        """
        SELECT pubviaroot, pg_get_userbyid(pubowner) AS owner,
               concat_ws(', ', CASE WHEN pubinsert THEN 'insert' END, CASE WHEN pubupdate THEN 'update' END,
                         CASE WHEN pubdelete THEN 'delete' END, CASE WHEN pubtruncate THEN 'truncate' END) AS events
        FROM pg_publication WHERE pubname = %s
        """,
        [publication],
    )
    row = cursor.fetchone()
    assert row is not None
    name = sql.Identifier(publication)
    cursor.execute(sql.SQL("DROP PUBLICATION {}").format(name))
    cursor.execute(
        sql.SQL("CREATE PUBLICATION {} {} WITH (publish = {}, publish_via_partition_root = {})").format(
            name,
            sql.SQL("FOR TABLE ") + sql.SQL(", ").join(tables) if tables else sql.SQL(""),
            row["events"],
            row["pubviaroot"],
        )
    )
    cursor.execute(sql.SQL("ALTER PUBLICATION {} OWNER TO {}").format(name, sql.Identifier(row["owner"])))


def _handed_over(props: dict[str, Any], extent: list[str]) -> dict[str, Any]:
    return {"publication": props["publication"], "tables": props["tables"], "undeclared_extent": extent}


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
        return CreateResult(id_=publication, outs=_handed_over(props, []))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """The handover happened once: which tables the publication has now, the Publication resource reads."""
        with transaction() as cursor:
            inputs = _handed_over(props, undeclared_extent(cursor, props["publication"]))
        return ReadResult(id_=id_, outs=inputs, inputs=inputs)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Only another publication is handed over anew; a changed list of tables is the Publication's business."""
        replaces = ["publication"] if _olds.get("publication") != _news["publication"] else []
        return DiffResult(changes=bool(replaces or _olds.get("undeclared_extent")), replaces=replaces)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Leaves a publication from which the Publication resource can drop each undeclared table."""
        with transaction() as cursor:
            if undeclared_extent(cursor, _news["publication"]):
                name_tables_one_by_one(cursor, _news["publication"])
        return UpdateResult(outs=_handed_over(_news, []))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Nothing to undo: the publication belongs to the Publication resource."""


class PublicationHandover(Resource, module="index", name="PublicationHandover"):
    """The moment at which an existing publication gives way to the declared one.

    The image's own empty publication, one left by an earlier stack on a kept volume, or one on an adopted server
    is dropped right before postgresql.Publication makes it with the declared tables; a publication that publishes
    anything undeclared is refused with an error, so that nobody is cut off unawares.

    Afterwards it sees what somebody added to the publication that Publication cannot see or drop: ``ALL TABLES``, all
    tables of a schema, a list of columns, a row filter. An update takes those away in one transaction.
    """

    def __init__(
        self, name: str, *, publication: str, tables: list[str], opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__(
            PublicationHandoverProvider(),
            name,
            {"publication": publication, "tables": tables, "undeclared_extent": []},
            opts,
        )
