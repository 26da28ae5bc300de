"""What a stack on an external Postgres needs to know before any resource is declared."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from realtime_versions import tls_fault
from settings import NAMESPACE, ExternalPostgres, Settings, SslMode

CA_BYTES = 100_000
"""What of a CA's file fits into a container's environment: Linux takes 128 KiB for a variable (MAX_ARG_STRLEN)."""


class DatabaseAddress(NamedTuple):
    """Where Realtime's container finds Postgres, and how it is to use TLS."""

    host: str
    port: int
    tls: bool = False
    ca_file: str | None = None
    """File of this machine with the CA that the server's certificate must be from; None compares nothing."""


def external_address(external: ExternalPostgres) -> DatabaseAddress:
    """The address of an external server in the stack's network."""
    tls = external.sslmode is not SslMode.DISABLE
    return DatabaseAddress(external.container_host, external.port, tls=tls, ca_file=external.ca_file)


def external_faults(settings: Settings) -> list[str]:
    """Faults of the settings of an external server that its CA's file and the image of Realtime show."""
    return [f"{NAMESPACE}:{key}: {message}" for key, message in _faults(settings)]


def _faults(settings: Settings) -> Iterator[tuple[str, str]]:
    external = settings.postgres.external
    if external is None:
        return
    if external.sslmode is not SslMode.DISABLE and (
        fault := tls_fault(settings.realtime.image, settings.realtime.release)
    ):
        yield "realtime.image", f"{fault}, or turn TLS off with postgres.external.sslmode disable in a safe network"
    if external.ca_file is not None:
        try:
            ssl.create_default_context(cafile=external.ca_file)
            if (size := Path(external.ca_file).stat().st_size) > CA_BYTES:
                yield (
                    "postgres.external.ca_file",
                    f"{external.ca_file} has {size} bytes, and Realtime's container is handed {CA_BYTES} at most; "
                    "name a file with the certificate of the server's own CA alone",
                )
        except ssl.SSLError:
            yield "postgres.external.ca_file", f"{external.ca_file} holds no certificate in PEM; name the CA's own"
        except OSError as unreadable:
            yield (
                "postgres.external.ca_file",
                f"{external.ca_file} cannot be read ({unreadable.strerror}); name the file from the project's folder",
            )
