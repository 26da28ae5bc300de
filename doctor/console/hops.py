"""The hops of a change's path, and which of them each check of the doctor looks at."""

from __future__ import annotations

from enum import StrEnum


class Hop(StrEnum):
    """A part of the path from a row to the page; the last, the browser, is the page itself."""

    TABLE = "table"
    PUBLICATION = "publication"
    SLOT = "slot"
    REALTIME = "realtime"
    GATEWAY = "gateway"


HOPS: dict[str, Hop] = {
    "containers.network": Hop.REALTIME,
    "postgres.container": Hop.TABLE,
    "postgres.reachable": Hop.TABLE,
    "postgres.version": Hop.TABLE,
    "postgres.connections": Hop.TABLE,
    "postgres.superuser": Hop.SLOT,
    "postgres.wal_level": Hop.SLOT,
    "postgres.slots": Hop.SLOT,
    "postgres.senders": Hop.SLOT,
    "postgres.wal2json": Hop.SLOT,
    "postgres.wal_held": Hop.SLOT,
    "database.roles": Hop.TABLE,
    "database.schemas": Hop.REALTIME,
    "tables.publication": Hop.PUBLICATION,
    "tables.published": Hop.PUBLICATION,
    "tables.events": Hop.PUBLICATION,
    "tables.primary_key": Hop.TABLE,
    "tables.replica_identity": Hop.TABLE,
    "tables.schema_usage": Hop.TABLE,
    "tables.privileges": Hop.TABLE,
    "tables.row_security": Hop.TABLE,
    "tables.select_policies": Hop.TABLE,
    "tables.insert_policies": Hop.TABLE,
    "realtime.container": Hop.REALTIME,
    "realtime.alias": Hop.REALTIME,
    "realtime.health": Hop.REALTIME,
    "realtime.search_path": Hop.REALTIME,
    "database.migrations": Hop.REALTIME,
    "tenant.present": Hop.REALTIME,
    "tenant.extension": Hop.REALTIME,
    "tenant.encryption": Hop.REALTIME,
    "tenant.secret": Hop.REALTIME,
    "tenant.connection": Hop.REALTIME,
    "tenant.ssl": Hop.REALTIME,
    "tenant.publication": Hop.PUBLICATION,
    "tenant.limits": Hop.REALTIME,
    "realtime.management_closed": Hop.REALTIME,
    "realtime.management_api": Hop.REALTIME,
    "tenant.visible": Hop.REALTIME,
    "tenant.health": Hop.REALTIME,
    "realtime.metrics": Hop.REALTIME,
    "keys.claims": Hop.GATEWAY,
    "keys.expiry": Hop.GATEWAY,
    "keys.signature": Hop.REALTIME,
    "keys.websocket": Hop.REALTIME,
    "gateway.container": Hop.GATEWAY,
    "gateway.reachable": Hop.GATEWAY,
    "gateway.websocket": Hop.GATEWAY,
    "gateway.wrong_key": Hop.GATEWAY,
    "gateway.no_key": Hop.GATEWAY,
    "gateway.cors": Hop.GATEWAY,
    "gateway.rest": Hop.GATEWAY,
    "gateway.management_closed": Hop.GATEWAY,
    "gateway.idle_timeout": Hop.GATEWAY,
    "realtime.log": Hop.REALTIME,
}
"""Of every check of doctor.examination.CHECKS, by its id."""
