"""What to do where the doctor's own connection to Postgres ends at TLS."""

from __future__ import annotations

from typing import NamedTuple

from providers.connection import tls_refusal

LIBPQ = {
    "postgres.external.ca_file": "sslrootcert (PGSSLROOTCERT)",
    "postgres.external.sslmode": "sslmode (PGSSLMODE)",
    "postgres.external.host": "host (PGHOST)",
}
"""The settings of an external server as a DSN, and the environment, name them."""


class TlsRefusal(NamedTuple):
    """``seen`` is the line in which libpq or Postgres says so."""

    seen: str
    cure: str


def refusal(message: str, *, external: bool) -> TlsRefusal | None:
    """What an error of a connection says of TLS; None when it is about something else.

    ``external``: whether the settings of a stack say how TLS is used. Elsewhere, for a stack's own server too, the DSN
    does, and the environment of whoever runs the doctor.
    """
    found = tls_refusal(message)
    if found is None:
        return None
    seen, cure = found
    for setting, parameter in () if external else LIBPQ.items():
        cure = cure.replace(setting, parameter)
    return TlsRefusal(seen, cure)
