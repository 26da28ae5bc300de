"""A stack on a Postgres that somebody else runs, which lets nobody in without TLS."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import docker
import pytest

from tests.stack.conftest import WELLS, Deployment, new_deployment, removed, unique_stack
from tests.stack.engine_output import changed_resources
from tests.stack.external_postgres import Authority, ExternalServer, external_postgres
from tests.stack.images import NEWEST, require_image

DATABASE = "app"
DOCTOR = (sys.executable, "-m", "doctor", "examine")
ORDERS = {"table": "public.orders", "read": ["authenticated"]}
LIBRARY = "/usr/lib/postgresql/15/lib/wal2json.so"
BEFORE = """
CREATE TABLE public.orders (id bigint PRIMARY KEY, item text);
INSERT INTO public.orders VALUES (1, 'pump'), (2, 'pipe');
CREATE PUBLICATION supabase_realtime FOR TABLE public.orders;
CREATE SCHEMA _realtime;
CREATE ROLE reporting NOLOGIN;
GRANT SELECT ON public.orders TO reporting;
"""


@dataclass(frozen=True)
class Adopting:
    """A server with an application's database on it, and a stack that is told to use that."""

    server: ExternalServer
    deployment: Deployment

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self.server.connect(DATABASE) as connection:
            return connection.execute(query.encode()).fetchall()

    def catalog(self) -> dict[str, list[tuple[Any, ...]]]:
        """What the database holds, as far as a stack could change it."""
        return {
            "schemas": self.rows("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' ORDER BY 1"),
            "tables": self.rows(
                "SELECT oid::regclass::text, relrowsecurity FROM pg_class WHERE relkind = 'r' ORDER BY 1"
            ),
            "publications": self.rows("SELECT pubname, tablename FROM pg_publication_tables ORDER BY 1, 2"),
            "roles": self.rows("SELECT rolname FROM pg_roles ORDER BY 1"),
            "orders": self.rows("SELECT id, item FROM public.orders ORDER BY 1"),
        }


@pytest.fixture(scope="module")
def adopting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adopting]:
    require_image(NEWEST, "REALTIME_IMAGE_NEWEST")
    with external_postgres() as server:
        with server.connect() as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}".encode())
        with server.connect(DATABASE) as connection:
            connection.execute(BEFORE.encode())
        deployment = new_deployment(
            tmp_path_factory.mktemp("external"),
            stack=unique_stack("external"),
            settings={
                "postgres.external.host": "localhost",
                "postgres.external.port": server.port,
                "postgres.external.ca_file": "ca.pem",
                "postgres.database": DATABASE,
                "tables": [WELLS, ORDERS],
            },
        )
        deployment.environ["REALTIME_IMAGE"] = NEWEST
        deployment.pulumi("config", "set", "--secret", "postgres.password", server.password)
        (deployment.folder / "ca.pem").write_text(server.authority.certificate)
        (deployment.folder / "other-ca.pem").write_text(Authority().certificate)
        try:
            yield Adopting(server, deployment)
        finally:
            removed(deployment)


def refused(deployment: Deployment, *command: str) -> str:
    """What a command says that refuses; nothing is in the state or on the engine."""
    done = (
        deployment.deploy(*command, check=False)
        if command[0] != "pulumi"
        else deployment.pulumi(*command[1:], check=False)
    )
    assert done.returncode not in (0, 7)
    assert deployment.state() == []
    assert deployment.docker_objects() == []
    return done.stdout + done.stderr


def test_what_the_server_lacks_is_listed_at_once_and_nothing_is_touched(adopting: Adopting) -> None:
    server, deployment = adopting.server, adopting.deployment
    before = adopting.catalog()
    with server.connect() as connection:
        connection.execute("ALTER SYSTEM SET wal_level = 'replica'")
        connection.execute("ALTER SYSTEM SET max_replication_slots = 1")
        connection.execute("ALTER ROLE anon BYPASSRLS")
    server.run("mv", LIBRARY, "/root")
    server.restart()
    try:
        for command in (("up",), ("preview",), ("pulumi", "preview")):
            said = refused(deployment, *command)
            for lack in (
                "wal_level is replica: `ALTER SYSTEM SET wal_level = logical`, then restart Postgres",
                'could not access file "wal2json"',
                "others use 0 of 1 replication slots, and Realtime needs 2",
                "role anon passes by every policy: `ALTER ROLE anon NOSUPERUSER NOBYPASSRLS`",
            ):
                assert said.count(lack) == 1, said
            assert "Traceback" not in said
            assert server.password not in said
        assert adopting.catalog() == before
    finally:
        server.run("mv", "/root/wal2json.so", LIBRARY)
        with server.connect() as connection:
            connection.execute("ALTER SYSTEM RESET wal_level")
            connection.execute("ALTER SYSTEM RESET max_replication_slots")
            connection.execute("ALTER ROLE anon NOBYPASSRLS")
        server.restart()


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("ca_file", "other-ca.pem", "certificate verify failed"),
        ("host", "127.0.0.1", "does not match host name"),
        ("address_in_network", "db.example.com", "is not good for db.example.com"),
    ],
    ids=["from-another-ca", "for-another-name", "for-another-name-in-the-network"],
)
def test_a_certificate_is_refused_that_is(setting: str, value: str, reason: str, adopting: Adopting) -> None:
    deployment = adopting.deployment
    path = deployment.folder / f"Pulumi.{deployment.stack}.yaml"
    original = path.read_text()
    try:
        deployment.configure({f"postgres.external.{setting}": value})
        assert reason in refused(deployment, "up")
    finally:
        path.write_text(original)


def test_the_stack_adopts_what_exists_and_leaves_it_at_the_end(adopting: Adopting) -> None:
    deployment = adopting.deployment
    before = adopting.catalog()

    deployment.up()  # the probe is part of it
    names = {container.name for container in docker.from_env().containers.list()}
    assert {name for name in names if name.startswith(deployment.name)} == {
        deployment.container_name("realtime"),
        deployment.container_name("gateway"),
    }
    assert docker.from_env().volumes.list(filters={"name": deployment.name}) == []
    assert adopting.rows(
        "SELECT tablename FROM pg_publication_tables WHERE pubname = 'supabase_realtime' ORDER BY 1"
    ) == [
        ("orders",),
        ("wells",),
    ]
    assert adopting.rows("SELECT to_regprocedure('auth.uid()') IS NOT NULL") == [(True,)]
    connections = adopting.rows(
        "SELECT a.application_name, s.ssl FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) "
        "WHERE a.datname = 'app' AND a.client_addr IS NOT NULL"
    )
    assert {"supabase_mt_realtime", "realtime_connect"} <= {name for name, _ in connections}
    assert all(encrypted for _, encrypted in connections)

    assert changed_resources(deployment.up().stdout) == []
    assert deployment.drift().returncode == 0
    examined = deployment.run(*DOCTOR, "--stack", deployment.stack, check=False)
    assert examined.returncode == 0, examined.stdout

    deployment.destroy()
    assert deployment.state() == []
    assert deployment.docker_objects() == []
    after = adopting.catalog()
    assert after["orders"] == before["orders"]
    for what in ("schemas", "roles", "publications"):
        assert set(before[what]) <= set(after[what]), what
    assert adopting.rows("SELECT has_table_privilege('reporting', 'public.orders', 'SELECT')") == [(True,)]
