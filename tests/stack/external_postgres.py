"""A Postgres that is not the stack's: in a container of the test's own, which lets nobody in without TLS."""

from __future__ import annotations

import io
import secrets
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import docker
import psycopg
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from docker.models.containers import Container

from tests.stack.conftest import free_port, image

HOST = "localhost"
START_SECONDS = 120.0
TLS = "/etc/postgres-tls"
ACCESS = "local all all trust\nhostssl all all all scram-sha-256\n"
"""pg_hba.conf: the image's own first start over the socket, everybody else with TLS and a password."""
START = (
    f"install -d -o postgres -m 700 /run/tls && install -o postgres -m 600 {TLS}/* /run/tls && "
    "exec docker-entrypoint.sh postgres -D /etc/postgresql -c hba_file=/run/tls/pg_hba.conf -c ssl=on "
    "-c ssl_cert_file=/run/tls/server.crt -c ssl_key_file=/run/tls/server.key"
)


@dataclass(frozen=True)
class Authority:
    """A certificate authority that knows nobody but the server of this test."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    name: x509.Name = field(
        default_factory=lambda: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA {secrets.token_hex(4)}")])
    )

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, ca: bool) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
        )
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not ca, key_cert_sign=ca, encipher_only=False, decipher_only=False, **usage
                ),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )

    @property
    def certificate(self) -> str:
        """Its own certificate, PEM."""
        made = self._builder(self.name, self.key.public_key(), ca=True).sign(self.key, hashes.SHA256())
        return made.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, *names: str) -> tuple[bytes, bytes]:
        """A server's certificate for these DNS names and its key, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        certificate = (
            self._builder(subject, key.public_key(), ca=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return (
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )


@dataclass(frozen=True, kw_only=True)
class ExternalServer:
    """A running server, reachable from this machine and, by the address of this machine, from containers."""

    container: Container = field(repr=False)
    port: int
    user: str
    password: str = field(repr=False)
    authority: Authority = field(repr=False)

    def connect(self, database: str = "postgres", **parameters: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection as the superuser, autocommit."""
        return psycopg.connect(
            host=HOST,
            port=self.port,
            dbname=database,
            user=self.user,
            password=self.password,
            autocommit=True,
            connect_timeout=5,
            **{"sslmode": "require", **parameters},
        )

    def wait(self) -> None:
        """Until it answers over TCP, which it does only after its first start."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.connect().close()
            except psycopg.OperationalError:
                self.container.reload()
                assert self.container.status == "running", self.container.logs().decode()
                assert time.monotonic() < deadline, self.container.logs().decode()
                time.sleep(0.2)
            else:
                return

    def restart(self) -> None:
        self.container.restart(timeout=30)
        self.wait()

    def run(self, *command: str) -> None:
        """A command in the container, as root."""
        code, output = self.container.exec_run(list(command), user="root")
        assert code == 0, output.decode()


def _archive(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{TLS.removeprefix('/')}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


@contextmanager
def external_postgres() -> Iterator[ExternalServer]:
    """A server of the stacks' Postgres image, TLS required, until the block ends."""
    engine = docker.from_env()
    authority, password, port = Authority(), secrets.token_hex(16), free_port()
    gateway = engine.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
    certificate, key = authority.issue(HOST, "host.docker.internal")
    container = engine.containers.create(
        image("POSTGRES_IMAGE"),
        name=f"external-postgres-{secrets.token_hex(3)}",
        entrypoint=["sh", "-c", START],
        environment={"POSTGRES_USER": "supabase_admin", "POSTGRES_PASSWORD": password, "POSTGRES_DB": "postgres"},
        ports={"5432/tcp": [("127.0.0.1", port), (gateway, port)]},
    )
    try:
        container.put_archive(
            "/", _archive({"server.crt": certificate, "server.key": key, "pg_hba.conf": ACCESS.encode()})
        )
        container.start()
        server = ExternalServer(
            container=container, port=port, user="supabase_admin", password=password, authority=authority
        )
        server.wait()
        yield server
    finally:
        container.remove(force=True, v=True)
