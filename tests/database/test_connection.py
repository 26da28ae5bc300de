"""The providers' connection: which server, and what a user reads when it is not to be had."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from pulumi.dynamic import Config, ConfigureRequest

from providers import connection
from providers.connection import DatabaseError, DatabaseProvider, transaction
from providers.table_security import TableSecurityProvider
from settings import NAMESPACE, SettingsError
from tests.database.conftest import Connection, until
from tests.database.engine import Engine

WRONG_PASSWORD = "not-the-password-of-this-server"


def refusal(conninfo: str) -> str:
    """What a user reads when the providers try this server."""
    connection.connect_to(conninfo)
    with pytest.raises(DatabaseError) as refused, transaction():
        pass
    # A traceback that goes on to psycopg's own error could hold more than the message.
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__
    return str(refused.value)


def other(conninfo: str, **parameters: str | int) -> str:
    return psycopg.conninfo.make_conninfo(conninfo, **parameters)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port that takes connections and says nothing, like a server that hangs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        yield int(listener.getsockname()[1])


def test_a_wrong_password_is_named_with_its_cure_and_not_shown(database: str) -> None:
    port = psycopg.conninfo.conninfo_to_dict(database)["port"]
    assert refusal(other(database, password=WRONG_PASSWORD)) == (
        f"Postgres on 127.0.0.1:{port} refuses the password of supabase_admin. A data volume keeps the password it "
        "was made with: set postgres.password back to that, or change both with ALTER ROLE … PASSWORD"
    )


def test_a_server_that_is_down_is_named_with_its_cure(database: str, unused_port: int) -> None:
    assert refusal(other(database, port=unused_port)) == (
        f"Postgres on 127.0.0.1:{unused_port} does not answer: start its container (`docker ps -a` shows it), "
        "then run `make up` again"
    )


def test_a_server_that_hangs_is_given_up(database: str, deaf_port: int) -> None:
    """libpq waits two seconds at least."""
    message = refusal(other(database, port=deaf_port, connect_timeout=1))
    assert message.startswith(f"Postgres on 127.0.0.1:{deaf_port} does not answer: ")


@pytest.mark.parametrize(
    ("parameters", "fault"),
    [
        ({"dbname": "nowhere"}, 'database "nowhere" does not exist'),
        ({"user": "nobody"}, "refuses the password of nobody"),
    ],
)
def test_another_refusal_is_in_the_servers_own_words(parameters: dict[str, str], fault: str, database: str) -> None:
    message = refusal(other(database, **parameters))
    assert message.startswith("Postgres on 127.0.0.1:")
    assert fault in message


@pytest.mark.parametrize("parameters", [{"password": WRONG_PASSWORD}, {"dbname": "nowhere"}, {"port": 1}])
def test_no_refusal_shows_a_password(parameters: dict[str, Any], database: str) -> None:
    password = str(psycopg.conninfo.conninfo_to_dict(database)["password"])
    message = refusal(other(database, **parameters))
    assert password not in message
    assert WRONG_PASSWORD not in message


def test_a_provider_that_no_config_was_given_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_config", None)
    monkeypatch.setattr(connection, "_conninfo", None)
    with pytest.raises(DatabaseError, match=r"set postgres\.password in the stack's config"), transaction():
        pass


def configured(config: dict[str, Any]) -> None:
    """A provider that the engine starts with a stack's config."""
    DatabaseProvider().configure(ConfigureRequest(Config(raw_config=config, project_name=NAMESPACE)))


@pytest.fixture
def stack_config(database: str) -> dict[str, Any]:
    """The config of a stack whose Postgres is the test's."""
    where = psycopg.conninfo.conninfo_to_dict(database)
    connection.connect_to("port=1")
    return {
        f"{NAMESPACE}:postgres.host_port": where["port"],
        f"{NAMESPACE}:postgres.database": where["dbname"],
        f"{NAMESPACE}:postgres.user": where["user"],
        f"{NAMESPACE}:postgres.password": where["password"],
    }


def test_a_provider_takes_its_server_from_the_stacks_config(stack_config: dict[str, Any]) -> None:
    configured(stack_config)
    with transaction() as cursor:
        cursor.execute("SELECT current_database() AS name, current_setting('application_name') AS application")
        assert cursor.fetchone() == {
            "name": stack_config[f"{NAMESPACE}:postgres.database"],
            "application": "supabase-realtime-stack",
        }


def test_a_config_without_a_password_is_an_error_that_names_it(stack_config: dict[str, Any]) -> None:
    del stack_config[f"{NAMESPACE}:postgres.password"]
    configured(stack_config)
    with pytest.raises(SettingsError, match=r"supabase-realtime:postgres\.password: is missing"), transaction():
        pass


def test_a_transaction_is_committed_at_its_end(admin: Connection) -> None:
    with transaction() as cursor:
        cursor.execute("CREATE TABLE public.wells (id int)")
        assert admin.execute("SELECT to_regclass('public.wells')").fetchone() == (None,)
    assert admin.execute("SELECT to_regclass('public.wells')::text").fetchone() == ("wells",)


def test_a_transaction_is_rolled_back_by_an_error_and_the_next_works(admin: Connection) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero), transaction() as cursor:
        cursor.execute("CREATE TABLE public.wells (id int)")
        cursor.execute("SELECT 1 / 0")
    assert admin.execute("SELECT to_regclass('public.wells')").fetchone() == (None,)
    with transaction() as cursor:
        cursor.execute("SELECT 1 AS one")
        assert cursor.fetchone() == {"one": 1}


def test_a_change_that_cannot_have_its_table_gives_up_and_says_what_to_do(
    admin: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LOCK_TIMEOUT", "100ms")
    admin.execute("CREATE TABLE public.wells (id int PRIMARY KEY)")
    engine = Engine(TableSecurityProvider())
    declared = {
        "schema": "public",
        "table": "wells",
        "row_security": True,
        "force": False,
        "replica_identity": "default",
        "exclusive": True,
        "policies": [],
        "privileges": {},
        "undeclared_privileges": {},
    }
    with admin.transaction():
        admin.execute("LOCK TABLE public.wells")
        with pytest.raises(DatabaseError) as locked:
            engine.up(declared)
    assert str(locked.value) == (
        "canceling statement due to lock timeout: another transaction held the table for 100ms; "
        "end it (pg_stat_activity names it) and run `make up` again"
    )
    assert engine.up(declared) == "create"


def test_the_lock_timeout_is_the_transactions_own(database: str) -> None:
    """Ten seconds: longer would hold every query of the application that comes behind."""
    with transaction() as cursor:
        cursor.execute("SELECT current_setting('lock_timeout') AS timeout")
        assert cursor.fetchone() == {"timeout": "10s"}


def backend(cursor: connection.Cursor) -> int:
    cursor.execute("SELECT pg_backend_pid() AS pid")
    row = cursor.fetchone()
    assert row is not None
    return int(row["pid"])


def until_gone(admin: Connection, pid: int) -> None:
    admin.execute("SELECT set_config('test.pid', %s, false)", [str(pid)])
    until(
        admin,
        "SELECT WHERE NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = current_setting('test.pid')::int)",
    )


def test_all_providers_of_a_process_share_one_connection(database: str) -> None:
    with transaction() as cursor:
        first = backend(cursor)
    with transaction() as cursor:
        assert backend(cursor) == first


def test_a_connection_that_the_server_ended_is_opened_again(admin: Connection) -> None:
    """A refresh looks at the database before the update replaces the container in which it runs."""
    with transaction() as cursor:
        ended = backend(cursor)
    admin.execute("SELECT pg_terminate_backend(%s)", [ended])
    until_gone(admin, ended)
    with transaction() as cursor:
        assert backend(cursor) != ended


def test_a_server_that_goes_away_in_the_middle_is_named_and_the_next_change_goes_through(admin: Connection) -> None:
    with pytest.raises(DatabaseError) as lost, transaction() as cursor:
        cursor.execute("CREATE TABLE public.wells (id int)")
        admin.execute("SELECT pg_terminate_backend(%s)", [backend(cursor)])
        cursor.execute("SELECT 1")
    assert re.fullmatch(
        r"Postgres on 127\.0\.0\.1:\d+ ended the connection in the middle of a change: "
        r"terminating connection due to administrator command; run `make up` again",
        str(lost.value),
    )
    with transaction() as cursor:
        cursor.execute("SELECT to_regclass('public.wells') AS made")
        assert cursor.fetchone() == {"made": None}


def test_another_server_closes_the_connection_to_the_first(database: str, server: str, admin: Connection) -> None:
    with transaction() as cursor:
        first = backend(cursor)
    connection.connect_to(server)
    with transaction() as cursor:
        cursor.execute("SELECT current_database() AS name")
        assert cursor.fetchone() == {"name": "postgres"}
    until_gone(admin, first)


def test_providers_of_different_threads_take_turns(database: str) -> None:
    """The engine calls four at once; statements of two transactions must not mix on one connection."""
    inside = threading.Lock()

    def change(_: int) -> int:
        with transaction() as cursor:
            assert inside.acquire(blocking=False), "two transactions at once"
            cursor.execute("SELECT txid_current() AS id")
            row = cursor.fetchone()
            cursor.execute("SELECT txid_current() AS id")
            assert cursor.fetchone() == row
            inside.release()
        assert row is not None
        return int(row["id"])

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(change, range(40)))) == 40


def test_an_error_in_one_thread_lets_the_others_go_on(database: str) -> None:
    def change(number: int) -> str:
        try:
            with transaction() as cursor:
                cursor.execute("SELECT 1 / %s", [number % 2])
        except psycopg.errors.DivisionByZero:
            return "refused"
        return "done"

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(change, range(20))) == ["refused", "done"] * 10
