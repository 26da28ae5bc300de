"""The database objects that Realtime depends on, in the order in which a change passes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import pulumi
import pulumi_postgresql as postgresql

from providers.auth_schema import AuthSchema
from providers.connection import server_parameters
from providers.migrations import ApplicationMigrations
from providers.publication_handover import PublicationHandover
from providers.roles import DatabaseRoles
from providers.table_security import TableSecurity
from settings import ApiRole, PostgresSettings, Table

PUBLICATION = "supabase_realtime"
REALTIME_SCHEMAS = ("_realtime", "realtime")
"""Tenants and their settings; per-tenant functions and the subscriptions table."""
REQUIRED_ROLES = [*ApiRole, "postgres"]
"""Without them every join is a CHANNEL_ERROR (`role "anon" does not exist`)."""


class RealtimeDatabase(pulumi.ComponentResource):
    """What a database must hold before Realtime can deliver a change from it, and who may see which row.

    Resources, each after the one before: DatabaseRoles; AuthSchema, on an external server; postgresql.Schema
    ``_realtime`` and ``realtime``; ApplicationMigrations, if there are any; TableSecurity per table; postgresql.Grant
    per role and schema, and per role and set of table privileges; PublicationHandover and postgresql.Publication.

    The first statement waits for ``server``. Everything is deleted with ``data``, without a statement in a database
    that goes as well, or that stays as it is.
    """

    schemas: list[postgresql.Schema]
    """Where Realtime keeps its tenants, and what it makes for each."""
    publication: postgresql.Publication

    def __init__(
        self,
        name: str,
        *,
        settings: PostgresSettings,
        tables: Sequence[Table],
        migrations: str | None,
        server: pulumi.Resource,
        data: pulumi.Resource,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("supabase-realtime:index:RealtimeDatabase", name, None, opts)
        where = server_parameters(settings)
        provider = postgresql.Provider(
            "postgresql",
            host=where["host"],
            port=where["port"],
            database=settings.database,
            username=settings.user,
            password=settings.password.get_secret_value(),
            sslmode=where.get("sslmode", "disable"),
            sslrootcert=where.get("sslrootcert"),
            superuser=True,
            connect_timeout=10,
            opts=pulumi.ResourceOptions(parent=self, additional_secret_outputs=["password"]),
        )
        own = pulumi.ResourceOptions(parent=self, deleted_with=data)
        bridged = pulumi.ResourceOptions.merge(own, pulumi.ResourceOptions(provider=provider))

        def after(opts: pulumi.ResourceOptions, *resources: pulumi.Resource) -> pulumi.ResourceOptions:
            return pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=list(resources)))

        roles = DatabaseRoles("roles", roles=[str(role) for role in REQUIRED_ROLES], opts=after(own, server))
        made: list[pulumi.Resource] = [roles]
        if settings.external is not None:
            made.append(AuthSchema("auth", opts=after(own, roles)))
        self.schemas = [
            postgresql.Schema(
                schema,
                name=schema,
                database=settings.database,
                owner=settings.user,
                if_not_exists=True,
                drop_cascade=True,
                opts=after(bridged, *made),
            )
            for schema in REALTIME_SCHEMAS
        ]
        ready: list[pulumi.Resource] = list(self.schemas)
        if migrations is not None:
            ready = [ApplicationMigrations("migrations", folder=migrations, opts=after(own, *ready))]
        secured = [self._secured(table, after(own, *ready)) for table in tables]
        grants = [
            *self._schema_grants(settings, tables, after(bridged, *ready)),
            *self._table_grants(settings, tables, after(bridged, *ready, *secured)),
        ]
        published = [table for table in tables if table.publish]
        names = sorted(table.table for table in published)
        handover = PublicationHandover(
            "handover", publication=PUBLICATION, tables=names, opts=after(own, *secured, *grants)
        )
        self.publication = postgresql.Publication(
            "publication",
            name=PUBLICATION,
            database=settings.database,
            owner=settings.user,
            tables=names,
            publish_params=list(published[0].events) if published else None,
            opts=after(bridged, handover),
        )
        self.register_outputs({"publication": self.publication.name})

    @staticmethod
    def _secured(table: Table, opts: pulumi.ResourceOptions) -> TableSecurity:
        return TableSecurity(
            table.table,
            schema=table.schema_name,
            table=table.name,
            policies=[policy.model_dump(mode="json", exclude_none=True) for policy in table.row_policies],
            privileges={role.value: list(held) for role, held in table.privileges.items()},
            replica_identity=table.replica_identity.value,
            force=table.force,
            exclusive=table.exclusive,
            opts=opts,
        )

    @staticmethod
    def _schema_grants(
        settings: PostgresSettings, tables: Sequence[Table], opts: pulumi.ResourceOptions
    ) -> Iterator[postgresql.Grant]:
        schemas = sorted({"realtime", *(table.schema_name for table in tables)})
        wanted = [(schema, role.value, ["USAGE"]) for schema in schemas for role in ApiRole]
        last: dict[str, postgresql.Grant] = {}
        for schema, role, privileges in [*wanted, ("_realtime", settings.user, ["CREATE", "USAGE"])]:
            last[schema] = postgresql.Grant(
                f"{role}-usage-{schema}",
                database=settings.database,
                role=role,
                schema=schema,
                object_type="schema",
                privileges=privileges,
                opts=_after_grant(opts, last.get(schema)),
            )
            yield last[schema]

    @staticmethod
    def _table_grants(
        settings: PostgresSettings, tables: Sequence[Table], opts: pulumi.ResourceOptions
    ) -> Iterator[postgresql.Grant]:
        sets: defaultdict[tuple[str, ApiRole, tuple[str, ...]], list[str]] = defaultdict(list)
        for table in tables:
            for role, privileges in table.privileges.items():
                if privileges:
                    sets[table.schema_name, role, privileges].append(table.name)
        last: dict[str, postgresql.Grant] = {}
        for (schema, role, privileges), names in sorted(sets.items()):
            last[schema] = postgresql.Grant(
                f"{role.value}-{'-'.join(privileges).lower()}-{schema}",
                database=settings.database,
                role=role.value,
                schema=schema,
                object_type="table",
                objects=sorted(names),
                privileges=list(privileges),
                # Another list of tables replaces the grant, and deleting the old one would revoke what the new
                # one has just granted. What must not stay, TableSecurity revokes.
                opts=_after_grant(
                    pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(retain_on_delete=True)),
                    last.get(schema),
                ),
            )
            yield last[schema]


def _after_grant(opts: pulumi.ResourceOptions, grant: postgresql.Grant | None) -> pulumi.ResourceOptions:
    """One after another on the same object: of two at once Postgres refuses one (`tuple concurrently updated`)."""
    if grant is None:
        return opts
    return pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[grant]))
