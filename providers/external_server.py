"""A Postgres that somebody else runs: whether it can serve Realtime, said before anything is touched."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import pulumi
from psycopg import sql
from pulumi.dynamic import (
    CheckFailure,
    CheckResult,
    ConfigureRequest,
    CreateResult,
    DiffResult,
    ReadResult,
    Resource,
    UpdateResult,
)

from providers.connection import Cursor, DatabaseError, DatabaseProvider, connection_parameters, transaction
from providers.publication_handover import published_tables
from settings import ExternalPostgres, PostgresSettings, load_section

OLDEST = 150_000
"""Postgres 15, the first with column lists, row filters and schemas in a publication, which the handover reads."""
PLUGIN = "wal2json"
OWN_SLOTS = "supabase_realtime_%"
"""Slots of Realtime, by their names: slot_name of the tenant, and the broadcast slot of newer versions."""
HIDDEN_ROLES = ("anon", "authenticated")
BYPASSING_ROLE = "service_role"
SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""The message by which a client asks Postgres for TLS (Postgres's manual, 55.7 Message Formats)."""
HANDSHAKE_SECONDS = 10
INPUTS = ("host", "port", "database", "slots", "slot", "publication", "tables", "server")


def unmet(cursor: Cursor, *, slots: int) -> Iterator[str]:
    """What the server must have for Realtime, has not got, and nothing that runs inside the database can give it.

    ``slots`` is how many replication slots Realtime holds. One line each: what is, and the superuser's cure.
    """
    cursor.execute(
        """
        SELECT current_setting('server_version_num')::int AS number, current_setting('server_version') AS version,
               current_user AS login, r.rolsuper AS superuser, pg_is_in_recovery() AS standby,
               current_setting('wal_level') AS wal_level,
               current_setting('output_plugin_libraries', true) AS plugins
        FROM pg_roles r WHERE r.rolname = current_user
        """
    )
    server = cursor.fetchone()
    assert server is not None
    if server["number"] < OLDEST:
        yield f"it is Postgres {server['version']}: upgrade it to 15 or newer"
    if server["standby"]:
        yield "it is a standby, which takes no change: name the primary in postgres.external.host"
    if not server["superuser"]:
        yield (
            f"{server['login']} is no superuser, and Realtime's functions set log_min_messages, which only one may: "
            f"`ALTER ROLE {sql.Identifier(server['login']).as_string(cursor)} SUPERUSER`, or set postgres.user to one"
        )
    if server["wal_level"] != "logical":
        yield f"wal_level is {server['wal_level']}: `ALTER SYSTEM SET wal_level = logical`, then restart Postgres"
    plugins = server["plugins"]
    if plugins is not None and PLUGIN not in {name.strip(' "') for name in plugins.split(",")}:
        yield (
            f"output_plugin_libraries is {plugins!r}: "
            f"`ALTER SYSTEM SET output_plugin_libraries = {', '.join([*filter(None, [plugins]), PLUGIN])}`, "
            "then `SELECT pg_reload_conf()`"
        )
    if server["superuser"] and (missing := _missing_plugin(cursor)):
        yield f"{missing}: install {PLUGIN} on the server, package postgresql-{server['number'] // 10_000}-{PLUGIN}"
    yield from _places(cursor, slots)
    yield from _role_attributes(cursor)


def _missing_plugin(cursor: Cursor) -> str | None:
    """Why the plugin cannot be loaded, None when it can. No catalog has it, and a slot would want wal_level logical."""
    try:
        with cursor.connection.transaction():
            cursor.execute(sql.SQL("LOAD {}").format(PLUGIN))
    except psycopg.Error as refused:
        return str(refused.diag.message_primary)
    return None


def _places(cursor: Cursor, slots: int) -> Iterator[str]:
    cursor.execute(
        """
        SELECT current_setting('max_replication_slots')::int AS slots,
               current_setting('max_wal_senders')::int AS senders,
               (SELECT count(*) FROM pg_replication_slots WHERE slot_name NOT LIKE %(own)s) AS others,
               (SELECT count(*) FROM pg_stat_replication) AS sending
        """,
        {"own": OWN_SLOTS},
    )
    row = cursor.fetchone()
    assert row is not None
    if row["slots"] - row["others"] < slots:
        yield (
            f"others use {row['others']} of {row['slots']} replication slots, and Realtime needs {slots}: drop what "
            "nobody uses (pg_replication_slots), or "
            f"`ALTER SYSTEM SET max_replication_slots = {row['others'] + slots}`, then restart Postgres"
        )
    if row["senders"] < slots:
        yield (
            f"max_wal_senders is {row['senders']}: `ALTER SYSTEM SET max_wal_senders = {row['sending'] + slots}`, "
            "then restart Postgres"
        )


def _role_attributes(cursor: Cursor) -> Iterator[str]:
    """Roles that exist are not altered: other services of the server use them."""
    cursor.execute(
        "SELECT rolname, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = ANY(%s) ORDER BY 1",
        [[*HIDDEN_ROLES, BYPASSING_ROLE]],
    )
    for role in cursor.fetchall():
        name = role["rolname"]
        if name == BYPASSING_ROLE:
            if not (role["rolbypassrls"] or role["rolsuper"]):
                yield f"role {name} is under row level security, and sees no row: `ALTER ROLE {name} BYPASSRLS`"
        elif role["rolsuper"] or role["rolbypassrls"]:
            yield f"role {name} passes by every policy: `ALTER ROLE {name} NOSUPERUSER NOBYPASSRLS`"


def in_the_way(cursor: Cursor, *, publication: str, tables: Sequence[str], slot: str) -> Iterator[str]:
    """What of somebody else's a first update would have to take away from them."""
    if undeclared := sorted(set(published_tables(cursor, publication) or ()) - set(tables)):
        yield (
            f"publication {publication} publishes {', '.join(undeclared)}, which `tables` does not declare: declare "
            f"them, or `ALTER PUBLICATION {publication} DROP TABLE {', '.join(undeclared)}`"
        )
    cursor.execute("SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s AND active", [slot])
    if (reader := cursor.fetchone()) is not None:
        yield (
            f"slot {slot} is being read by another Realtime (pid {reader['active_pid']}): stop that one, since two "
            "of them on one slot take each other's changes"
        )


def certificate_fault(external: ExternalPostgres) -> str | None:
    """Why Realtime would not accept the server's certificate, None when it would.

    Realtime compares the host name too, also for verify-ca (postgrex 0.22.4, Postgrex.Protocol.default_ssl_opts, and
    the name under which it connects as server_name_indication): the name that containers use must be in it.
    """
    if not external.sslmode.verifies:
        return None
    context = ssl.create_default_context(cafile=external.ca_file)
    with socket.create_connection((external.host, external.port), HANDSHAKE_SECONDS) as plain:
        plain.sendall(SSL_REQUEST)
        if plain.recv(1) != b"S":
            return "the server has ssl off: turn it on"
        try:
            with context.wrap_socket(plain, server_hostname=external.container_host):
                return None
        except ssl.SSLCertVerificationError as refused:
            return (
                f"its certificate is not good for {external.container_host}, the name by which Realtime calls it and "
                f"which Realtime compares ({refused.verify_message}): set postgres.external.address_in_network to a "
                "name that is in the certificate"
            )


def identity(cursor: Cursor) -> str:
    """Which database cluster this is: the same for its standbys, another one for a copy by dump and restore."""
    cursor.execute("SELECT system_identifier::text FROM pg_control_system()")
    row = cursor.fetchone()
    assert row is not None
    return str(row["system_identifier"])


def readiness_faults(
    external: ExternalPostgres, *, slots: int, publication: str, tables: Sequence[str], slot: str, known: str | None
) -> list[str]:
    """Everything that keeps the server from being used, nothing when all is well. Changes nothing.

    ``known`` is the identity of the server that the stack was made on, None before its first update.
    """
    try:
        with transaction() as cursor:
            live = identity(cursor)
            if known is not None and known != live:
                return [moved(external.host)]
            faults = list(unmet(cursor, slots=slots))
            if known is None:
                faults += in_the_way(cursor, publication=publication, tables=tables, slot=slot)
        if fault := certificate_fault(external):
            faults.append(fault)
    except DatabaseError as unreachable:
        return [str(unreachable)]
    except psycopg.errors.InsufficientPrivilege as refused:
        login = connection_parameters()["user"]
        return [f"{login} is no superuser ({refused.diag.message_primary}): set postgres.user to one"]
    return faults


def moved(host: str) -> str:
    """The fault of another server than the one that the stack was made on."""
    return (
        f"{host} is another server than the one that this stack was made on: set postgres.external.host back, or "
        "`make destroy`, which leaves the old server as it is, and then `make up` on the new one"
    )


def message(external: ExternalPostgres, faults: Sequence[str]) -> str:
    """One message with every fault."""
    lines = "".join(f"\n  - {fault}" for fault in faults)
    return f"the Postgres of postgres.external.host, {external.host}:{external.port}, cannot be used yet:{lines}"


_external: ExternalPostgres | None = None


class ExternalServerProvider(DatabaseProvider):
    def configure(self, req: ConfigureRequest) -> None:
        global _external  # noqa: PLW0603 - the stack's config, the same for every resource of the process
        super().configure(req)
        _external = load_section("postgres", PostgresSettings, req.config.get).external

    def check(self, _olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Refuses, at preview already, a server that cannot serve Realtime; writes down which server it is."""
        external = _configured()
        faults = readiness_faults(
            external,
            slots=int(news["slots"]),
            publication=news["publication"],
            tables=news["tables"],
            slot=news["slot"],
            known=_olds.get("server"),
        )
        if faults:
            return CheckResult(inputs=news, failures=[CheckFailure("", message(external, faults))])
        with transaction() as cursor:
            return CheckResult(inputs={**news, "server": identity(cursor)}, failures=[])

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(id_=props["server"], outs={key: props[key] for key in INPUTS})

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Raises DatabaseError on another server, before everything on the old one is taken for gone."""
        with transaction() as cursor:
            if identity(cursor) != props["server"]:
                raise DatabaseError(moved(_configured().host))
        kept = {key: props[key] for key in INPUTS}
        return ReadResult(id_=id_, outs=kept, inputs=kept)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        return DiffResult(changes=any(_olds.get(key) != _news[key] for key in INPUTS))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(outs={key: _news[key] for key in INPUTS})

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Leaves the server, and everything in it."""


def _configured() -> ExternalPostgres:
    if _external is None:
        raise DatabaseError("no external Postgres was configured for this provider: set postgres.external.host")
    return _external


class ExternalServer(Resource, module="index", name="ExternalServer"):
    """A Postgres that somebody else runs, found fit for Realtime at every preview and update, and left at the end.

    Everything of the stack comes after it, so that nothing is made while the server lacks something: one error lists
    all of that. ``slots`` is how many replication slots Realtime holds, ``slot`` the tenant's. What depends on the
    stack's data says ``deleted_with`` this resource, so that ``destroy`` runs no statement on the server.
    """

    def __init__(
        self,
        name: str,
        *,
        external: ExternalPostgres,
        database: str,
        slots: int,
        slot: str,
        publication: str,
        tables: Sequence[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__(
            ExternalServerProvider(),
            name,
            {
                "host": external.host,
                "port": external.port,
                "database": database,
                "slots": slots,
                "slot": slot,
                "publication": publication,
                "tables": list(tables),
            },
            opts,
        )
