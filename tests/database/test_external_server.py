"""A Postgres that somebody else runs: found fit or not, and what of auth is made in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from providers import connection, external_server
from providers.auth_schema import AuthSchemaProvider, definitions
from providers.connection import DatabaseError, transaction
from providers.external_server import ExternalServerProvider
from settings import ExternalPostgres, SslMode
from tests.database.conftest import Connection
from tests.database.engine import CheckFailedError, Engine

SLOT = "supabase_realtime_replication_slot"
NEEDED = {
    "host": "db.example.com",
    "port": 5432,
    "database": "app",
    "slots": 2,
    "slot": SLOT,
    "publication": "supabase_realtime",
    "tables": ["public.orders"],
}
WITHOUT_WAL2JSON = 'could not access file "wal2json": No such file or directory: install wal2json on the server'
"""What the embedded server never has."""


@pytest.fixture
def engine(database: str, monkeypatch: pytest.MonkeyPatch) -> Engine:
    external = ExternalPostgres.model_validate({"host": "db.example.com", "sslmode": SslMode.DISABLE})
    monkeypatch.setattr(external_server, "_external", external)
    return Engine(ExternalServerProvider())


@pytest.fixture
def fit(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """A server with wal2json, as far as this one is asked."""
    monkeypatch.setattr(external_server, "PLUGIN", "plpgsql")
    return engine


def lacks(engine: Engine, **needed: Any) -> list[str]:
    """The lines of the one message by which the server is refused."""
    with pytest.raises(CheckFailedError) as refused:
        engine.up({**NEEDED, **needed})
    head, *lines = str(refused.value).split("\n  - ")
    assert head == "the Postgres of postgres.external.host, db.example.com:5432, cannot be used yet:"
    return lines


def test_a_server_without_wal2json_is_refused_with_the_package_to_install(engine: Engine) -> None:
    (line,) = lacks(engine)
    assert line.startswith(WITHOUT_WAL2JSON)
    assert line.endswith("package postgresql-16-wal2json")


def test_a_server_that_has_everything_is_used_and_then_unchanged(fit: Engine) -> None:
    assert fit.up(NEEDED) == "create"
    assert fit.up(NEEDED) == "same"
    fit.refresh()
    assert fit.up(NEEDED) == "same"
    assert fit.drift(NEEDED) == {}
    fit.destroy()


def test_everything_that_is_lacking_is_said_in_one_message(engine: Engine, admin: Connection) -> None:
    admin.execute("CREATE TABLE secrets (id int PRIMARY KEY)")
    admin.execute("CREATE PUBLICATION supabase_realtime FOR TABLE secrets")
    admin.execute("ALTER ROLE authenticated BYPASSRLS; ALTER ROLE service_role NOBYPASSRLS")
    try:
        wal2json, slots, senders, hidden, bypassing, publication = lacks(engine, slots=1000)
    finally:
        admin.execute("ALTER ROLE authenticated NOBYPASSRLS; ALTER ROLE service_role BYPASSRLS")
    assert wal2json.startswith(WITHOUT_WAL2JSON)
    assert "and Realtime needs 1000" in slots
    assert senders.startswith("max_wal_senders is ")
    assert hidden == "role authenticated passes by every policy: `ALTER ROLE authenticated NOSUPERUSER NOBYPASSRLS`"
    assert bypassing.endswith("sees no row: `ALTER ROLE service_role BYPASSRLS`")
    assert publication == (
        "publication supabase_realtime publishes public.secrets, which `tables` does not declare: declare them, or "
        "`ALTER PUBLICATION supabase_realtime DROP TABLE public.secrets`"
    )


def test_looking_changes_nothing(engine: Engine, admin: Connection) -> None:
    query = "SELECT (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_roles), pg_current_xact_id_if_assigned()"
    before = admin.execute(query).fetchone()
    lacks(engine)
    assert admin.execute(query).fetchone() == before
    assert admin.execute("SELECT slot_name FROM pg_replication_slots").fetchall() == []


def test_a_publication_of_the_declared_tables_is_no_obstacle(fit: Engine, admin: Connection) -> None:
    admin.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    admin.execute("CREATE PUBLICATION supabase_realtime FOR TABLE orders")
    assert fit.up(NEEDED) == "create"


def test_a_table_that_somebody_publishes_later_is_drift_and_no_obstacle(fit: Engine, admin: Connection) -> None:
    """The Publication resource takes it out again."""
    fit.up(NEEDED)
    admin.execute("CREATE TABLE secrets (id int PRIMARY KEY)")
    admin.execute("CREATE PUBLICATION supabase_realtime FOR TABLE secrets")
    assert fit.up(NEEDED) == "same"


def test_another_realtime_on_the_same_slot_is_seen(fit: Engine, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', true)", [SLOT])
        (line,) = lacks(fit)
        assert line.startswith(f"slot {SLOT} is being read by another Realtime (pid {other.info.backend_pid})")
        other.execute("SELECT pg_drop_replication_slot(%s)", [SLOT])


def test_slots_of_others_are_counted_and_those_of_realtime_are_not(fit: Engine, admin: Connection) -> None:
    (most,) = admin.execute("SELECT current_setting('max_replication_slots')::int").fetchone() or (0,)
    names = [f"other_{number}" for number in range(most - 1)]
    try:
        for name in names:
            admin.execute("SELECT pg_create_physical_replication_slot(%s)", [name])
        (line,) = lacks(fit)
        assert line.startswith(f"others use {most - 1} of {most} replication slots, and Realtime needs 2: drop what")
        assert f"`ALTER SYSTEM SET max_replication_slots = {most + 1}`, then restart Postgres" in line
        assert fit.up({**NEEDED, "slots": 1}) == "create"
    finally:
        for name in names:
            admin.execute("SELECT pg_drop_replication_slot(%s)", [name])


@pytest.fixture
def ordinary(database: str, admin: Connection) -> Iterator[str]:
    """Connection string of a login that is no superuser."""
    admin.execute("CREATE ROLE ordinary LOGIN PASSWORD 'ordinary-password'")
    try:
        yield psycopg.conninfo.make_conninfo(database, user="ordinary", password="ordinary-password")
    finally:
        admin.execute("DROP ROLE ordinary")


def test_a_login_that_is_no_superuser_is_refused(fit: Engine, ordinary: str) -> None:
    connection.connect_to(ordinary)
    (line,) = lacks(fit)
    assert line.startswith("ordinary is no superuser, and Realtime's functions set log_min_messages")
    assert '`ALTER ROLE "ordinary" SUPERUSER`, or set postgres.user to one' in line


def test_a_server_that_came_in_the_place_of_the_first_is_refused(fit: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a refresh would take everything on the first one for gone."""
    fit.up(NEEDED)
    monkeypatch.setattr(external_server, "identity", lambda _: "another")
    (line,) = lacks(fit)
    assert line.startswith("db.example.com is another server than the one that this stack was made on")
    with pytest.raises(DatabaseError, match="is another server than the one"):
        fit.refresh()


OBJECTS = {"objects": list(definitions())}


def test_all_of_auth_is_made_where_there_is_none(acting_as: Callable[..., Connection]) -> None:
    engine = Engine(AuthSchemaProvider())
    assert engine.up(OBJECTS) == "create"
    subject = "7f9c24e8-3b12-4fef-91e0-5bb5ecf5d7f1"
    asking = acting_as("anon", {"sub": subject})
    assert asking.execute("SELECT auth.uid()::text").fetchone() == (subject,)
    assert engine.up(OBJECTS) == "same"
    assert engine.drift(OBJECTS) == {}


def test_what_there_is_of_auth_stays_as_it_is(database: str, admin: Connection) -> None:
    admin.execute("CREATE SCHEMA auth")
    admin.execute("CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql AS 'SELECT NULL::uuid'")
    admin.execute("CREATE TABLE auth.users (id uuid PRIMARY KEY, invited_at timestamptz)")
    existing = (
        "SELECT p.oid, p.prosrc, 'auth.users'::regclass::oid, n.nspacl FROM pg_proc p, pg_namespace n "
        "WHERE p.oid = 'auth.uid()'::regprocedure AND n.nspname = 'auth'"
    )
    before = admin.execute(existing).fetchall()
    Engine(AuthSchemaProvider()).up(OBJECTS)
    assert admin.execute(existing).fetchall() == before
    assert admin.execute("SELECT to_regprocedure('auth.jwt()')::text").fetchone() == ("auth.jwt()",)


def test_a_function_that_somebody_dropped_is_drift_and_comes_back(database: str, admin: Connection) -> None:
    engine = Engine(AuthSchemaProvider())
    engine.up(OBJECTS)
    admin.execute("DROP FUNCTION auth.email()")
    assert engine.drift(OBJECTS) == {"objects": [name for name in OBJECTS["objects"] if name != "auth.email()"]}
    engine.refresh()
    assert engine.up(OBJECTS) == "update"
    with transaction() as cursor:
        cursor.execute("SELECT auth.email()")


def test_the_end_of_the_stack_leaves_auth(database: str, admin: Connection) -> None:
    engine = Engine(AuthSchemaProvider())
    engine.up(OBJECTS)
    engine.destroy()
    assert admin.execute("SELECT to_regclass('auth.users')::text").fetchone() == ("auth.users",)
