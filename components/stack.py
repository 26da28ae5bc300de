"""A whole self-hosted Realtime, for this program or another to declare."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pulumi

from components.database import PUBLICATION, RealtimeDatabase
from components.external_postgres import external_address, external_faults
from components.gateway import Gateway
from components.network import LOOPBACK, StackNetwork
from components.postgres import PostgresServer
from components.realtime import SLOT, RealtimeServer
from providers.connection import server_parameters
from providers.external_server import ExternalServer
from realtime_versions import replication_slots
from settings import (
    EXPIRY_WARNING_DAYS,
    SUBSCRIBING_ROLES,
    ApiRole,
    PostgresSettings,
    Settings,
    SettingsError,
    Table,
)
from tokens import api_key


class RealtimeStack(pulumi.ComponentResource):
    """Network, Postgres, database objects, Realtime with its tenant, and the gateway: each after the one before.

    Resources: StackNetwork, PostgresServer (or, before all others, ExternalServer), RealtimeDatabase, RealtimeServer
    and Gateway, all named after ``settings.name``. ``outputs`` is what clients, the doctor and other programs need to
    know. Raises SettingsError, with nothing declared, for an external server that Realtime could not call as told.
    """

    outputs: dict[str, Any]

    def __init__(self, name: str, *, settings: Settings, opts: pulumi.ResourceOptions | None = None) -> None:
        if faults := external_faults(settings):
            raise SettingsError(faults)
        super().__init__("supabase-realtime:index:RealtimeStack", name, None, opts)
        postgres, realtime = settings.postgres, settings.realtime

        # No component waits for another: its resources do, each for what it needs, so that images are pulled and
        # plugins start while others work.
        child = pulumi.ResourceOptions(parent=self)
        data: pulumi.Resource
        ready: pulumi.Resource
        if postgres.external is None:
            network = StackNetwork(settings.name, stack=settings.stack, opts=child)
            ready = server = PostgresServer(
                f"{settings.name}-postgres", settings=postgres, stack=settings.stack, network=network, opts=child
            )
            address, data = server.address, server.volume
        else:
            ready = data = ExternalServer(
                "external-postgres",
                external=postgres.external,
                database=postgres.database,
                slots=replication_slots(realtime.release),
                slot=SLOT,
                publication=PUBLICATION,
                tables=settings.published,
                opts=child,
            )
            address = external_address(postgres.external)
            # But of a server that somebody else runs all is known to be well before anything is made.
            child = pulumi.ResourceOptions(parent=self, depends_on=[ready])
            network = StackNetwork(settings.name, stack=settings.stack, opts=child)
        database = RealtimeDatabase(
            f"{settings.name}-database",
            settings=postgres,
            tables=settings.tables,
            migrations=settings.migrations,
            server=ready,
            data=data,
            opts=child,
        )
        realtime_server = RealtimeServer(
            f"{settings.name}-realtime",
            settings=realtime,
            postgres=postgres,
            jwt=settings.jwt,
            address=address,
            database=database,
            data=data,
            stack=settings.stack,
            network=network,
            opts=child,
        )
        Gateway(
            f"{settings.name}-gateway",
            settings=settings.gateway,
            upstream=realtime.tenant,
            keys={role: api_key(settings.jwt, role) for role in (ApiRole.ANON, ApiRole.SERVICE_ROLE)},
            realtime=realtime_server,
            stack=settings.stack,
            network=network,
            opts=child,
        )
        warn_of_expiry(settings.jwt.expires_at, datetime.now(UTC))
        self.outputs = stack_outputs(settings)
        self.register_outputs(self.outputs)


def warn_of_expiry(expires_at: datetime, now: datetime) -> None:
    """Warn in every preview and update of the last days in which the keys are valid."""
    if (left := expires_at - now) < timedelta(days=EXPIRY_WARNING_DAYS):
        pulumi.log.warn(
            f"the anon and service_role keys end on {expires_at:%Y-%m-%d}, in {left.days} days; raise jwt.issued_at "
            "or jwt.lifetime_days, run `make up`, and hand out the new anon key"
        )


def stack_outputs(settings: Settings) -> dict[str, Any]:
    """What the stack tells the world; known before anything is made, since it follows from the settings."""
    host = LOOPBACK if settings.gateway.host == "0.0.0.0" else settings.gateway.host  # noqa: S104 - compared, not bound
    address = f"{host}:{settings.gateway.port}"
    return {
        "url": f"http://{address}",
        "realtime_url": f"ws://{address}/realtime/v1",
        "rest_url": f"http://{address}/realtime/v1/api",
        "tenant": settings.realtime.tenant,
        "anon_key": api_key(settings.jwt, ApiRole.ANON),
        "anon_key_expires": settings.jwt.expires_at.isoformat(),
        "service_role_key": pulumi.Output.secret(api_key(settings.jwt, ApiRole.SERVICE_ROLE)),
        "database": _database_output(settings.postgres),
        "database_password": pulumi.Output.secret(settings.postgres.password.get_secret_value()),
        "tables": [_table_output(table) for table in settings.tables if table.publish],
    }


def _database_output(postgres: PostgresSettings) -> dict[str, Any]:
    """Where this machine finds the database; of an external one also how TLS is used."""
    where = server_parameters(postgres)
    login = {"host": where["host"], "port": where["port"], "name": postgres.database, "user": postgres.user}
    if postgres.external is None:
        return login
    return login | {"external": True, "sslmode": where["sslmode"], "ca_file": postgres.external.ca_file}


def _table_output(table: Table) -> dict[str, Any]:
    return {
        "table": table.table,
        "read": [role.value for role in table.readers],
        "write": [role.value for role in SUBSCRIBING_ROLES if "INSERT" in table.privileges[role]],
        "events": [event.value for event in table.events],
    }
