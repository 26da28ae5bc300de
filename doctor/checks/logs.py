"""What the servers write in their logs when something is wrong, and what it means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from docker.models.containers import Container

LINES = 400
ANNOUNCED = 4


@dataclass(frozen=True)
class Pattern:
    """A message of a log, and the cause that it tells of. ``names`` fill the cause's placeholders.

    Groups of the pattern that have a name fill them too.
    """

    pattern: re.Pattern[str]
    cause: str
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Explained:
    """A line of a log and the cause that it tells of."""

    line: str
    cause: str
    names: Mapping[str, str]


def _pattern(text: str, cause: str, **names: str) -> Pattern:
    return Pattern(re.compile(text), cause, names)


REALTIME_EXIT = (
    _pattern(r"RLIMIT_NOFILE: unbound variable", "rlimit-nofile-missing"),
    _pattern(r"ulimit: open files: cannot modify limit", "rlimit-nofile-too-high"),
    _pattern(r"SECRET_KEY_BASE is missing", "secret-key-base-missing"),
    _pattern(r"METRICS_JWT_SECRET.{0,40}(is missing|not set)", "metrics-jwt-secret-missing"),
    _pattern(r"APP_NAME not available", "app-name-missing"),
    _pattern(r"Bad key", "db-enc-key-wrong-length"),
    _pattern(r"eaddrnotavail", "erlang-wants-ipv6"),
    _pattern(r"3F000|no schema has been selected to create in", "schema-of-tenants-missing"),
    _pattern(r"permission denied to set parameter", "user-not-superuser", role="<user>"),
    _pattern(r"password authentication failed", "realtime-database-password-wrong"),
    _pattern(r"too many clients already|remaining connection slots are reserved", "connections-exhausted"),
    _pattern(r'FATAL 3D000|database "(?P<database>[^"]+)" does not exist', "postgres-database-missing"),
    _pattern(r"nxdomain|econnrefused|ehostunreach|connection refused", "realtime-database-unreachable"),
)
"""Realtime v2.32.12's last words, the root first: a connection that is not available has one of these before it."""

REALTIME_RUNNING = (
    _pattern(r'schema "realtime" does not exist', "schema-realtime-missing"),
    _pattern(r'role "(?P<role>\w+)" does not exist', "role-missing"),
    _pattern(r"permission denied to set parameter", "user-not-superuser", role="<user>"),
    _pattern(r"all replication slots are in use", "replication-slots-exhausted", slot="<name>"),
    _pattern(r'could not access file "wal2json"|output plugin "?wal2json', "wal2json-missing"),
    _pattern(r"logical decoding requires", "wal-level-not-logical"),
    _pattern(r"42P10", "database-newer-than-realtime"),
    _pattern(r"UnableToConnectToTenantDatabase", "tenant-cannot-connect"),
    _pattern(r"MigrationsFailedToRun", "tenant-migrations-missing"),
    _pattern(r"PoolingReplicationPreparationError|PoolingReplicationError", "realtime-log-error"),
)
"""What a running Realtime repeats while it cannot deliver. Refused clients are no trouble of the server."""

GATEWAY_EXIT = (
    _pattern(r"error parsing declarative config file|failed parsing declarative", "gateway-config-invalid"),
)

POSTGRES_EXIT: tuple[Pattern, ...] = ()

EXIT = {"postgres": POSTGRES_EXIT, "realtime": REALTIME_EXIT, "gateway": GATEWAY_EXIT}


def tail(container: Container, *, within: timedelta | None = None, since: datetime | None = None) -> list[str]:
    """The last lines of a container's log, those of the last ``within``, or ``since`` a moment, if given.

    Raises DockerException.
    """
    since = datetime.now(UTC) - within if within else since
    text: bytes = container.logs(tail=LINES, **({"since": since} if since else {}))
    return text.decode(errors="replace").splitlines()


def explain(lines: Iterable[str], patterns: Iterable[Pattern]) -> Explained | None:
    """The first of the patterns that any line shows, with the last such line; with those after it that a colon at its
    end announces."""
    written = list(lines)
    for pattern in patterns:
        for number in reversed(range(len(written))):
            if match := pattern.pattern.search(written[number]):
                found = {key: value for key, value in match.groupdict().items() if value}
                announced = (
                    written[number + 1 : number + 1 + ANNOUNCED] if written[number].rstrip().endswith(":") else []
                )
                words = " ".join(" ".join([written[number], *announced]).split())
                return Explained(words[:300], pattern.cause, {**pattern.names, **found})
    return None
