"""What the doctor says of a server that may have no wal2json, when it cannot tell."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from doctor.checks import postgres
from doctor.checks.finding import Status
from doctor.checks.setup import Setup
from doctor.examination import examine
from tests.database.conftest import Connection

LOGIN = "doctor_with_one_connection"
RECORDING = """
CREATE SCHEMA recording;
CREATE TABLE recording.slots (name text);
GRANT USAGE ON SCHEMA recording TO PUBLIC;
CREATE FUNCTION recording.pg_create_logical_replication_slot(name text, plugin text, temporary boolean) RETURNS void
    LANGUAGE sql AS 'INSERT INTO recording.slots VALUES (name)';
"""


@pytest.fixture
def one_connection(database: str, superuser: Connection) -> Iterator[str]:
    """A login that may replicate and have one connection at a time."""
    created = sql.SQL("CREATE ROLE {} LOGIN REPLICATION CONNECTION LIMIT 1 PASSWORD 'its-own-login'")
    superuser.execute(created.format(sql.Identifier(LOGIN)))
    try:
        yield psycopg.conninfo.make_conninfo(database, user=LOGIN, password="its-own-login")
    finally:
        superuser.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(LOGIN)))


def test_a_server_without_the_plugin_is_told_of(database: str) -> None:
    with Setup(dsn=SecretStr(database)) as setup:
        finding = postgres.wal2json(setup)
    assert (finding.status, finding.cause) == (Status.FAILED, "wal2json-missing")
    assert 'could not access file "wal2json"' in finding.seen


def test_without_a_connection_to_try_with_nothing_is_said_of_the_plugin(one_connection: str) -> None:
    examination = examine(Setup(dsn=SecretStr(one_connection)), checks=[postgres.reachable, postgres.wal2json])
    finding = examination.finding("postgres.wal2json")
    assert finding.status is Status.SKIPPED, finding
    assert finding.seen.startswith("could not look: OperationalError"), finding.seen
    assert f'too many connections for role "{LOGIN}"' in finding.seen
    assert examination.unlooked == ("postgres.wal2json",)
    assert examination.root is None
    assert examination.exit_status == 3


def test_two_doctors_at_once_make_slots_of_different_names(
    database: str, admin: Connection, superuser: Connection
) -> None:
    """The embedded server has no wal2json: a function in front of Postgres's own takes down what it is asked."""
    admin.execute(RECORDING.encode())
    name = sql.Identifier(admin.info.dbname)
    superuser.execute(sql.SQL("ALTER DATABASE {} SET search_path = recording, pg_catalog").format(name))
    for _ in range(2):
        with Setup(dsn=SecretStr(database)) as setup:
            assert postgres.wal2json(setup).status is Status.OK
    names = {name for (name,) in admin.execute("SELECT name FROM recording.slots").fetchall()}
    assert len(names) == 2
    assert all(name.startswith("doctor_") for name in names)
