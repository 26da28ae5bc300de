"""What differs between versions of Realtime, as far as a deployment must know."""

from __future__ import annotations

import re
from typing import NamedTuple


class Version(NamedTuple):
    """A release of supabase/realtime."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @classmethod
    def parse(cls, text: str) -> Version:
        """A version as ``2.32.12`` or ``v2.32.12``. Raises ValueError for anything else."""
        match = re.fullmatch(r"v?(\d+)\.(\d+)\.(\d+)", text, re.ASCII)
        if match is None:
            raise ValueError(f"{text!r} is not a version; write it like 2.32.12")
        return cls(*(int(part) for part in match.groups()))


OLDEST = Version(2, 32, 12)
"""The oldest that this stack has been run with: what comes before is refused."""

ENVIRONMENT_SINCE: tuple[tuple[Version, str, str], ...] = (
    (Version(2, 33, 69), "LOG_LEVEL", "info"),
    (Version(2, 41, 7), "DB_SSL", "false"),
    (Version(2, 71, 5), "DISABLE_HEALTHCHECK_LOGGING", "true"),
    (Version(2, 83, 1), "REALTIME_IP_VERSION", "ipv4"),
)
"""Environment variables that a version knows and the ones before it do not (upstream's ENVS.md and git history)."""

SETTABLE_SINCE = {
    "BROADCAST_POOL_SIZE": Version(2, 50, 0),
    "CHANNEL_ERROR_BACKOFF_MS": Version(2, 83, 0),
    "CLIENT_PRESENCE_MAX_CALLS": Version(2, 76, 0),
    "CLIENT_PRESENCE_WINDOW_MS": Version(2, 76, 0),
    "CONNECT_ERROR_BACKOFF_MS": Version(2, 81, 0),
    "CONNECT_PARTITION_SLOTS": Version(2, 34, 53),
    "DB_POOL_SIZE": OLDEST,
    "DB_QUEUE_INTERVAL": OLDEST,
    "DB_QUEUE_TARGET": OLDEST,
    "HTTP_DYNAMIC_BUFFER_MAX": Version(2, 93, 0),
    "HTTP_DYNAMIC_BUFFER_MIN": Version(2, 93, 0),
    "JANITOR_CHILDREN_TIMEOUT": Version(2, 33, 13),
    "JANITOR_CHUNK_SIZE": Version(2, 33, 13),
    "JANITOR_MAX_CHILDREN": Version(2, 33, 13),
    "JANITOR_RUN_AFTER_IN_MS": Version(2, 33, 13),
    "JANITOR_SCHEDULE_RANDOMIZE": Version(2, 33, 13),
    "JANITOR_SCHEDULE_TIMER_IN_MS": Version(2, 33, 13),
    "JWT_CLAIM_VALIDATORS": OLDEST,
    "MAX_CONNECTIONS": OLDEST,
    "MAX_HEADER_LENGTH": OLDEST,
    "METRICS_CLEANER_SCHEDULE_TIMER_IN_MS": Version(2, 33, 56),
    "METRICS_PUSHER_COMPRESS": Version(2, 77, 0),
    "METRICS_PUSHER_ENABLED": Version(2, 77, 0),
    "METRICS_PUSHER_EXTRA_LABELS": Version(2, 79, 0),
    "METRICS_PUSHER_INTERVAL_MS": Version(2, 77, 0),
    "METRICS_PUSHER_TIMEOUT_MS": Version(2, 77, 0),
    "METRICS_PUSHER_URL": Version(2, 77, 0),
    "METRICS_PUSHER_USER": Version(2, 78, 3),
    "METRICS_RPC_TIMEOUT_IN_MS": Version(2, 39, 5),
    "MIGRATION_PARTITION_SLOTS": Version(2, 34, 39),
    "NUM_ACCEPTORS": OLDEST,
    "POSTGRES_CDC_SCOPE_SHARDS": Version(2, 57, 4),
    "PRESENCE_BROADCAST_PERIOD_IN_MS": Version(2, 75, 0),
    "PRESENCE_PERMDOWN_PERIOD_IN_MS": Version(2, 75, 0),
    "PRESENCE_POOL_SIZE": Version(2, 75, 0),
    "PROM_POLL_RATE": OLDEST,
    "REQUEST_ID_BAGGAGE_KEY": Version(2, 36, 0),
    "RUN_JANITOR": Version(2, 33, 13),
    "TENANT_CACHE_EXPIRATION_IN_MS": Version(2, 36, 13),
    "USERS_SCOPE_SHARDS": Version(2, 53, 4),
    "WEBSOCKET_MAX_HEAP_SIZE": Version(2, 51, 0),
}
"""What ``realtime.environment`` may set: the variables of upstream's ENVS.md (v2.129.8) that fit one node, hold no
secret and are not this stack's own to set, by the first release whose config or lib names them (git tags from v2.32.12
on)."""


class PointOfNoReturn(NamedTuple):
    """A migration of the tenant's database that versions before ``since`` cannot work with."""

    since: Version
    migration: int
    consequence: str


POINTS_OF_NO_RETURN = (
    PointOfNoReturn(
        Version(2, 74, 0),
        20251120212548,
        "an older one's subscriptions end in `42P10 … ON CONFLICT`, subscribed and without events",
    ),
    PointOfNoReturn(
        Version(2, 101, 0),
        20260527120000,
        "an older one's subscriptions end in `42P10 … ON CONFLICT`, subscribed and without events",
    ),
)
"""Each puts another unique index on realtime.subscription in the place of the one that the ON CONFLICT of versions
before it names (lib/realtime/tenants/repo/migrations and lib/extensions/postgres_cdc_rls/subscriptions.ex)."""


TLS_SINCE = Version(2, 41, 7)
"""The first that uses TLS for its own tables, and checks a CA (supabase/realtime#1473: DB_SSL, DB_SSL_CA_CERT)."""
BROADCAST_SINCE = Version(2, 34, 0)
"""The first that holds a second replication slot, for broadcast from the database."""


def tls_fault(image: str, version: Version | None) -> str | None:
    """Why Realtime of this image cannot use TLS to Postgres, None when it can.

    v2.32.12 has no setting for the connection to its own tables (config/runtime.exs, Realtime.Repo).
    """
    if version is None:
        return (
            f"{image} does not say its version, and before {TLS_SINCE} Realtime does not speak TLS to Postgres; "
            "set realtime.version"
        )
    if version < TLS_SINCE:
        return (
            f"{image} does not speak TLS to Postgres; set it to v{TLS_SINCE} or newer, like supabase/realtime:v2.129.8"
        )
    return None


def replication_slots(version: Version | None) -> int:
    """How many replication slots Realtime holds for its tenant; the newer number for an unknown version."""
    return 1 if version is not None and version < BROADCAST_SINCE else 2


def image_version(image: str) -> Version | None:
    """The version in an image's tag, None for a tag that is not one: a digest, a branch, a local build."""
    match = re.search(r":v?(\d+\.\d+\.\d+)(?:@sha256:[0-9a-f]+)?$", image)
    return Version.parse(match[1]) if match else None


def version_environment(version: Version | None) -> dict[str, str]:
    """The environment variables that a version knows beyond the ones that every version takes."""
    return {name: value for since, name, value in ENVIRONMENT_SINCE if version is not None and version >= since}


def environment_fault(name: str, version: Version | None) -> str | None:
    """Why ``realtime.environment`` must not set a variable for this version, fault and cure; None when it may."""
    since = SETTABLE_SINCE.get(name)
    if since is None:
        return (
            f"sets {name}, which is not a variable of Realtime, a secret, or this stack's own to set; "
            f"it may set: {', '.join(SETTABLE_SINCE)}"
        )
    if version is None and since > OLDEST:
        return (
            f"sets {name}, which Realtime knows since {since}, and realtime.image does not say its version; "
            "set realtime.version"
        )
    if version is not None and version < since:
        return (
            f"sets {name}, which Realtime {version} does not know; set realtime.image to {since} or newer, or leave "
            "the variable out"
        )
    return None
