"""Faults brought about on a real stack, and undone: in SQL, on containers, in the gateway's file."""

from __future__ import annotations

import asyncio
import base64
import copy
import io
import json
import os
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import docker
import httpx
import psycopg
import pytest
import yaml
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7
from docker.models.containers import Container
from psycopg import sql
from psycopg.types.json import Jsonb
from pydantic import SecretStr

from components.gateway import CONFIG_FILE
from doctor import outputs
from doctor.checks.handshake import handshake
from doctor.checks.realtime import ask_management
from doctor.checks.setup import Setup, config_of, of_outputs
from doctor.outputs import PublishedTable
from settings import ApiRole
from tests.stack.conftest import Deployment
from tests.stack.subscriber import subscribed

NEWEST = os.environ.get("REALTIME_IMAGE_NEWEST") or "supabase/realtime:v2.129.8"
SECOND = 1_000_000_000
"""In the engine's nanoseconds."""
WAIT_SECONDS = 120.0
POLL_SECONDS = 0.2


def until(condition: Callable[[], Any], what: str, *, seconds: float = WAIT_SECONDS) -> Any:
    """The first true answer of a condition. Fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError, psycopg.OperationalError):
            if answer := condition():
                return answer
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


@dataclass
class Patient:
    """A running stack to bring faults about on. ``setup`` is what the doctor is given, as its owner has it."""

    deployment: Deployment
    setup: Setup
    pool: int = 0
    away: dict[str, Container] = field(default_factory=dict)
    gateway_file: dict[str, Any] | None = None

    @classmethod
    def of(cls, deployment: Deployment) -> Patient:
        """The patient that a deployment is, its outputs and config read once."""
        config = json.loads(deployment.pulumi("config", "--json", "--show-secrets").stdout)
        values = {key: entry.get("value") for key, entry in config.items()}
        found = outputs.parse(json.dumps(deployment.outputs()), source="the outputs")
        setup = of_outputs(
            found, stack=deployment.stack, config=config_of(values, environ=deployment.environ), reason=""
        )
        patient = cls(deployment, setup)
        patient.pool = patient.connections_of_realtime()
        return patient

    @property
    def engine(self) -> docker.DockerClient:
        return docker.from_env()

    @property
    def secrets(self) -> list[str]:
        """Every secret of the stack's config and outputs, in plain."""
        config = self.setup.config
        assert config is not None
        found = [
            value.get_secret_value()
            for section in config.model_dump().values()
            if isinstance(section, dict)
            for value in section.values()
            if isinstance(value, SecretStr)
        ]
        return [*found, self.setup.key, self.service_role_key]

    @property
    def service_role_key(self) -> str:
        assert self.setup.service_role_key is not None
        return self.setup.service_role_key.get_secret_value()

    @property
    def jwt_secret(self) -> str:
        assert self.setup.config is not None
        assert self.setup.config.jwt is not None
        return self.setup.config.jwt.secret.get_secret_value()

    @property
    def db_enc_key(self) -> str:
        assert self.setup.config is not None
        assert self.setup.config.realtime is not None
        return self.setup.config.realtime.db_enc_key.get_secret_value()

    @property
    def tenant(self) -> str:
        assert self.setup.tenant is not None
        return self.setup.tenant

    def foreign(self, **changes: Any) -> Setup:
        """The same servers as somebody knows them who did not make them with this program."""
        known = {"url": self.setup.url, "dsn": self.setup.dsn, "anon_key": self.setup.anon_key}
        return Setup(**{**known, **changes})

    # Postgres

    def connect(self, **changes: Any) -> psycopg.Connection[tuple[Any, ...]]:
        assert self.setup.dsn is not None
        return psycopg.connect(self.setup.dsn.get_secret_value(), autocommit=True, **changes)

    def run(self, *statements: str) -> None:
        """Statements as the superuser, each in a transaction of its own."""
        with self.connect() as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def value(self, query: str, *parameters: Any) -> Any:
        """The first column of the first row."""
        with self.connect() as connection:
            row = connection.execute(query.encode(), parameters).fetchone()
            return row[0] if row else None

    # Containers

    def container(self, part: str) -> Container:
        return self.engine.containers.get(self.deployment.container_name(part))

    def restart_postgres(self) -> None:
        self.container("postgres").restart(timeout=10)
        self.realtime_has_its_connections()

    def connections_of_realtime(self) -> int:
        """Those of its own, beside the tenants'."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'supabase_mt_realtime'"
        return int(self.value(query))

    def realtime_has_its_connections(self) -> None:
        """Waits until Realtime has as many as when it came up: it opens them again one by one."""
        until(lambda: self.connections_of_realtime() >= self.pool, "Realtime's own connections to Postgres")

    def healthy(self, part: str) -> None:
        """Waits until the engine calls a container healthy."""
        until(lambda: self.container(part).attrs["State"]["Health"]["Status"] == "healthy", f"a healthy {part}")

    def realtime_answers(self) -> bool:
        assert self.setup.realtime_url is not None
        return httpx.get(f"{self.setup.realtime_url}/healthcheck", trust_env=False).status_code == httpx.codes.OK

    def replace(
        self,
        part: str,
        *,
        environment: Mapping[str, str | None] | None = None,
        memory: int | None = None,
        image: str | None = None,
        health_check: Mapping[str, int] | None = None,
    ) -> Container:
        """Another container in the place of a part's: with other variables (None: without it), less memory, another
        image, or other times of its health check (nanoseconds)."""
        self.remove_replacement(part)
        if part not in self.away:
            original = self.container(part)
            original.stop(timeout=2)
            original.rename(f"{original.name}-original")
            self.away[part] = original
        attrs = self.away[part].attrs
        host, settings = attrs["HostConfig"], attrs["Config"]
        variables = dict(entry.split("=", 1) for entry in settings["Env"])
        for name, value in (environment or {}).items():
            variables.pop(name, None)
            if value is not None:
                variables[name] = value
        api = self.engine.api
        (network,) = attrs["NetworkSettings"]["Networks"]
        bindings = {
            int(port.split("/")[0]): (b[0]["HostIp"], b[0]["HostPort"]) for port, b in host["PortBindings"].items()
        }
        created = api.create_container(
            image or settings["Image"],
            name=self.deployment.container_name(part),
            hostname=settings["Hostname"],
            environment=[f"{name}={value}" for name, value in variables.items()],
            labels=settings["Labels"],
            healthcheck=settings["Healthcheck"] | dict(health_check or {}),
            ports=list(bindings),
            host_config=api.create_host_config(
                port_bindings=bindings,
                mem_limit=memory or host["Memory"],
                memswap_limit=memory or host["MemorySwap"],
                restart_policy=host["RestartPolicy"],
                ulimits=host["Ulimits"],
                read_only=host["ReadonlyRootfs"],
                tmpfs=host["Tmpfs"],
                security_opt=host["SecurityOpt"],
            ),
            networking_config=api.create_networking_config(
                {network: api.create_endpoint_config(aliases=[self.tenant] if part == "realtime" else [])}
            ),
        )
        container = self.engine.containers.get(created["Id"])
        container.start()
        return container

    def remove_replacement(self, part: str) -> None:
        if part in self.away:
            with suppress(docker.errors.NotFound):
                self.container(part).remove(force=True)

    def whole(self, *, but: str | None = None) -> None:
        """Every part that a fault left changed is put right, ``but`` for one."""
        if self.gateway_file is not None and but != "gateway":
            self.put_kong_file(yaml.safe_dump(self.gateway_file, sort_keys=False))
            self.gateway_file = None
        for part in [part for part in self.away if part != but]:
            self.remove_replacement(part)
            original = self.away.pop(part)
            original.rename(self.deployment.container_name(part))
            original.start()
        for part in ("realtime", "gateway"):
            if part != but:
                self.healthy(part)
        if but != "realtime":
            self.realtime_has_its_connections()
            until(lambda: ask_management(self.setup, f"/{self.tenant}"), "an answer of Realtime out of its database")

    # Gateway

    def change_kong_file(self, change: Callable[[dict[str, Any]], None]) -> None:
        """The gateway's file as the stack made it, changed; ``whole()`` puts it back."""
        if self.gateway_file is None:
            self.gateway_file = self.kong_file()
        changed = copy.deepcopy(self.gateway_file)
        change(changed)
        self.put_kong_file(yaml.safe_dump(changed))

    def kong_file(self) -> dict[str, Any]:
        stream, _ = self.container("gateway").get_archive(CONFIG_FILE)
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
            member = archive.extractfile(archive.getmembers()[0])
            assert member is not None
            document: dict[str, Any] = yaml.safe_load(member.read())
            return document

    def put_kong_file(self, text: str, *, answers: bool = True) -> None:
        """Another declarative file, and the gateway restarted with it."""
        self.write_kong_file(text)
        self.container("gateway").restart(timeout=0)
        if answers:
            self.healthy("gateway")

    def write_kong_file(self, text: str) -> None:
        """Another declarative file in the container, which the gateway does not read before it is restarted."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            info = tarfile.TarInfo(CONFIG_FILE.rpartition("/")[2])
            info.size = len(text.encode())
            info.mode = 0o644
            archive.addfile(info, io.BytesIO(text.encode()))
        self.container("gateway").put_archive(CONFIG_FILE.rpartition("/")[0], buffer.getvalue())

    def encrypted(self, text: str) -> str:
        """A value as Realtime stores it."""
        padder = PKCS7(128).padder()
        padded = padder.update(text.encode()) + padder.finalize()
        encryptor = Cipher(algorithms.AES128(self.db_enc_key.encode()), modes.ECB()).encryptor()
        return base64.b64encode(encryptor.update(padded) + encryptor.finalize()).decode()


@contextmanager
def relay(address: tuple[str, int], *, replacing: Mapping[bytes, bytes]) -> Iterator[int]:
    """A port of loopback behind which a server stands some of whose words are replaced by others as long."""

    def pump(source: socket.socket, sink: socket.socket, words: Mapping[bytes, bytes]) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                for old, new in words.items():
                    data = data.replace(old, new)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(address)
                opened.extend((near, far))
                for ends in ((near, far, {}), (far, near, replacing)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    opened: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for end in opened:
                end.close()


Broken = Iterator[Setup | None]
"""A fault at work; the setup that the doctor is given, None for the patient's own."""


@dataclass(frozen=True)
class Fault:
    """A fault, the cause that the doctor must name, and the other causes that are true as well while it lasts.

    ``leaves`` is the part that it leaves as it made it, for the next fault of the same part, or ``whole()``, to put
    right: a restart of it for each would take most of the test's time.
    """

    cause: str
    bring_about: Callable[[Patient], Any]
    label: str
    also: Sequence[str] = ()
    warns: bool = False
    leaves: str | None = None
    writing: bool = False
    """Whether only the probe can see it."""


FAULTS: list[Fault] = []


def fault(
    cause: str, *, also: Sequence[str] = (), warns: bool = False, leaves: str | None = None, writing: bool = False
) -> Callable[[Callable[[Patient], Broken]], Callable[[Patient], Broken]]:
    """Puts a generator, which brings a fault about, yields and undoes it, among the faults of the test."""

    def listed(bring_about: Callable[[Patient], Broken]) -> Callable[[Patient], Broken]:
        label = f"{cause}:{bring_about.__name__}"
        FAULTS.append(Fault(cause, contextmanager(bring_about), label, also, warns, leaves, writing))
        return bring_about

    return listed


def _in_sql(cause: str, name: str, broken: Sequence[str], healed: Sequence[str], *, warns: bool = False) -> None:
    def bring_about(patient: Patient) -> Broken:
        with ExitStack() as undo:
            undo.callback(lambda: patient.run(*healed))
            patient.run(*broken)
            yield None

    FAULTS.append(Fault(cause, contextmanager(bring_about), f"{cause}:{name}", warns=warns))


# Database objects and tables

for _row in (
    ("role-missing", "anon is gone", ["ALTER ROLE anon RENAME TO anon_gone"], ["ALTER ROLE anon_gone RENAME TO anon"]),
    (
        "role-missing",
        "service_role is gone",
        ["ALTER ROLE service_role RENAME TO gone"],
        ["ALTER ROLE gone RENAME TO service_role"],
    ),
    ("api-role-bypasses-rls", "anon has BYPASSRLS", ["ALTER ROLE anon BYPASSRLS"], ["ALTER ROLE anon NOBYPASSRLS"]),
    (
        "schema-of-tenants-missing",
        "_realtime is gone",
        ["ALTER SCHEMA _realtime RENAME TO gone"],
        ["ALTER SCHEMA gone RENAME TO _realtime"],
    ),
    (
        "tenant-tables-missing",
        "_realtime is empty",
        ["ALTER SCHEMA _realtime RENAME TO gone", "CREATE SCHEMA _realtime", "ALTER TABLE gone.tenants RENAME TO kept"],
        [
            "ALTER TABLE gone.kept RENAME TO tenants",
            "DROP SCHEMA _realtime CASCADE",
            "ALTER SCHEMA gone RENAME TO _realtime",
        ],
    ),
    (
        "schema-realtime-missing",
        "realtime is gone",
        ["ALTER SCHEMA realtime RENAME TO gone"],
        ["ALTER SCHEMA gone RENAME TO realtime"],
    ),
    (
        "tenant-migrations-missing",
        "realtime is empty",
        ["ALTER SCHEMA realtime RENAME TO gone", "CREATE SCHEMA realtime"],
        ["DROP SCHEMA realtime CASCADE", "ALTER SCHEMA gone RENAME TO realtime"],
    ),
    (
        "tenant-migrations-damaged",
        "list_changes was dropped",
        ["ALTER FUNCTION realtime.list_changes RENAME TO gone"],
        ["ALTER FUNCTION realtime.gone RENAME TO list_changes"],
    ),
    (
        "publication-missing",
        "the publication was dropped",
        ["DROP PUBLICATION supabase_realtime"],
        ["CREATE PUBLICATION supabase_realtime FOR TABLE public.wells WITH (publish = 'insert, update, delete')"],
    ),
    (
        "table-not-published",
        "the table was taken out",
        ["ALTER PUBLICATION supabase_realtime DROP TABLE public.wells"],
        ["ALTER PUBLICATION supabase_realtime ADD TABLE public.wells"],
    ),
    (
        "table-missing",
        "the table was renamed",
        ["ALTER TABLE public.wells RENAME TO wells_gone"],
        ["ALTER TABLE public.wells_gone RENAME TO wells"],
    ),
    (
        "events-not-published",
        "updates are left out",
        ["ALTER PUBLICATION supabase_realtime SET (publish = 'insert, delete')"],
        ["ALTER PUBLICATION supabase_realtime SET (publish = 'insert, update, delete')"],
    ),
    (
        "table-without-primary-key",
        "the key was dropped",
        ["ALTER TABLE public.wells DROP CONSTRAINT wells_pkey"],
        ["ALTER TABLE public.wells ADD CONSTRAINT wells_pkey PRIMARY KEY (id)"],
    ),
    (
        "replica-identity-nothing",
        "replica identity nothing",
        ["ALTER TABLE public.wells REPLICA IDENTITY NOTHING"],
        ["ALTER TABLE public.wells REPLICA IDENTITY DEFAULT"],
    ),
    (
        "schema-usage-missing",
        "anon may not use schema public",
        ["REVOKE USAGE ON SCHEMA public FROM PUBLIC, anon"],
        ["GRANT USAGE ON SCHEMA public TO PUBLIC, anon"],
    ),
    (
        "select-grant-missing",
        "SELECT was revoked",
        ["REVOKE SELECT ON public.wells FROM authenticated"],
        ["GRANT SELECT ON public.wells TO authenticated"],
    ),
    (
        "select-grant-missing",
        "SELECT of the name and not of the key",
        ["REVOKE SELECT ON public.wells FROM anon", "GRANT SELECT (name) ON public.wells TO anon"],
        ["REVOKE SELECT (name) ON public.wells FROM anon", "GRANT SELECT ON public.wells TO anon"],
    ),
    (
        "insert-grant-missing",
        "INSERT was revoked",
        ["REVOKE INSERT ON public.wells FROM anon"],
        ["GRANT INSERT ON public.wells TO anon"],
    ),
    (
        "row-security-off",
        "row level security was switched off",
        ["ALTER TABLE public.wells DISABLE ROW LEVEL SECURITY"],
        ["ALTER TABLE public.wells ENABLE ROW LEVEL SECURITY"],
    ),
    (
        "select-policy-missing",
        "no SELECT policy for anon",
        ["ALTER POLICY wells_select ON public.wells TO authenticated"],
        ["ALTER POLICY wells_select ON public.wells TO anon, authenticated"],
    ),
    (
        "select-policy-false",
        "a SELECT policy that lets nothing through",
        ["ALTER POLICY wells_select ON public.wells USING (false)"],
        ["ALTER POLICY wells_select ON public.wells USING (true)"],
    ),
    (
        "select-policy-false",
        "a restrictive policy that lets nothing through",
        ["CREATE POLICY shut ON public.wells AS RESTRICTIVE FOR SELECT USING (false)"],
        ["DROP POLICY shut ON public.wells"],
    ),
    (
        "select-policy-missing",
        "the policy is of a role whose privileges anon does not inherit",
        [
            "ALTER ROLE anon NOINHERIT",
            "CREATE ROLE readers",
            "GRANT readers TO anon",
            "ALTER POLICY wells_select ON public.wells TO readers, authenticated",
        ],
        ["ALTER POLICY wells_select ON public.wells TO anon, authenticated", "DROP ROLE readers"],
    ),
    (
        "tenant-secret-differs",
        "the tenant verifies with a key of somebody else",
        [
            "UPDATE _realtime.tenants SET jwt_jwks = "
            """'{"keys": [{"kty": "oct", "k": "YW5vdGhlci1zZWNyZXQ", "alg": "HS256", "kid": "another"}]}'"""
        ],
        ["UPDATE _realtime.tenants SET jwt_jwks = NULL"],
    ),
    (
        "insert-policy-missing",
        "no INSERT policy",
        ["DROP POLICY wells_insert ON public.wells"],
        ["CREATE POLICY wells_insert ON public.wells FOR INSERT TO anon, authenticated WITH CHECK (true)"],
    ),
):
    _in_sql(*_row)

for _row in (
    (
        "tenants-in-two-schemas",
        "a second table of tenants",
        ["CREATE TABLE public.tenants (external_id text, jwt_secret text)"],
        ["DROP TABLE public.tenants"],
    ),
    (
        "service-role-without-bypassrls",
        "service_role lost BYPASSRLS",
        ["ALTER ROLE service_role NOBYPASSRLS"],
        ["ALTER ROLE service_role BYPASSRLS"],
    ),
    (
        "truncate-granted",
        "anon may truncate",
        ["GRANT TRUNCATE ON public.wells TO anon"],
        ["REVOKE TRUNCATE ON public.wells FROM anon"],
    ),
    (
        "wal-held-back",
        "a forgotten slot without a limit",
        [
            "ALTER SYSTEM SET max_slot_wal_keep_size = -1",
            "SELECT pg_reload_conf()",
            "SELECT pg_create_logical_replication_slot('forgotten', 'test_decoding')",
        ],
        [
            "SELECT pg_drop_replication_slot('forgotten')",
            "ALTER SYSTEM RESET max_slot_wal_keep_size",
            "SELECT pg_reload_conf()",
        ],
    ),
    (
        "tenant-limits-differ",
        "somebody lowered a limit",
        ["UPDATE _realtime.tenants SET max_concurrent_users = max_concurrent_users - 1"],
        ["UPDATE _realtime.tenants SET max_concurrent_users = max_concurrent_users + 1"],
    ),
    (
        "tenant-poll-differs",
        "somebody slowed the polling",
        ["UPDATE _realtime.extensions SET settings = settings || '{\"poll_interval_ms\": 5000}'"],
        ["UPDATE _realtime.extensions SET settings = settings || '{\"poll_interval_ms\": 25}'"],
    ),
    (
        "tenant-suspended",
        "the tenant is suspended",
        ["UPDATE _realtime.tenants SET suspend = true"],
        ["UPDATE _realtime.tenants SET suspend = false"],
    ),
):
    _in_sql(*_row, warns=True)


@fault("sequence-usage-missing")
def the_sequence_of_a_serial_column_is_closed(patient: Patient) -> Broken:
    """A table with a serial column, published with everything but its sequence."""
    table = PublishedTable(table="public.readings", read=(ApiRole.ANON,), write=(ApiRole.ANON,))
    patient.run(
        "CREATE TABLE public.readings (id serial PRIMARY KEY)",
        "REVOKE ALL ON SEQUENCE public.readings_id_seq FROM anon",
        "REVOKE ALL ON public.readings FROM anon, authenticated",
        "GRANT SELECT, INSERT ON public.readings TO anon",
        "ALTER TABLE public.readings ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY everybody ON public.readings TO anon USING (true) WITH CHECK (true)",
        "ALTER PUBLICATION supabase_realtime ADD TABLE public.readings",
    )
    try:
        yield patient.setup.model_copy(update={"tables": (*patient.setup.tables, table)})
    finally:
        patient.run("DROP TABLE public.readings")


# Tenant


def _rows(patient: Patient, table: str) -> list[Any]:
    with patient.connect() as connection:
        query = sql.SQL("SELECT to_jsonb(t) FROM {} t").format(sql.Identifier("_realtime", table))
        return [row[0] for row in connection.execute(query).fetchall()]


def _put_back(patient: Patient, table: str, rows: Sequence[Any]) -> None:
    with patient.connect() as connection:
        where = sql.Identifier("_realtime", table)
        for row in rows:
            connection.execute(
                sql.SQL("INSERT INTO {} SELECT * FROM jsonb_populate_record(NULL::{}, %s)").format(where, where),
                [Jsonb(row)],
            )


@fault("tenant-missing")
def only_realtime_dev_is_seeded(patient: Patient) -> Broken:
    tenants, extensions = _rows(patient, "tenants"), _rows(patient, "extensions")
    seeded = [{**row, "external_id": "realtime-dev", "name": "realtime-dev"} for row in tenants]
    try:
        patient.run("DELETE FROM _realtime.tenants")
        _put_back(patient, "tenants", seeded)
        yield None
    finally:
        patient.run("DELETE FROM _realtime.tenants")
        _put_back(patient, "tenants", tenants)
        _put_back(patient, "extensions", extensions)


@fault("tenant-extension-missing")
def the_tenant_has_no_extension(patient: Patient) -> Broken:
    extensions = _rows(patient, "extensions")
    try:
        patient.run("DELETE FROM _realtime.extensions")
        yield None
    finally:
        _put_back(patient, "extensions", extensions)


@contextmanager
def _settings(patient: Patient, **changes: object) -> Iterator[None]:
    settings = patient.value("SELECT settings FROM _realtime.extensions")
    with patient.connect() as connection:
        try:
            connection.execute("UPDATE _realtime.extensions SET settings = %s", [Jsonb(settings | changes)])
            yield
        finally:
            connection.execute("UPDATE _realtime.extensions SET settings = %s", [Jsonb(settings)])


@fault("tenant-connection-differs")
def the_tenant_has_another_password(patient: Patient) -> Broken:
    with _settings(patient, db_password=patient.encrypted("another-password")):
        yield None


@fault("tenant-connection-differs")
def the_tenant_has_another_host(patient: Patient) -> Broken:
    with _settings(patient, db_host=patient.encrypted("db.example")):
        yield None


@fault("db-enc-key-differs", warns=True)
def the_declared_db_enc_key_was_not_applied(patient: Patient) -> Broken:
    config = patient.setup.config
    assert config is not None
    assert config.realtime is not None
    realtime = config.realtime.model_copy(update={"db_enc_key": SecretStr("another-16-bytes")})
    yield patient.setup.model_copy(update={"config": config.model_copy(update={"realtime": realtime})})


@fault("tenant-wants-ssl")
def the_tenant_enforces_ssl(patient: Patient) -> Broken:
    with _settings(patient, ssl_enforced=True):
        yield None


@fault("tenant-publication-differs")
def the_tenant_reads_another_publication(patient: Patient) -> Broken:
    with _settings(patient, publication="another"):
        yield None


@fault("tenant-secret-differs")
def the_tenant_has_another_secret(patient: Patient) -> Broken:
    secret = patient.value("SELECT jwt_secret FROM _realtime.tenants")
    with patient.connect() as connection:
        try:
            other = patient.encrypted("another-jwt-secret-of-more-than-32-bytes")
            connection.execute("UPDATE _realtime.tenants SET jwt_secret = %s", [other])
            yield None
        finally:
            connection.execute("UPDATE _realtime.tenants SET jwt_secret = %s", [secret])


@contextmanager
def _refused_by_postgres(patient: Patient) -> Iterator[None]:
    """Realtime gets no new connection: pg_hba.conf rejects its address. It keeps those that it has."""
    networks = patient.container("realtime").attrs["NetworkSettings"]["Networks"]
    refused = f"host all all {networks[patient.deployment.name]['IPAddress']}/32 reject"
    postgres, file = patient.container("postgres"), patient.value("SHOW hba_file")
    try:
        status, output = postgres.exec_run(["sed", "-i", f"1i {refused}", file])
        assert status == 0, output
        patient.run("SELECT pg_reload_conf()")
        until(lambda: patient.value("SELECT auth_method FROM pg_hba_file_rules LIMIT 1") == "reject", "the new rule")
        yield
    finally:
        postgres.exec_run(["sed", "-i", "/32 reject$/d", file])
        patient.run("SELECT pg_reload_conf()")


@fault("tenant-cannot-connect")
def postgres_refuses_realtime_a_connection_for_the_tenant(patient: Patient) -> Broken:
    patient.container("realtime").restart(timeout=2)
    patient.healthy("realtime")
    with _refused_by_postgres(patient):
        yield None


@contextmanager
def _forgetting(patient: Patient) -> Iterator[None]:
    """Realtime with an empty cache, and another one afterwards: what it read of its tenants it keeps for 30 s."""
    realtime = patient.container("realtime")
    realtime.restart(timeout=2)
    patient.healthy("realtime")
    try:
        yield
    finally:
        realtime.restart(timeout=2)
        patient.whole()


def _refused_by_realtime(patient: Patient) -> bool:
    url = patient.setup.at_realtime("/socket/websocket")
    return handshake(url, key=patient.setup.key, host=patient.tenant).status == httpx.codes.FORBIDDEN


@fault("websocket-refused")
def realtime_remembers_another_secret_of_the_tenant(patient: Patient) -> Broken:
    """It was wrong a moment ago and is right, which Realtime has not noticed."""
    secret = patient.value("SELECT jwt_secret FROM _realtime.tenants")
    with _forgetting(patient), patient.connect() as connection:
        try:
            other = patient.encrypted("another-jwt-secret-of-more-than-32-bytes")
            connection.execute("UPDATE _realtime.tenants SET jwt_secret = %s", [other])
            assert _refused_by_realtime(patient)
        finally:
            connection.execute("UPDATE _realtime.tenants SET jwt_secret = %s", [secret])
        yield None


@fault("websocket-refused")
def realtime_remembers_that_there_was_no_tenant(patient: Patient) -> Broken:
    tenants, extensions = _rows(patient, "tenants"), _rows(patient, "extensions")
    with _forgetting(patient):
        try:
            patient.run("DELETE FROM _realtime.tenants")
            assert _refused_by_realtime(patient)
        finally:
            _put_back(patient, "tenants", tenants)
            _put_back(patient, "extensions", extensions)
        yield None


@fault("realtime-log-error", warns=True)
def the_changes_cannot_be_read(patient: Patient) -> Broken:
    """A function of Realtime that somebody wrote anew, which no check looks into."""
    kept = patient.value("SELECT pg_get_functiondef('realtime.list_changes'::regproc)")
    broken = patient.value(
        "SELECT format('CREATE OR REPLACE FUNCTION realtime.list_changes(%%s) RETURNS %%s LANGUAGE plpgsql AS %%L', "
        "pg_get_function_arguments(oid), pg_get_function_result(oid), "
        "'BEGIN RAISE EXCEPTION ''nobody foresaw this''; END') "
        "FROM pg_proc WHERE oid = 'realtime.list_changes'::regproc"
    )
    with asyncio.Runner() as runner:
        client = AsyncExitStack()
        try:
            runner.run(client.enter_async_context(subscribed(patient.deployment.outputs(), "public.wells")))
            patient.run("DROP FUNCTION realtime.list_changes", broken)
            log = patient.container("realtime")
            begun = datetime.now(UTC)
            until(lambda: b"PoolingReplicationError" in log.logs(since=begun), "Realtime's complaint")
            yield None
        finally:
            patient.run("DROP FUNCTION realtime.list_changes", kept)
            runner.run(client.aclose())


# Keys: another key is handed out, and Realtime itself refuses it


def _handed_out(patient: Patient, key: str, *, refused: bool = True) -> Setup:
    if refused:
        answer = handshake(patient.setup.at_realtime("/socket/websocket"), key=key, host=patient.tenant)
        assert answer.status == httpx.codes.FORBIDDEN, f"Realtime answers {answer.words} to the key"
    return patient.setup.model_copy(update={"anon_key": SecretStr(key)})


def _signed(claims: Mapping[str, Any], secret: str, **options: Any) -> str:
    import jwt  # noqa: PLC0415 - the name is a parameter's elsewhere

    return jwt.encode(dict(claims), secret, algorithm="HS256", **options)


def _claims(**changes: Any) -> dict[str, Any]:
    return {"role": "anon", "iss": "supabase", "exp": int(time.time()) + 400 * 86_400, **changes}


@fault("key-expired")
def the_key_has_expired(patient: Patient) -> Broken:
    yield _handed_out(patient, _signed(_claims(exp=int(time.time()) - 60), patient.jwt_secret))


@fault("key-claims-missing")
def the_key_lacks_its_role(patient: Patient) -> Broken:
    yield _handed_out(patient, _signed({"exp": int(time.time()) + 400 * 86_400}, patient.jwt_secret))


@fault("key-malformed")
def the_key_lacks_its_type(patient: Patient) -> Broken:
    yield _handed_out(patient, _signed(_claims(), patient.jwt_secret, headers={"typ": None}))


@fault("key-malformed")
def the_key_was_cut_off(patient: Patient) -> Broken:
    yield _handed_out(patient, patient.setup.key[:40])


@fault("key-signature-wrong")
def the_key_is_signed_with_another_secret(patient: Patient) -> Broken:
    yield _handed_out(patient, _signed(_claims(), "another-jwt-secret-of-more-than-32-bytes"))


@fault("key-role-wrong")
def the_service_role_key_is_handed_out(patient: Patient) -> Broken:
    yield _handed_out(patient, patient.service_role_key, refused=False)


@fault("key-unknown-to-gateway")
def the_gateway_does_not_know_the_key(patient: Patient) -> Broken:
    yield _handed_out(patient, _signed(_claims(), patient.jwt_secret), refused=False)


# Gateway


def _service(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(service for service in document["services"] if service["name"] == name)
    return found


def _plugin(document: dict[str, Any], service: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(p for p in _service(document, service)["plugins"] if p["name"] == name)
    return found


def _in_kong(
    cause: str, name: str, change: Callable[[dict[str, Any]], None], *, warns: bool = False, also: Sequence[str] = ()
) -> None:
    def bring_about(patient: Patient) -> Broken:
        patient.change_kong_file(change)
        yield None

    FAULTS.append(Fault(cause, contextmanager(bring_about), f"{cause}:{name}", also, warns, "gateway"))


def _notes_own_route(document: dict[str, Any]) -> None:
    route = _service(document, "realtime-websocket")["routes"][0]
    route.update(paths=["/realtime/v1/websocket"], strip_path=False, preserve_host=True)


def _route_preserves_host(document: dict[str, Any]) -> None:
    _service(document, "realtime-websocket")["routes"][0]["preserve_host"] = True


def _no_route(document: dict[str, Any]) -> None:
    document["services"].remove(_service(document, "realtime-websocket"))


def _wrong_port(document: dict[str, Any]) -> None:
    service = _service(document, "realtime-websocket")
    service["url"] = service["url"].replace(":4000", ":4009")


def _wrong_name(document: dict[str, Any]) -> None:
    service = _service(document, "realtime-websocket")
    service["url"] = service["url"].replace("//supabase-realtime:", "//realtime.invalid:")


def _another_consumer_key(document: dict[str, Any]) -> None:
    document["consumers"][0]["keyauth_credentials"] = [{"key": "another-key"}]


def _another_key_name(document: dict[str, Any]) -> None:
    _plugin(document, "realtime-websocket", "key-auth")["config"]["key_names"] = ["api-key"]


def _acl_without_anon(document: dict[str, Any]) -> None:
    _plugin(document, "realtime-websocket", "acl")["config"]["allow"] = ["service_role"]


def _anonymous_is_nobody(document: dict[str, Any]) -> None:
    _plugin(document, "realtime-websocket", "key-auth")["config"]["anonymous"] = "nobody"


def _anonymous_is_anon(document: dict[str, Any]) -> None:
    _plugin(document, "realtime-websocket", "key-auth")["config"]["anonymous"] = "anon"


def _no_cors(document: dict[str, Any]) -> None:
    service = _service(document, "realtime-rest")
    service["plugins"].remove(_plugin(document, "realtime-rest", "cors"))


def _no_rest(document: dict[str, Any]) -> None:
    _service(document, "realtime-rest")["url"] = _service(document, "realtime-rest")["url"].removesuffix("/api")


def _management_open(document: dict[str, Any]) -> None:
    document["services"].remove(_service(document, "realtime-management"))


def _idle_default(document: dict[str, Any]) -> None:
    del _service(document, "realtime-websocket")["read_timeout"]


def _impatient(document: dict[str, Any]) -> None:
    _service(document, "realtime-websocket").update(read_timeout=1_000, retries=0)


def _https_only(document: dict[str, Any]) -> None:
    _service(document, "realtime-websocket")["routes"][0]["protocols"] = ["https"]


for _cause, _name, _change in (
    ("route-path-wrong", "the route of the notes", _notes_own_route),
    ("route-preserves-host", "the client's host is handed on", _route_preserves_host),
    ("route-missing", "no route", _no_route),
    ("upstream-refused", "the service has a wrong port", _wrong_port),
    ("upstream-unresolved", "the service has a wrong host", _wrong_name),
    ("key-unknown-to-gateway", "the consumer has another key", _another_consumer_key),
    ("key-not-looked-for", "key-auth looks elsewhere", _another_key_name),
    ("consumer-not-allowed", "acl without anon", _acl_without_anon),
    ("anonymous-consumer-missing", "anonymous names nobody", _anonymous_is_nobody),
    ("gateway-lets-everybody-in", "anonymous though it is declared off", _anonymous_is_anon),
    ("cors-missing", "no plugin cors", _no_cors),
    ("rest-route-wrong", "REST without /api", _no_rest),
    ("management-paths-open", "management paths not closed", _management_open),
    ("websocket-error", "the route takes https only", _https_only),
):
    _in_kong(_cause, _name, _change)
_in_kong("idle-timeout-short", "read_timeout by default", _idle_default, warns=True)


@fault("gateway-refuses-anonymous", leaves="gateway")
def the_settings_declare_anonymous(patient: Patient) -> Broken:
    config = patient.setup.config
    assert config is not None
    assert config.gateway is not None
    gateway = config.gateway.model_copy(update={"anonymous": True})
    patient.change_kong_file(lambda document: None)
    yield patient.setup.model_copy(update={"config": config.model_copy(update={"gateway": gateway})})


@fault("key-expires-soon", warns=True, leaves="gateway")
def the_key_ends_next_month(patient: Patient) -> Broken:
    key = _signed(_claims(exp=int(time.time()) + 30 * 86_400), patient.jwt_secret)

    def give_to_anon(document: dict[str, Any]) -> None:
        document["consumers"][0]["keyauth_credentials"] = [{"key": key}]

    patient.change_kong_file(give_to_anon)
    yield _handed_out(patient, key, refused=False)


@fault("key-malformed", warns=True, leaves="gateway")
def the_end_of_the_key_is_in_milliseconds(patient: Patient) -> Broken:
    key = _signed(_claims(exp=(int(time.time()) + 400 * 86_400) * 1000), patient.jwt_secret)

    def give_to_anon(document: dict[str, Any]) -> None:
        document["consumers"][0]["keyauth_credentials"] = [{"key": key}]

    patient.change_kong_file(give_to_anon)
    yield _handed_out(patient, key, refused=False)


@fault("cors-origin-refused", leaves="gateway")
def the_settings_declare_another_origin(patient: Patient) -> Broken:
    def only_example(document: dict[str, Any]) -> None:
        for service in ("realtime-websocket", "realtime-rest"):
            _plugin(document, service, "cors")["config"]["origins"] = ["https://a.example", "https://b.example"]

    config = patient.setup.config
    assert config is not None
    assert config.gateway is not None
    gateway = config.gateway.model_copy(update={"cors_origins": ("https://c.example",)})
    patient.change_kong_file(only_example)
    yield patient.setup.model_copy(update={"config": config.model_copy(update={"gateway": gateway})})


@fault("realtime-refuses-websocket", leaves="gateway")
def somebody_has_a_gateway_that_preserves_the_host(patient: Patient) -> Broken:
    patient.change_kong_file(_route_preserves_host)
    yield patient.foreign()


@fault("gateway-hangs")
def the_workers_of_the_gateway_hang(patient: Patient) -> Broken:
    container = patient.container("gateway")
    _signal(container, "STOP")
    try:
        yield None
    finally:
        container.restart(timeout=0)
        patient.whole()


@fault("upstream-timeout", leaves="gateway")
def somebody_without_docker_has_a_realtime_that_does_not_answer(patient: Patient) -> Broken:
    patient.change_kong_file(_impatient)
    container = patient.container("realtime")
    container.pause()
    try:
        yield patient.foreign()
    finally:
        container.unpause()


@fault("gateway-config-invalid", leaves="gateway")
def the_gateway_file_is_broken(patient: Patient) -> Broken:
    document = patient.gateway_file = patient.gateway_file or patient.kong_file()
    patient.put_kong_file(yaml.safe_dump(document | {"services": [{"name": "x", "uri": 1}]}), answers=False)
    until(lambda: patient.container("gateway").attrs["RestartCount"], "a restart of the gateway")
    yield None


@fault("gateway-config-invalid", warns=True, leaves="gateway")
def the_gateway_file_was_broken_under_the_running_gateway(patient: Patient) -> Broken:
    patient.change_kong_file(lambda document: None)
    patient.write_kong_file("_format_version: '1.1'\nconsumers: - {")
    yield None


# Containers and network


def _stopped(part: str) -> Callable[[Patient], Broken]:
    def bring_about(patient: Patient) -> Broken:
        container = patient.container(part)
        container.stop(timeout=3)
        try:
            yield None
        finally:
            container.start()
            patient.whole()

    return bring_about


for _part in ("gateway", "realtime"):
    FAULTS.append(Fault("container-stopped", contextmanager(_stopped(_part)), f"container-stopped:{_part}"))


@fault("container-paused")
def realtime_is_paused(patient: Patient) -> Broken:
    container = patient.container("realtime")
    container.pause()
    try:
        yield None
    finally:
        container.unpause()


@fault("container-cannot-start")
def somebody_took_the_port_of_the_gateway(patient: Patient) -> Broken:
    assert patient.setup.url is not None
    address = urlsplit(patient.setup.url)
    container = patient.container("gateway")
    container.stop(timeout=3)
    try:
        with socket.create_server((str(address.hostname), address.port or 80)):
            with pytest.raises(docker.errors.APIError):
                container.start()
            yield None
    finally:
        container.start()
        patient.whole()


@fault("container-unhealthy", leaves="realtime")
def realtime_hangs(patient: Patient) -> Broken:
    patient.replace("realtime", health_check={"Interval": SECOND, "Timeout": SECOND, "Retries": 2})
    patient.healthy("realtime")
    _signal(patient.container("realtime"), "STOP")
    health = "realtime's failing health check"
    until(lambda: patient.container("realtime").attrs["State"]["Health"]["Status"] == "unhealthy", health)
    yield None


@fault("container-starting", warns=True, leaves="realtime")
def the_health_check_of_realtime_has_not_run_yet(patient: Patient) -> Broken:
    patient.replace("realtime", health_check={"Interval": 3600 * SECOND, "StartPeriod": 0})
    until(patient.realtime_answers, "Realtime's health, asked by hand")
    yield None


@fault("container-missing")
def the_gateway_is_removed(patient: Patient) -> Broken:
    container = patient.container("gateway")
    container.rename(f"{container.name}-gone")
    try:
        yield None
    finally:
        container.rename(patient.deployment.container_name("gateway"))


def _signal(container: Container, name: str, processes: str = "-1", *, user: str = "") -> None:
    """Sends a signal to processes of the container, to all but its first, which would not take it, unless told."""
    status, output = container.exec_run(["sh", "-c", f"kill -s {name} -- {processes}"], user=user)
    assert status == 0, output


@contextmanager
def _detached(patient: Patient, part: str) -> Iterator[tuple[Any, Container]]:
    container = patient.container(part)
    network = patient.engine.networks.get(patient.deployment.name)
    network.disconnect(container)
    try:
        yield network, container
    finally:
        with suppress(docker.errors.APIError):
            network.disconnect(container)
        network.connect(container, aliases=[patient.tenant] if part == "realtime" else None)


@fault("alias-missing")
def realtime_lost_its_alias(patient: Patient) -> Broken:
    with _detached(patient, "realtime") as (network, container):
        network.connect(container)
        until(patient.realtime_answers, "Realtime's health without its alias")
        yield None


@fault("network-missing")
def the_network_is_removed(patient: Patient) -> Broken:
    parts = ("postgres", "realtime", "gateway")
    old = patient.engine.networks.get(patient.deployment.name)
    for part in parts:
        old.disconnect(patient.container(part))
    old.remove()
    try:
        yield None
    finally:
        new = patient.engine.networks.create(patient.deployment.name, driver="bridge", labels=old.attrs["Labels"])
        for part in parts:
            new.connect(patient.container(part), aliases=[patient.tenant] if part == "realtime" else None)
        # It would notice only after 15 s each that its connections are dead.
        patient.container("realtime").restart(timeout=2)
        patient.whole()


@fault("gateway-unreachable")
def somebody_without_docker_finds_no_gateway(patient: Patient) -> Broken:
    container = patient.container("gateway")
    container.stop(timeout=3)
    try:
        yield patient.foreign()
    finally:
        container.start()
        patient.whole()


@fault("container-off-network")
def the_gateway_is_off_the_network(patient: Patient) -> Broken:
    with _detached(patient, "gateway"):
        yield None


@fault("image-differs", warns=True)
def the_settings_declare_another_image(patient: Patient) -> Broken:
    config = patient.setup.config
    assert config is not None
    assert config.gateway is not None
    gateway = config.gateway.model_copy(update={"image": "kong:3.9.1"})
    yield patient.setup.model_copy(update={"config": config.model_copy(update={"gateway": gateway})})


# Realtime with another environment


def _exits(cause: str, name: str, environment: Mapping[str, str | None]) -> None:
    def bring_about(patient: Patient) -> Broken:
        patient.replace("realtime", environment=environment)
        until(lambda: patient.container("realtime").attrs["RestartCount"], "a restart of Realtime")
        yield None

    FAULTS.append(Fault(cause, contextmanager(bring_about), f"{cause}:{name}", leaves="realtime"))


_exits("rlimit-nofile-missing", "without RLIMIT_NOFILE", {"RLIMIT_NOFILE": None})
_exits("rlimit-nofile-too-high", "RLIMIT_NOFILE above the hard limit", {"RLIMIT_NOFILE": "2000000"})
_exits("secret-key-base-missing", "without SECRET_KEY_BASE", {"SECRET_KEY_BASE": None})
_exits("app-name-missing", "without APP_NAME", {"APP_NAME": None})
_exits("realtime-database-password-wrong", "a wrong DB_PASSWORD", {"DB_PASSWORD": "another-password"})
_exits("realtime-database-unreachable", "DB_HOST leads nowhere", {"DB_HOST": "nowhere.invalid"})
_exits("erlang-wants-ipv6", "without ERL_AFLAGS", {"ERL_AFLAGS": None})
_exits("container-exits", "a PORT that is no number", {"PORT": "four thousand"})


@fault("metrics-jwt-secret-missing", leaves="realtime")
def the_newest_realtime_starts_without_metrics_jwt_secret(patient: Patient) -> Broken:
    """It ends before it touches the database."""
    if not patient.engine.images.list(NEWEST):
        pytest.skip(f"no image {NEWEST} (set REALTIME_IMAGE_NEWEST to another): `docker pull {NEWEST}`")
    patient.replace("realtime", image=NEWEST, environment={"METRICS_JWT_SECRET": None})
    until(lambda: patient.container("realtime").attrs["RestartCount"], "a restart of the newest Realtime")
    yield None


@fault("schema-of-tenants-missing", leaves="realtime")
def realtime_starts_without_its_schema(patient: Patient) -> Broken:
    """The first of the seven failures: it restarts for ever, and its log says 3F000."""
    patient.run("ALTER SCHEMA _realtime RENAME TO gone")
    try:
        patient.replace("realtime")
        until(lambda: patient.container("realtime").attrs["RestartCount"], "a restart of Realtime")
        assert b"3F000" in patient.container("realtime").logs()
        yield None
    finally:
        patient.run("ALTER SCHEMA gone RENAME TO _realtime")


def _runs(
    cause: str,
    name: str,
    environment: Callable[[Patient], Mapping[str, str | None]],
    *,
    warns: bool = False,
    also: Sequence[str] = (),
    undo: Sequence[str] = (),
) -> None:
    def bring_about(patient: Patient) -> Broken:
        with ExitStack() as stack:
            stack.callback(lambda: patient.run(*undo))
            stack.callback(lambda: patient.remove_replacement("realtime"))
            patient.replace("realtime", environment=environment(patient))
            patient.healthy("realtime")
            yield None

    FAULTS.append(
        Fault(cause, contextmanager(bring_about), f"{cause}:{name}", also=also, warns=warns, leaves="realtime")
    )


_runs(
    "search-path-wrong",
    "search_path to realtime",
    lambda _: {"DB_AFTER_CONNECT_QUERY": "SET search_path TO realtime"},
    undo=(
        "DROP TABLE realtime.extensions, realtime.tenants",
        "DELETE FROM realtime.schema_migrations WHERE version IN (SELECT version FROM _realtime.schema_migrations)",
    ),
)
_runs(
    "search-path-wrong",
    "no DB_AFTER_CONNECT_QUERY",
    lambda _: {"DB_AFTER_CONNECT_QUERY": None},
    undo=("DROP TABLE public.extensions, public.tenants, public.schema_migrations",),
)
_runs(
    "management-api-open",
    "one secret for keys and management",
    lambda patient: {"API_JWT_SECRET": patient.jwt_secret},
)
_runs("management-api-secret-missing", "without API_JWT_SECRET", lambda _: {"API_JWT_SECRET": None})
_runs(
    "management-api-secret-differs",
    "another API_JWT_SECRET",
    lambda _: {"API_JWT_SECRET": "another-management-secret-of-32-bytes"},
)
_runs("db-enc-key-changed", "another DB_ENC_KEY", lambda _: {"DB_ENC_KEY": "0123456789abcdef"})
_runs("db-enc-key-wrong-length", "a short DB_ENC_KEY", lambda _: {"DB_ENC_KEY": "short"})
_runs("metrics-closed", "without METRICS_JWT_SECRET", lambda _: {"METRICS_JWT_SECRET": None}, warns=True)


@fault("realtime-not-listening", leaves="realtime")
def realtime_is_not_listening_yet(patient: Patient) -> Broken:
    """The seventh: Kong says 502 while Realtime is running and not listening."""
    patient.replace("realtime", environment={"PORT": "4009"})
    until(lambda: patient.container("realtime").status == "running", "the other Realtime")
    yield None


@fault("realtime-database-stalled")
def the_connections_of_realtime_hang(patient: Patient) -> Broken:
    """As after a loss of the network that neither side has noticed."""
    processes = patient.value(
        "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE application_name = 'supabase_mt_realtime'"
    )
    postgres = patient.container("postgres")
    _signal(postgres, "STOP", processes, user="postgres")
    try:
        yield None
    finally:
        _signal(postgres, "CONT", processes, user="postgres")


@fault("realtime-database-stalled")
def realtime_lost_its_connections_and_gets_no_others(patient: Patient) -> Broken:
    with _refused_by_postgres(patient):
        patient.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'supabase_mt_realtime'"
        )
        yield None
    patient.whole()


@fault("realtime-unhealthy")
def something_else_listens_where_realtime_should(patient: Patient) -> Broken:
    yield patient.setup.model_copy(update={"realtime_url": patient.setup.url})


@fault("upstream-refused", leaves="realtime")
def somebody_without_docker_sees_502(patient: Patient) -> Broken:
    patient.replace("realtime", environment={"PORT": "4009"})
    url = patient.setup.at_gateway("/realtime/v1/websocket")
    until(lambda: handshake(url, key=patient.setup.key).status == 502, "502 of the gateway")
    yield patient.foreign()


@fault("container-out-of-memory", leaves="realtime")
def realtime_has_too_little_memory(patient: Patient) -> Broken:
    patient.replace("realtime", memory=90 << 20)
    until(lambda: patient.container("realtime").attrs["RestartCount"], "a restart of Realtime")
    yield None


# The server


@contextmanager
def _without_slot_of_realtime(patient: Patient) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    with patient.connect() as connection:

        def ended() -> bool:
            row = connection.execute(
                "SELECT count(*) FROM pg_replication_slots s, pg_terminate_backend(s.active_pid) WHERE s.active"
            ).fetchone()
            return row == (0,)

        until(ended, "the end of Realtime's slot")
        yield connection


@fault("replication-slots-exhausted")
def other_slots_take_all(patient: Patient) -> Broken:
    names: list[str] = []
    with patient.connect() as connection:
        try:
            while True:
                connection.execute(
                    "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL"
                )
                try:
                    name = f"taken_{len(names)}"
                    connection.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", [name])
                    names.append(name)
                except psycopg.errors.ConfigurationLimitExceeded:
                    most = connection.execute("SELECT current_setting('max_replication_slots')::int").fetchone()
                    if most == (len(names),):
                        break
            yield None
        finally:
            for name in names:
                connection.execute("SELECT pg_drop_replication_slot(%s)", [name])


@fault("slot-blocked-by-transaction")
def a_transaction_stays_open(patient: Patient) -> Broken:
    with patient.connect(application_name="nightly import") as writer:
        writer.autocommit = False
        writer.execute("SELECT pg_current_xact_id()")
        with patient.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL"
            )
        try:
            yield None
        finally:
            writer.rollback()


@fault("wal2json-missing")
def wal2json_is_not_installed(patient: Patient) -> Broken:
    container = patient.container("postgres")
    status, library = container.exec_run(["pg_config", "--pkglibdir"])
    assert status == 0, library
    path = f"{library.decode().strip()}/wal2json.so"
    status, text = container.exec_run(["mv", path, "/var/lib/postgresql/wal2json.so"], user="root")
    assert status == 0, text
    try:
        with _without_slot_of_realtime(patient):
            yield None
    finally:
        container.exec_run(["mv", "/var/lib/postgresql/wal2json.so", path], user="root")


@fault("connections-exhausted")
def every_connection_is_taken(patient: Patient) -> Broken:
    with ExitStack() as held:
        try:
            while True:
                held.enter_context(patient.connect())
        except psycopg.OperationalError as refused:
            assert "too many clients" in str(refused) or "reserved" in str(refused), refused
        yield None


@fault("connections-scarce", warns=True)
def few_connections_are_left(patient: Patient) -> Broken:
    with ExitStack() as held:
        left = patient.value(
            "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int "
            "- (SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'client backend') - 1"
        )
        for _ in range(left):
            held.enter_context(patient.connect())
        yield None


@fault("postgres-password-refused")
def the_password_was_changed(patient: Patient) -> Broken:
    user = sql.Identifier(str(patient.setup.where["user"]))
    with patient.connect() as connection:
        try:
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD 'another-password'").format(user))
            yield None
        finally:
            password = sql.Literal(patient.setup.where["password"])
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(user, password))


@fault("postgres-starting")
def postgres_waits_for_its_clients_to_leave(patient: Patient) -> Broken:
    """Told to stop, it keeps its clients and takes no new one."""
    with patient.connect():
        patient.container("postgres").kill(signal="SIGTERM")

        def refused() -> bool:
            try:
                patient.value("SELECT true")
            except psycopg.OperationalError as answer:
                return "the database system is shutting down" in str(answer)
            return False

        try:
            until(refused, "a refusal of Postgres")
            yield None
        finally:
            patient.restart_postgres()


@fault("postgres-tls-refused")
def the_dsn_wants_tls_which_the_server_has_not(patient: Patient) -> Broken:
    assert patient.setup.dsn is not None
    dsn = psycopg.conninfo.make_conninfo(patient.setup.dsn.get_secret_value(), sslmode="require")
    yield patient.setup.model_copy(update={"dsn": SecretStr(dsn)})


@fault("postgres-version-unsupported")
def postgres_is_of_version_13(patient: Patient) -> Broken:
    """No stack can run on it, so that the stack's own server stands behind one that says 13."""
    assert patient.setup.dsn is not None
    version, number = patient.value("SHOW server_version"), patient.value("SHOW server_version_num")
    old = {number.encode(): b"13" + number[2:].encode(), version.encode(): b"13" + version[2:].encode()}
    where = patient.setup.where
    with relay((str(where["host"]), int(where["port"])), replacing=old) as port:
        dsn = psycopg.conninfo.make_conninfo(patient.setup.dsn.get_secret_value(), host="127.0.0.1", port=port)
        yield patient.setup.model_copy(update={"dsn": SecretStr(dsn)})


@fault("postgres-login-refused")
def the_user_may_not_log_in(patient: Patient) -> Broken:
    user = sql.Identifier(str(patient.setup.where["user"]))
    with patient.connect() as connection:
        try:
            connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(user))
            yield None
        finally:
            connection.execute(sql.SQL("ALTER ROLE {} LOGIN").format(user))


@fault("wal-senders-exhausted", warns=True)
def no_wal_sender_is_allowed(patient: Patient) -> Broken:
    patient.run("ALTER SYSTEM SET max_wal_senders = 0")
    patient.restart_postgres()
    patient.healthy("postgres")
    try:
        yield None
    finally:
        patient.run("ALTER SYSTEM SET max_wal_senders = 10")
        patient.restart_postgres()


@fault("postgres-database-missing")
def the_dsn_names_no_database(patient: Patient) -> Broken:
    assert patient.setup.dsn is not None
    dsn = psycopg.conninfo.make_conninfo(patient.setup.dsn.get_secret_value(), dbname="gone")
    yield patient.setup.model_copy(update={"dsn": SecretStr(dsn)})


@fault("user-not-superuser")
def the_user_is_no_superuser(patient: Patient) -> Broken:
    user = sql.Identifier(str(patient.setup.where["user"]))
    patient.run("CREATE ROLE other_superuser SUPERUSER LOGIN PASSWORD 'other-superuser'")
    try:
        with patient.connect(user="other_superuser", password="other-superuser") as other:
            other.execute(sql.SQL("ALTER ROLE {} NOSUPERUSER").format(user))
            try:
                yield None
            finally:
                other.execute(sql.SQL("ALTER ROLE {} SUPERUSER").format(user))
    finally:
        patient.run("DROP ROLE other_superuser")


@fault("wal-level-not-logical")
def wal_level_is_replica(patient: Patient) -> Broken:
    patient.run("ALTER SYSTEM SET wal_level = replica", "ALTER SYSTEM SET max_wal_senders = 0")
    patient.restart_postgres()
    try:
        yield None
    finally:
        patient.run("ALTER SYSTEM SET wal_level = logical", "ALTER SYSTEM SET max_wal_senders = 10")
        patient.restart_postgres()


@fault("container-stopped")
def postgres_is_down(patient: Patient) -> Broken:
    container = patient.container("postgres")
    container.stop(timeout=10)
    try:
        yield None
    finally:
        container.start()
        patient.realtime_has_its_connections()


@fault("postgres-unreachable", also=("realtime-refuses-websocket", "upstream-refused", "websocket-error"))
def somebody_without_docker_cannot_reach_postgres(patient: Patient) -> Broken:
    container = patient.container("postgres")
    container.stop(timeout=10)
    try:
        yield patient.foreign()
    finally:
        container.start()
        patient.realtime_has_its_connections()


# Any other set-up


@fault("publication-empty")
def somebody_published_no_table(patient: Patient) -> Broken:
    patient.run("ALTER PUBLICATION supabase_realtime DROP TABLE public.wells")
    try:
        yield patient.foreign()
    finally:
        patient.run("ALTER PUBLICATION supabase_realtime ADD TABLE public.wells")


# What only the probe can see


@fault("probe-failed", writing=True)
def a_trigger_throws_the_rows_away(patient: Patient) -> Broken:
    patient.run(
        "CREATE FUNCTION public.thrown_away() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER thrown_away BEFORE INSERT ON public.wells FOR EACH ROW EXECUTE FUNCTION public.thrown_away()",
    )
    try:
        yield None
    finally:
        patient.run("DROP FUNCTION public.thrown_away CASCADE")
