"""The one connection to the stack's Postgres that all providers of a process share."""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, dict_row
from pulumi.dynamic import Config, ConfigureRequest, ResourceProvider

if TYPE_CHECKING:
    from settings import PostgresSettings

HOST = "127.0.0.1"
"""The stack's own Postgres publishes its port on loopback only."""

LOCK_TIMEOUT = "10s"
"""How long a change waits for a table: a longer wait would queue every query of the application behind it."""

Cursor = psycopg.Cursor[DictRow]

_lock = threading.RLock()
_config: Config | None = None
"""The stack's config, as long as nobody has asked for the connection that it names."""
_conninfo: str | None = None
_connection: psycopg.Connection[DictRow] | None = None


class DatabaseError(Exception):
    """What Postgres refused, and what to do about it."""


class DatabaseProvider(ResourceProvider):
    """A dynamic provider of objects in the stack's Postgres.

    It takes the connection from the stack's config, so that no connection secret is an input of a resource.
    """

    def configure(self, req: ConfigureRequest) -> None:
        global _config  # noqa: PLW0603 - the stack's config, the same for every resource of the process
        # The engine waits for this process to end, which looks for garbage once more: not in what was imported.
        gc.freeze()
        _config = req.config


def conninfo(postgres: PostgresSettings) -> str:
    """The libpq connection string of a stack's Postgres. Holds the password: for psycopg only."""
    return psycopg.conninfo.make_conninfo(
        **server_parameters(postgres),
        dbname=postgres.database,
        user=postgres.user,
        password=postgres.password.get_secret_value(),
        connect_timeout=10,
        application_name="supabase-realtime-stack",
    )


def server_parameters(postgres: PostgresSettings) -> dict[str, Any]:
    """Where a stack's Postgres listens, as libpq parameters; of an external one also how TLS is used."""
    external = postgres.external
    if external is None:
        return {"host": HOST, "port": postgres.host_port}
    where = {"host": external.host, "port": external.port, "sslmode": external.sslmode.value}
    return where | ({"sslrootcert": external.ca_file} if external.ca_file is not None else {})


def connect_to(conninfo: str) -> None:
    """Choose the server that ``transaction`` talks to. Connects when first used."""
    global _config, _conninfo, _connection  # noqa: PLW0603 - of a process, of which the engine makes one per update
    with _lock:
        _config = None
        if conninfo != _conninfo and _connection is not None:
            _connection.close()
            _connection = None
        _conninfo = conninfo


@contextmanager
def connected_through(connection: psycopg.Connection[DictRow]) -> Iterator[None]:
    """``transaction`` works within what an open connection has begun, until the block ends."""
    global _config, _connection  # noqa: PLW0603
    close()
    _config, _connection = None, connection
    try:
        yield
    finally:
        _connection = None


def connection_parameters() -> dict[str, Any]:
    """The libpq parameters of the chosen server, for a library that connects by itself. Holds the password."""
    _read_config()
    if _conninfo is None:
        raise DatabaseError("no Postgres was configured for this provider: set postgres.password in the stack's config")
    return dict(psycopg.conninfo.conninfo_to_dict(_conninfo))


def _read_config() -> None:
    if _config is not None:
        # A preview that finds nothing to do asks for no connection, and need not pay for the import.
        from settings import PostgresSettings, load_section  # noqa: PLC0415

        connect_to(conninfo(load_section("postgres", PostgresSettings, _config.get)))


def close() -> None:
    """Close the process's connection; the next ``transaction`` opens another."""
    global _connection  # noqa: PLW0603
    with _lock:
        if _connection is not None:
            _connection.close()
            _connection = None


@contextmanager
def transaction() -> Iterator[Cursor]:
    """A cursor in a transaction of its own: committed at the end, rolled back on an exception.

    Raises DatabaseError, with the server's own words and a cure, when Postgres cannot be reached, refuses the
    login, goes away in the middle, or a lock is not had within LOCK_TIMEOUT.
    """
    with _lock:
        _read_config()
        connection = _open()
        try:
            with connection.transaction(), connection.cursor() as cursor:
                cursor.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(LOCK_TIMEOUT))
                yield cursor
        except psycopg.errors.LockNotAvailable as locked:
            raise DatabaseError(
                f"{locked.diag.message_primary}: another transaction held the table for {LOCK_TIMEOUT}; "
                "end it (pg_stat_activity names it) and run `make up` again"
            ) from locked
        except psycopg.OperationalError as lost:
            if not connection.broken:
                raise
            raise DatabaseError(
                f"{_server()} ended the connection in the middle of a change: {str(lost).strip().splitlines()[0]}; "
                "run `make up` again"
            ) from None


def _open() -> psycopg.Connection[DictRow]:
    global _connection  # noqa: PLW0603
    if _connection is None or not _alive(_connection):
        try:
            _connection = psycopg.connect(**connection_parameters(), autocommit=True, row_factory=dict_row)
        except psycopg.OperationalError as refused:
            raise DatabaseError(_explained(str(refused))) from None
    return _connection


def _alive(connection: psycopg.Connection[DictRow]) -> bool:
    """False when the server ended the connection, as when a refresh was followed by another container."""
    if connection.info.transaction_status is not TransactionStatus.IDLE:
        return not connection.closed
    try:
        connection.execute("SELECT")
    except psycopg.OperationalError:
        connection.close()
        return False
    return True


def _server() -> str:
    where = connection_parameters()
    return f"Postgres on {where.get('host')}:{where.get('port')}"


TLS_REFUSALS = (
    (r"root certificate file .* does not exist|could not read root certificate", "correct postgres.external.ca_file"),
    (
        r"certificate verify failed",
        "its certificate is not from the CA in postgres.external.ca_file, or has expired: somebody else may be "
        "answering. Ask whoever runs the server for its CA, and change the file only if that is another",
    ),
    (
        r"does not match host name",
        "name the server in postgres.external.host as its certificate does, or set postgres.external.sslmode to "
        "verify-ca to accept any name that the CA vouches for",
    ),
    (
        r"server does not support SSL",
        "turn ssl on in the server, or set postgres.external.sslmode to disable where the network in between is safe",
    ),
    (
        r"no pg_hba\.conf entry .*no encryption",
        "the server wants TLS of this user: set postgres.external.sslmode to verify-full",
    ),
)
"""What libpq 17 and Postgres say when an external server and a client do not agree on TLS, and what to do."""


def tls_refusal(message: str) -> tuple[str, str] | None:
    """The line in which libpq or Postgres says that the two do not agree on TLS, and what to do; None without one.

    A user whom the server lets in neither with TLS nor without lacks a line of pg_hba.conf, and no TLS.
    """
    for line in message.splitlines():
        for pattern, cure in TLS_REFUSALS:
            if re.search(pattern, line) and not ("pg_hba.conf" in line and "SSL encryption" in message):
                return line.strip(), cure
    return None


def _explained(message: str) -> str:
    server = _server()
    reason = message.strip().splitlines()[-1].strip()
    # Only an external server's parameters say how TLS is used.
    if "sslmode" in connection_parameters():
        return _explained_of_external(server, message, reason)
    if "password authentication failed" in message:
        return (
            f"{server} refuses the password of {connection_parameters()['user']}. "
            "A data volume keeps the password it was made with: set postgres.password back to that, "
            "or change both with ALTER ROLE … PASSWORD"
        )
    if "refused" in message or "timeout" in message:
        return f"{server} does not answer: start its container (`docker ps -a` shows it), then run `make up` again"
    return f"{server}: {reason}"


def _explained_of_external(server: str, message: str, reason: str) -> str:
    if refusal := tls_refusal(message):
        return f"{server}: {'; '.join(refusal)}"
    if "no pg_hba.conf entry" in message:
        return (
            f"{server}: {reason}; let this user in from this machine and from Realtime's, in the server's pg_hba.conf"
        )
    if "password authentication failed" in message:
        return (
            f"{server} refuses the password of {connection_parameters()['user']}: set postgres.user and "
            "postgres.password to a login that the server knows"
        )
    if re.search(r"refused|timeout|could not translate|resolve", message):
        return (
            f"{server} does not answer ({reason}): start it, let this machine through its firewall, or correct "
            "postgres.external.host and postgres.external.port"
        )
    return f"{server}: {reason}"
