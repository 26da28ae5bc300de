"""The doctor's exporter: what Prometheus reads of a real Postgres."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from prometheus_client import CollectorRegistry
from psycopg import sql
from pydantic import SecretStr

from doctor.__main__ import main
from doctor.checks.setup import Setup
from doctor.metrics import DatabaseFigures, serve
from tests.dashboard import names_in
from tests.database.conftest import Connection

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def registry(database: str) -> Iterator[CollectorRegistry]:
    made = CollectorRegistry()
    with Setup(dsn=SecretStr(database)) as setup:
        made.register(DatabaseFigures(setup))
        yield made


def test_a_slot_that_nobody_reads_shows_with_what_it_holds_back(admin: Connection, registry: CollectorRegistry) -> None:
    admin.execute("SELECT pg_create_logical_replication_slot('left_behind', 'pgoutput')")
    labels = {"slot": "left_behind", "plugin": "pgoutput"}
    try:
        before = registry.get_sample_value("supabase_realtime_replication_slot_retained_bytes", labels)
        admin.execute("CREATE TABLE filler AS SELECT n, repeat('x', 500) FROM generate_series(1, 10000) n")
        after = registry.get_sample_value("supabase_realtime_replication_slot_retained_bytes", labels)
        assert registry.get_sample_value("supabase_realtime_replication_slot_active", labels) == 0
        assert registry.get_sample_value("supabase_realtime_replication_slot_lost", labels) == 0
    finally:
        admin.execute("SELECT pg_drop_replication_slot('left_behind')")
    assert before is not None
    assert after is not None
    assert after - before > 4_000_000
    assert registry.get_sample_value("supabase_realtime_replication_slot_active", labels) is None


def test_publications_subscriptions_and_connections_are_counted(
    database: str, admin: Connection, registry: CollectorRegistry
) -> None:
    assert registry.get_sample_value("supabase_realtime_subscriptions") is None
    admin.execute(
        "CREATE TABLE public.wells (id int); CREATE PUBLICATION supabase_realtime FOR TABLE public.wells;"
        "CREATE SCHEMA realtime; CREATE TABLE realtime.subscription (id int);"
        "INSERT INTO realtime.subscription VALUES (1);"
        "CREATE SCHEMA _realtime; CREATE TABLE _realtime.tenants (external_id text, max_concurrent_users int);"
        "INSERT INTO _realtime.tenants VALUES ('live', 200)"
    )
    with psycopg.connect(database, application_name="realtime_connect"):
        count = registry.get_sample_value("supabase_realtime_connections", {"owner": "realtime", "state": "idle"})
    assert count == 1
    assert registry.get_sample_value("supabase_realtime_connections_max") == 50
    assert registry.get_sample_value("supabase_realtime_subscriptions") == 1
    assert registry.get_sample_value("supabase_realtime_tenant_max_concurrent_users", {"tenant": "live"}) == 200
    published = registry.get_sample_value("supabase_realtime_publication_tables", {"publication": "supabase_realtime"})
    assert published == 1


def test_the_oldest_transaction_that_has_written_is_aged(database: str, registry: CollectorRegistry) -> None:
    name = "supabase_realtime_oldest_write_seconds"
    assert registry.get_sample_value(name) == 0
    with psycopg.connect(database) as writer:
        writer.execute("CREATE TABLE held (id int)")
        assert (registry.get_sample_value(name) or 0) > 0


def test_a_server_that_ended_the_exporters_session_and_answers_is_up(
    database: str, superuser: Connection, registry: CollectorRegistry
) -> None:
    """As after a restart of Postgres, or of each scrape with an idle_session_timeout below their interval."""
    up = "supabase_realtime_database_up"
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    assert registry.get_sample_value(up) == 1
    ended = superuser.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = %s AND application_name = 'doctor'",
        [name],
    ).fetchall()
    assert ended == [(True,)]
    assert registry.get_sample_value(up) == 1


def test_a_server_that_is_down_is_said_and_no_old_figure_is_shown(
    database: str, superuser: Connection, registry: CollectorRegistry
) -> None:
    up = "supabase_realtime_database_up"
    name = sql.Identifier(str(psycopg.conninfo.conninfo_to_dict(database)["dbname"]))
    assert registry.get_sample_value(up) == 1
    superuser.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
    superuser.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'doctor'")
    assert [family.name for family in registry.collect()] == [up]
    assert registry.get_sample_value(up) == 0
    superuser.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))
    assert registry.get_sample_value(up) == 1


def test_every_figure_of_postgres_on_the_dashboard_is_exported(admin: Connection, registry: CollectorRegistry) -> None:
    admin.execute(
        "CREATE SCHEMA realtime; CREATE TABLE realtime.subscription (id int); CREATE SCHEMA _realtime;"
        "CREATE TABLE _realtime.tenants AS SELECT 'live' AS external_id, 200 AS max_concurrent_users;"
        " CREATE PUBLICATION supabase_realtime;"
    )
    admin.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '4GB'")
    admin.execute("SELECT pg_reload_conf()")
    admin.execute("SELECT pg_create_logical_replication_slot('for_its_figures', 'pgoutput')")
    try:
        exported = {sample.name for family in registry.collect() for sample in family.samples}
    finally:
        admin.execute("SELECT pg_drop_replication_slot('for_its_figures')")
        admin.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        admin.execute("SELECT pg_reload_conf()")
    shown = {name for name in names_in(PROJECT / "observability/dashboard.json") if name.startswith("supabase_")}
    assert shown
    assert shown <= exported


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_ended(number: signal.Signals, database: str) -> None:
    script = (
        "import os, sys; from doctor.checks.setup import Setup; from doctor.metrics import serve;"
        "sys.exit(serve(Setup(dsn=os.environ['DSN']), '127.0.0.1', 0))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=PROJECT,
        env={**os.environ, "DSN": database},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        answer = httpx.get(address, trust_env=False)
        assert "supabase_realtime_database_up 1.0" in answer.text
        assert httpx.post(address, trust_env=False).status_code == 405
        process.send_signal(number)
        assert process.wait(timeout=20) == 0


def test_a_port_that_is_taken_is_one_line(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve(Setup(dsn=SecretStr(database)), "127.0.0.1", port) == 1
    assert capsys.readouterr().err == (
        f"--listen: 127.0.0.1:{port} cannot be had (Address already in use); choose another\n"
    )


def test_an_address_without_a_host_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["metrics", "--listen", "8000"])
    assert "'8000' is not HOST:PORT, like 127.0.0.1:9187" in capsys.readouterr().err
