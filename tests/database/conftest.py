"""A real Postgres for the providers, from a PyPI package: nothing to install, nothing left behind."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from providers import connection
from providers.roles import DatabaseRolesProvider
from rehearsal.server import embedded_postgres
from settings import ApiRole
from tests.database.engine import Engine

ROLES = [*(role.value for role in ApiRole), "postgres"]
numbers = itertools.count(1)

Connection = psycopg.Connection[tuple[Any, ...]]


def until(connection: Connection, query: LiteralString, timeout: float = 10.0) -> None:
    """Wait until a query answers with a row."""
    deadline = time.monotonic() + timeout
    while connection.execute(query).fetchone() is None:
        assert time.monotonic() < deadline, f"no row within {timeout:.0f} s: {query}"


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Connection string of a Postgres with wal_level logical that lives as long as the tests."""
    with embedded_postgres() as conninfo:
        yield conninfo


@pytest.fixture(scope="session")
def superuser(server: str) -> Iterator[Connection]:
    """A connection to the server that makes and drops the tests' databases."""
    with psycopg.connect(server, autocommit=True) as opened:
        yield opened


@pytest.fixture
def empty_database(server: str, superuser: Connection) -> Iterator[str]:
    """Connection string of a database that holds nothing, to which the providers are connected."""
    name = f"test_{next(numbers)}"
    # Five times as fast as the default strategy, which writes every page to the log.
    superuser.execute(sql.SQL("CREATE DATABASE {} STRATEGY file_copy").format(sql.Identifier(name)))
    conninfo = psycopg.conninfo.make_conninfo(server, dbname=name)
    connection.connect_to(conninfo)
    try:
        yield conninfo
    finally:
        connection.close()
        superuser.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def database(empty_database: str) -> str:
    """The same, with the roles that Realtime and the API need."""
    Engine(DatabaseRolesProvider()).up({"roles": ROLES})
    return empty_database


@pytest.fixture
def admin(database: str) -> Iterator[Connection]:
    """The superuser's connection to the test's database: what a person does by hand."""
    with psycopg.connect(database, autocommit=True) as opened:
        yield opened


@pytest.fixture
def acting_as(database: str) -> Iterator[Callable[..., Connection]]:
    """Makes a connection in an API role, with a token's claims, as Realtime and PostgREST set them."""
    with ExitStack() as open_connections:

        def connect(role: str, claims: Mapping[str, Any] | None = None) -> Connection:
            opened = open_connections.enter_context(psycopg.connect(database, autocommit=True))
            opened.execute("SELECT set_config('request.jwt.claims', %s, false)", [json.dumps(claims or {})])
            opened.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
            return opened

        yield connect
