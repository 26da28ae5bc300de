"""The doctor's own connection to a stack's database."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import psycopg
from psycopg import AsyncConnection

from doctor.catalog import Connection
from doctor.failures import UP, Cause, Failure, ProbeFailedError
from doctor.outputs import Outputs
from doctor.tls import refusal

RETRY_SECONDS = 0.25
"""Between two attempts to reach the database."""
CONNECT_SECONDS = 2
"""The least that libpq takes."""
STATEMENT_SHARE = 0.8
"""The server itself ends a statement, or its wait for a lock, so early, and says so."""


@asynccontextmanager
async def connected(outputs: Outputs, timeout: float) -> AsyncIterator[Connection]:
    """A connection to the stack's database on which no statement and no lock is waited for longer than ``timeout``.

    While the database cannot be reached or is starting, it tries again for as long. Raises ProbeFailedError when
    there is none to be had.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection = await opened(outputs, max(2, round(deadline - time.monotonic())), timeout)
        except psycopg.OperationalError as failed:
            if hopeless(failed) or time.monotonic() + RETRY_SECONDS >= deadline:
                raise ProbeFailedError(failure_of(outputs, failed)) from None
        else:
            break
        await asyncio.sleep(RETRY_SECONDS)
    async with connection:
        yield connection


async def opened(outputs: Outputs, timeout: int, limit: float) -> Connection:
    """A connection, tried once for ``timeout`` seconds, on which nothing is waited for longer than ``limit`` seconds.

    Raises psycopg.OperationalError.
    """
    connection = await _connect(outputs, timeout)
    try:
        with answering_within(connection, limit):
            await connection.execute(
                "SELECT set_config('statement_timeout', %(limit)s, false), set_config('lock_timeout', %(limit)s, "
                "false), set_config('idle_in_transaction_session_timeout', %(limit)s, false)",
                {"limit": f"{limit * 1000:.0f}ms"},
            )
            await connection.commit()
    except BaseException:
        await connection.close()
        raise
    return connection


@asynccontextmanager
async def session(outputs: Outputs, seconds: float) -> AsyncIterator[Connection]:
    """A connection for a few statements, tried once: the server has ``seconds`` for all of them, less for each.

    Closed at the end, which rolls back what was not committed. Raises psycopg.Error, and nothing else when a server
    hangs.
    """
    connection = await opened(outputs, CONNECT_SECONDS, seconds * STATEMENT_SHARE)
    try:
        with answering_within(connection, seconds):
            yield connection
    finally:
        await connection.close()


@contextmanager
def answering_within(connection: Connection, seconds: float) -> Iterator[None]:
    """Gives the server ``seconds`` for all that is asked of it in the block.

    Then it is hung up on, which raises psycopg.OperationalError: cancelling the task instead would make psycopg ask the
    server, for ten seconds, to cancel the statement.
    """
    loop = asyncio.get_running_loop()
    timer = loop.call_later(seconds, hang_up, connection)
    try:
        yield
    except psycopg.Error:
        if timer.when() <= loop.time():
            raise psycopg.OperationalError(f"it gave no answer for {seconds:g} s") from None
        raise
    finally:
        timer.cancel()


def hang_up(connection: Connection) -> None:
    """Ends the connection's socket under psycopg, which then fails at once."""
    if not connection.closed:
        with socket.socket(fileno=os.dup(connection.fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)


async def _connect(outputs: Outputs, timeout: int) -> Connection:
    database = outputs.database
    return await AsyncConnection.connect(
        **database.server,
        password=outputs.database_password.get_secret_value(),
        connect_timeout=timeout,
        application_name="doctor probe",
    )


def hopeless(failed: psycopg.Error) -> bool:
    """Whether trying again would not help."""
    return password_refused(failed) or refusal(str(failed), external=True) is not None


def password_refused(failed: psycopg.Error) -> bool:
    """Whether the server knows the user, or not, by another password."""
    # A failed connection carries no SQLSTATE (psycopg 3.3): there is only libpq's text.
    return "password authentication failed" in str(failed)


def failure_of(outputs: Outputs, failed: psycopg.Error) -> Failure:
    """What it means that the database did not let the doctor in, or refused a statement."""
    database = outputs.database
    tls = refusal(str(failed), external=database.external)
    if password_refused(failed):
        likely = f"the password of {database.user} is not the stack's postgres.password; set it back in the database"
    elif tls is not None:
        likely = tls.cure
    elif isinstance(failed, psycopg.OperationalError):
        likely = f"Postgres is stopped, starting, or not published on this port; look at its container; {UP}"
    else:
        likely = "the database is not as the stack declares it; " + UP
    return Failure(
        cause=Cause.DATABASE,
        waited_for=f"database {database.name} at {database.host}:{database.port} as {database.user}",
        seen=failed.diag.message_primary or (tls.seen if tls else first_line(failed)),
        likely=likely,
    )


def first_line(error: Exception) -> str:
    """The first line of an error, which is where libpq and Postgres say what it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
