"""Where the doctor and a Postgres that answers do not agree on TLS: told as that, by check, probe and provider."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from doctor.checks import postgres
from doctor.checks.finding import Status
from doctor.checks.setup import Setup, of_outputs
from doctor.database import connected
from doctor.failures import Cause, ProbeFailedError
from doctor.outputs import Outputs
from providers import connection
from tests.stack.external_postgres import Authority
from tests.unit.test_probe import DOCUMENT

SECONDS = 30.0
REFUSED = 'no pg_hba.conf entry for host "127.0.0.1", user "postgres", database "postgres", '


@contextmanager
def postgres_that(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that does this with every connection, after the client's first message has come."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                taken, _ = listener.accept()
                with taken, suppress(OSError):  # a client that refuses the certificate hangs up
                    taken.settimeout(SECONDS)
                    talk(taken)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(SECONDS)


def message_of(taken: socket.socket) -> bytes:
    """A message of a client that has not logged in: its length, then the rest."""
    length = struct.unpack("!i", taken.recv(4, socket.MSG_WAITALL))[0]
    return taken.recv(length - 4, socket.MSG_WAITALL)


def without_tls(taken: socket.socket) -> None:
    message_of(taken)
    taken.sendall(b"N")
    assert not taken.recv(1), "the client goes on without TLS"


def with_certificate(authority: Authority, folder: Path, *names: str) -> Callable[[socket.socket], None]:
    """A server with TLS that lets nobody in."""
    certificate, key = authority.issue(*names)
    (folder / "server.pem").write_bytes(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")

    def talk(taken: socket.socket) -> None:
        message_of(taken)
        taken.sendall(b"S")
        with context.wrap_socket(taken, server_side=True) as encrypted:
            encrypted.recv(1 << 16)

    return talk


def refusing(message: str) -> Callable[[socket.socket], None]:
    """A server that has read its pg_hba.conf, and speaks no TLS."""

    def talk(taken: socket.socket) -> None:
        message_of(taken)
        fields = b"".join(field.encode() + b"\0" for field in ("SFATAL", "VFATAL", "C28000", f"M{message}")) + b"\0"
        taken.sendall(b"E" + struct.pack("!i", len(fields) + 4) + fields)

    return talk


def outputs_of(port: int, **database: Any) -> Outputs:
    """The outputs of a stack on an external server."""
    where = {"host": "localhost", "port": port, "name": "postgres", "user": "postgres", "external": True}
    return Outputs.model_validate(DOCUMENT | {"database": where | database})


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """The CA of the stack's settings, its certificate in ca.pem."""
    made = Authority()
    (tmp_path / "ca.pem").write_text(made.certificate)
    return made


Case = tuple[Callable[[socket.socket], None], dict[str, Any], str, str]


@pytest.fixture
def case(request: pytest.FixtureRequest, authority: Authority, tmp_path: Path) -> Case:
    """A server, how the settings use TLS, what libpq then says, and a part of the cure."""
    verify = {"sslmode": "verify-full", "ca_file": str(tmp_path / "ca.pem")}
    good = with_certificate(authority, tmp_path, "localhost")
    cases: dict[str, Case] = {
        "no TLS": (
            without_tls,
            {"sslmode": "require"},
            "server does not support SSL",
            "turn ssl on in the server, or set postgres.external.sslmode to disable",
        ),
        "no CA": (
            good,
            verify | {"ca_file": str(tmp_path / "none.pem")},
            "none.pem",
            "correct postgres.external.ca_file",
        ),
        "another CA": (
            with_certificate(Authority(), tmp_path, "localhost"),
            verify,
            "certificate verify failed",
            "not from the CA in postgres.external.ca_file",
        ),
        "another name": (
            with_certificate(authority, tmp_path, "db.example"),
            verify,
            "does not match host name",
            "name the server in postgres.external.host",
        ),
        "TLS wanted": (
            refusing(REFUSED + "no encryption"),
            {"sslmode": "disable"},
            "no encryption",
            "set postgres.external.sslmode to verify-full",
        ),
    }
    return cases[request.param]


TROUBLES = pytest.mark.parametrize(
    "case", ["no TLS", "no CA", "another CA", "another name", "TLS wanted"], indirect=True
)


@TROUBLES
def test_the_check_names_tls_and_its_cure(case: Case) -> None:
    talk, settings, said, cure = case
    with postgres_that(talk) as port, of_outputs(outputs_of(port, **settings), stack=None) as setup:
        finding = postgres.reachable(setup)
    assert (finding.status, finding.cause) == (Status.FAILED, "postgres-tls-refused"), finding
    assert said in finding.seen
    assert finding.cure is not None
    assert cure in finding.cure


@TROUBLES
def test_the_probe_says_at_once_what_to_do_and_not_that_postgres_is_stopped(case: Case) -> None:
    talk, settings, said, cure = case

    async def connect(port: int) -> None:
        async with asyncio.timeout(SECONDS), connected(outputs_of(port, **settings), timeout=10 * SECONDS):
            pytest.fail("the server lets nobody in")

    with postgres_that(talk) as port, pytest.raises(ProbeFailedError) as failed:
        asyncio.run(connect(port))
    failure = failed.value.failure
    assert failure.cause is Cause.DATABASE
    assert said in failure.seen
    assert cure in failure.likely


@TROUBLES
def test_the_providers_say_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_conninfo", None)
    monkeypatch.setattr(connection, "_connection", None)
    talk, settings, said, cure = case
    with postgres_that(talk) as port:
        server = outputs_of(port, **settings).database.server
        connection.connect_to(psycopg.conninfo.make_conninfo(**server, password="any"))
        with pytest.raises(connection.DatabaseError) as refused, connection.transaction():
            pass
    assert said in str(refused.value)
    assert cure in str(refused.value)


def test_of_a_dsn_the_cure_is_in_the_words_of_libpq() -> None:
    with postgres_that(without_tls) as port:
        dsn = SecretStr(f"host=127.0.0.1 port={port} user=postgres sslmode=require")
        with Setup(dsn=dsn) as setup:
            finding = postgres.reachable(setup)
    assert finding.cause == "postgres-tls-refused"
    assert finding.cure is not None
    assert "set sslmode (PGSSLMODE) to disable" in finding.cure
    assert "postgres.external" not in finding.cure


def test_who_is_let_in_neither_with_tls_nor_without_is_told_of_pg_hba_conf() -> None:
    """libpq tries both by default, and its error has a line for each."""
    lines = f"{REFUSED}SSL encryption\nconnection failed: FATAL: {REFUSED}no encryption"
    with postgres_that(refusing(lines)) as port:
        dsn = SecretStr(f"host=127.0.0.1 port={port} user=postgres sslmode=disable")
        with Setup(dsn=dsn) as setup:
            finding = postgres.reachable(setup)
    assert finding.cause == "postgres-login-refused"


def test_where_nothing_listens_tls_is_not_spoken_of() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with of_outputs(outputs_of(port, sslmode="require"), stack=None) as setup:
        assert postgres.reachable(setup).cause == "postgres-unreachable"
