"""The ways in which a probe fails, each with what was waited for, what came instead, and the likely cause and cure."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

UP = "`pulumi up` puts it right"
REALTIME_LOG = "Realtime's log has the reason (docker logs supabase-realtime-<stack>-realtime)"


class Cause(StrEnum):
    """What failed, in the order of a change's path from the database to the subscriber."""

    DATABASE = "database"
    NO_TABLE = "no usable table"
    INSERT_REFUSED = "insert refused"
    UNREADABLE = "row not readable"
    GATEWAY_UNREACHABLE = "gateway unreachable"
    REALTIME_UNAVAILABLE = "Realtime unavailable"
    REFUSED = "websocket refused"
    NOT_SUBSCRIBED = "not subscribed"
    NO_SLOT = "no replication slot"
    DISCONNECTED = "disconnected"
    UNAUTHORIZED = "event without columns"
    NOT_RECEIVED = "event not received"
    DIFFERENT = "event differs from the row"
    LEFT_BEHIND = "row left behind"


class Failure(BaseModel):
    """One cause, told once: ``waited_for`` is what should have come, ``seen`` what came instead."""

    model_config = ConfigDict(frozen=True)

    cause: Cause
    waited_for: str
    seen: str
    likely: str

    def __str__(self) -> str:
        return f"{self.cause}: waited for {self.waited_for}; got {self.seen}; likely: {self.likely}"


class ProbeFailedError(Exception):
    """The probe cannot go on."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(str(failure))


CONNECTION = "the websocket connection through the gateway"

UNAVAILABLE = {
    500: "Realtime found the tenant but cannot use it: DB_ENC_KEY is not the one its secrets were encrypted with, "
    f"or its own schema _realtime is gone; {REALTIME_LOG}",
    502: "Realtime is down, restarting, or not listening yet; look at its container",
    503: "the gateway cannot resolve Realtime's name: its container or its network alias is gone; " + UP,
    504: "Realtime's container does not answer: it hangs or is cut off the network; restart it",
}
KONG_NO_KEY = "No API key found in request"
KONG_WRONG_KEY = "Invalid authentication credentials"
KONG_WRONG_GROUP = "You cannot consume this service"
KONG_NO_ROUTE = "no Route matched"


def unreachable(url: str, reason: str, waited: float) -> Failure:
    """The gateway does not answer at all."""
    return Failure(
        cause=Cause.GATEWAY_UNREACHABLE,
        waited_for=f"{CONNECTION} at {url}, for {waited:.0f} s",
        seen=reason,
        likely="the gateway's container is stopped, or listens on another host or port (gateway.host, gateway.port); "
        + UP,
    )


def unavailable(status: int, body: str, waited: float) -> Failure:
    """The gateway answers that it cannot hand on to Realtime, or Realtime that it cannot go on."""
    return Failure(
        cause=Cause.REALTIME_UNAVAILABLE,
        waited_for=f"{CONNECTION}, for {waited:.0f} s",
        seen=http(status, body),
        likely=UNAVAILABLE.get(status, REALTIME_LOG),
    )


def unanswered(url: str, waited: float) -> Failure:
    """The gateway takes the connection and does not answer the upgrade, as Kong does while it looks for a name."""
    return Failure(
        cause=Cause.REALTIME_UNAVAILABLE,
        waited_for=f"{CONNECTION} at {url}, for {waited:.0f} s",
        seen="a TCP connection and no answer",
        likely="Realtime is stopped, so that the gateway cannot resolve its name, or it hangs; look at its container",
    )


def refused(status: int, body: str, *, key_expires: datetime | None = None) -> Failure:
    """The gateway or Realtime refuses the key, the tenant or the path: trying again would not help.

    Kong's answers were seen on 2.8.1, Realtime's on v2.32.12, which says 403 with an empty body to everything,
    and on v2.129.8, which says why (lib/realtime_web/channels/user_socket.ex, error_response).
    """
    message = told(body)
    if key_expires is not None and key_expires <= datetime.now(UTC):
        likely = (
            f"the key expired on {key_expires:%Y-%m-%d}; raise jwt.lifetime_days or jwt.issued_at, then `pulumi up`"
        )
    elif message in (KONG_NO_KEY, KONG_WRONG_KEY):
        likely = "the gateway's key-auth does not know the key: its consumers hold another one; " + UP
    elif message.startswith(KONG_WRONG_GROUP):
        likely = "the gateway's acl keeps the key's consumer out, or the path is one of those closed on purpose; " + UP
    elif message.startswith(KONG_NO_ROUTE):
        likely = "the gateway has no route for /realtime/v1/; " + UP
    elif status == 403 and not message:  # noqa: PLR2004
        likely = (
            "Realtime has no tenant of the name that reaches it (the first label of the Host header; a tenant just "
            "made is refused for up to 30 s), or the key is not signed with the tenant's jwt_secret, or lacks the "
            f"claims role and exp; {REALTIME_LOG}"
        )
    elif status == 404 and message != "Tenant not found":  # noqa: PLR2004
        likely = (
            "the gateway's route leads to a path that Realtime does not serve (it must become /socket/websocket); " + UP
        )
    elif message == "Tenant not found":
        likely = "Realtime has no tenant of the name that reaches it, the first label of the Host header; " + UP
    elif "signature" in message:
        likely = "the tenant's jwt_secret is not the one the key is signed with (jwt.secret); " + UP
    elif status == 429:  # noqa: PLR2004
        likely = "the tenant's limit of connections or joins is reached; raise realtime.max_concurrent_users"
    else:
        likely = REALTIME_LOG
    return Failure(cause=Cause.REFUSED, waited_for=CONNECTION, seen=http(status, body), likely=likely)


JOIN_REASONS: tuple[tuple[str, str], ...] = (
    (
        r"Unable to subscribe to changes with given parameters",
        "the table is not in the publication supabase_realtime, or the publication is gone; " + UP,
    ),
    (r"42P10|ON CONFLICT", "the database was migrated by a newer Realtime, and there is no way back; use that version"),
    (r"role \"?\w+\"? does not exist", "a database role that the API needs is missing; " + UP),
    (r"schema \"?realtime\"? does not exist", "the schema realtime is missing; create it and restart Realtime"),
    (r"(?i)jwt|token|claim", "the tenant does not accept the key (secret, expiry, claims); " + UP),
    (r"RateLimit|Too many", "one of the tenant's limits is reached; raise it (realtime.max_…), then `pulumi up`"),
    (
        r"UnableToConnectToProject|unable to connect",
        "the tenant's connection settings do not lead to the database (host, port, user, password); " + UP,
    ),
)


def permanent(reason: str) -> bool:
    """Whether a refused join stays refused however often it is tried: it is about the key."""
    return bool(re.search(r"(?i)jwt|token|claim", reason))


def never_subscribed(waited: float, reason: str | None) -> Failure:
    """The join went through or not, but Realtime never said that changes flow."""
    likely = next((text for pattern, text in JOIN_REASONS if re.search(pattern, reason or "")), None)
    return Failure(
        cause=Cause.NOT_SUBSCRIBED,
        waited_for=f'Realtime\'s system message "Subscribed to PostgreSQL", for {waited:.0f} s',
        seen=reason or "silence",
        likely=likely
        or "Realtime cannot use the tenant's database: the schema realtime or one of the API roles is missing, or "
        f"Postgres is down or starting; {REALTIME_LOG}",
    )


def http(status: int, body: str) -> str:
    """An answer in one short line."""
    message = told(body)
    return f"HTTP {status}, {message}" if message else f"HTTP {status} with an empty body"


def told(body: str) -> str:
    """The message of an error body: Kong's {"message": …}, Realtime's {"error": …}, or the text itself, shortened."""
    try:
        document = json.loads(body)
    except json.JSONDecodeError:
        document = None
    if isinstance(document, dict):
        body = str(document.get("message") or document.get("error") or body)
    return " ".join(body.split())[:200]
