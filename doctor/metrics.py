"""``python -m doctor metrics``: figures of the stack's Postgres for Prometheus, read anew at every scrape."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from doctor import outputs
from doctor.checks.setup import Setup, of_outputs
from settings import DEVELOPMENT_STACK

LISTEN = "127.0.0.1:9187"
"""The port that exporters of Postgres commonly listen on."""
PREFIX = "supabase_realtime"
CANNOT_LISTEN = 1

SLOTS = """
SELECT slot_name AS slot, coalesce(plugin, 'physical') AS plugin, active, wal_status = 'lost' AS lost,
       pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint AS retained,
       pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint AS unconfirmed
FROM pg_replication_slots ORDER BY 1
"""
SERVER = """
SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint AS written,
       (SELECT coalesce(sum(size), 0)::bigint FROM pg_ls_waldir()) AS directory,
       (SELECT CASE setting WHEN '-1' THEN NULL ELSE setting::bigint * 1024 * 1024 END
        FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS keep,
       current_setting('max_replication_slots')::int AS slots,
       current_setting('max_connections')::int AS connections,
       (SELECT coalesce(extract(epoch FROM max(now() - xact_start)), 0)::float8 FROM pg_stat_activity
        WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()) AS oldest
"""
CONNECTIONS = """
SELECT CASE WHEN application_name LIKE ANY ('{supabase_mt_realtime%,realtime_%}') THEN 'realtime' ELSE 'other' END
       AS owner, coalesce(state, 'unknown') AS state, count(*) AS number
FROM pg_stat_activity WHERE backend_type = 'client backend' GROUP BY 1, 2 ORDER BY 1, 2
"""
PUBLICATIONS = """
SELECT p.pubname AS publication, count(t.tablename) AS tables
FROM pg_publication p LEFT JOIN pg_publication_tables t ON t.pubname = p.pubname GROUP BY 1 ORDER BY 1
"""
MADE_BY_REALTIME = (
    "SELECT to_regclass('realtime.subscription') IS NOT NULL AS subscription, "
    "to_regclass('_realtime.tenants') IS NOT NULL AS tenants"
)
SUBSCRIPTIONS = "SELECT count(*) AS number FROM realtime.subscription"
TENANTS = "SELECT external_id AS tenant, max_concurrent_users AS users FROM _realtime.tenants ORDER BY 1"


@dataclass(eq=False)
class DatabaseFigures(Collector):
    """The figures of one database. Without an answer of it, ``supabase_realtime_database_up`` 0 and no others."""

    setup: Setup
    _one_scrape: threading.Lock = field(default_factory=threading.Lock)

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: a server that is down must not keep the exporter from starting."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Everything that a scrape answers."""
        with self._one_scrape:
            figures = self._answered()
        up = "Whether the database answers."
        yield GaugeMetricFamily(f"{PREFIX}_database_up", up, value=float(bool(figures)))
        yield from figures

    def _answered(self) -> list[Metric]:
        """The figures; none without an answer, of which the doctor says what is wrong.

        The session of the last scrape may have ended since, for instance by ``idle_session_timeout`` or in a restart,
        of a server that answers: then a new one is asked.
        """
        kept = "connection" in self.setup.__dict__
        try:
            return self._read()
        except psycopg.Error:
            self.setup.close()
        try:
            return self._read() if kept else []
        except psycopg.Error:
            self.setup.close()
            return []

    def _read(self) -> list[Metric]:
        return [
            *_slots(self.setup.rows(SLOTS)),
            *_server(self.setup.row(SERVER)),
            _gauge("connections", "Client connections.", ("owner", "state"), self.setup.rows(CONNECTIONS), "number"),
            _gauge(
                "publication_tables",
                "Tables of a publication.",
                ("publication",),
                self.setup.rows(PUBLICATIONS),
                "tables",
            ),
            *self._of_realtime(),
        ]

    def _of_realtime(self) -> Iterator[Metric]:
        """What Realtime keeps in the database, once it has made the tables."""
        made = self.setup.row(MADE_BY_REALTIME)
        if made["subscription"]:
            number = self.setup.row(SUBSCRIPTIONS)["number"]
            text = "Subscriptions to changes of tables, of every client."
            yield GaugeMetricFamily(f"{PREFIX}_subscriptions", text, value=number)
        if made["tenants"]:
            text = "Clients beyond which Realtime refuses."
            yield _gauge("tenant_max_concurrent_users", text, ("tenant",), self.setup.rows(TENANTS), "users")


def _slots(rows: Sequence[dict[str, Any]]) -> Iterator[Metric]:
    labels = ("slot", "plugin")
    yield _gauge("replication_slot_active", "Whether somebody reads the slot.", labels, rows, "active")
    yield _gauge("replication_slot_lost", "Whether WAL that the slot needs is removed.", labels, rows, "lost")
    yield _gauge("replication_slot_retained_bytes", "WAL that the slot holds back.", labels, rows, "retained")
    unconfirmed = "WAL that the slot's reader has not confirmed."
    yield _gauge("replication_slot_unconfirmed_bytes", unconfirmed, labels, rows, "unconfirmed")


def _server(row: dict[str, Any]) -> Iterator[Metric]:
    written = CounterMetricFamily(f"{PREFIX}_wal_written_bytes", "WAL written since the server was made.")
    written.add_metric([], row["written"])
    yield written
    for name, text, key in (
        ("wal_directory_bytes", "WAL on disk.", "directory"),
        ("replication_slots_max", "Most replication slots that the server has.", "slots"),
        ("connections_max", "Most connections that the server takes.", "connections"),
        ("oldest_write_seconds", "Age of the oldest transaction that has written; a new slot waits for it.", "oldest"),
    ):
        yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=row[key])
    if row["keep"] is not None:
        text = "Most WAL that a slot may hold back (max_slot_wal_keep_size)."
        yield GaugeMetricFamily(f"{PREFIX}_slot_wal_keep_bytes", text, value=row["keep"])


def _gauge(
    name: str, text: str, labels: Sequence[str], rows: Sequence[dict[str, Any]], value: str
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for row in rows:
        if row[value] is not None:
            family.add_metric([str(row[label]) for label in labels], float(row[value]))
    return family


def add_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand. It sets ``run`` in the parsed arguments."""
    serving = subparsers.add_parser(
        "metrics",
        help="serve figures of Postgres to Prometheus until ended",
        description="Serves figures of a stack's Postgres: slots, WAL, connections, publications. Reads only.",
    )
    which = serving.add_mutually_exclusive_group()
    which.add_argument("--stack", default=DEVELOPMENT_STACK, help="default: %(default)s")
    which.add_argument("--outputs", metavar="FILE", help="its outputs as JSON in a file; - for standard input")
    serving.add_argument(
        "--listen", type=_address, default=LISTEN, metavar="HOST:PORT", help="default: %(default)s, which is loopback"
    )
    serving.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Serves until SIGINT or SIGTERM; the exit status."""
    try:
        found = outputs.read_file(given.outputs) if given.outputs else outputs.read_stack(given.stack)
    except outputs.OutputsError as unreadable:
        print(unreadable, file=sys.stderr)
        return CANNOT_LISTEN
    with of_outputs(found, stack=given.stack) as setup:
        return serve(setup, *given.listen)


def serve(setup: Setup, host: str, port: int) -> int:
    """Serves a setup's figures until SIGINT or SIGTERM; the exit status."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(DatabaseFigures(setup))
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as refused:
        print(f"--listen: {host}:{port} cannot be had ({refused.strerror}); choose another", file=sys.stderr)
        return CANNOT_LISTEN
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    print(f"figures of the database at http://{host}:{server.server_port}/metrics", flush=True)
    ended.wait()
    server.shutdown()
    server.server_close()
    thread.join()
    return 0


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdigit() and int(port) <= 65_535):  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, like {LISTEN}")
    return host, int(port)
