"""Another value for a secret: written down, then put where it is checked, then proved, then the old one forgotten.

``settings.PendingRotation``, an encrypted config key of its own, says from before the first step until after the last
which secret is between its values, and holds both. Each step may be repeated, so that a rotation that was killed
anywhere is finished by going through all of them again.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import docker
import psycopg
from docker.errors import NotFound
from psycopg import sql
from pydantic import SecretStr

from deploy import generated, state
from deploy.engine import Engine
from deploy.errors import DeployError
from deploy.recovery import HEALTHY_SECONDS, POLL_SECONDS, say
from providers.connection import conninfo
from realtime_versions import Version
from settings import PRIVATE_KEY, ROTATION, ApiRole, PendingRotation, PostgresSettings, Settings
from tokens import api_key, bearer_token

SECRETS = {
    "jwt": "jwt.secret",
    "database-password": "postgres.password",
    "db-enc-key": "realtime.db_enc_key",
    "management": "realtime.api_jwt_secret",
    "metrics": "realtime.metrics_jwt_secret",
    "secret-key-base": "realtime.secret_key_base",
}
"""What ``rotate`` calls a secret, and its config key."""
SIGNING_KEYS = ("jwt.secret", PRIVATE_KEY)
"""What ``jwt`` means: the one that signs the clients' keys."""
DISCONNECTS_ON_NEW_SECRET = Version(2, 36, 17)
"""From here on another jwt_secret ends the tenant's websockets and its cached row at once (requires_disconnect in
lib/realtime/api.ex); before, both live on, the row for 30 s."""
REFUSED_SECONDS = 30.0
KNOCK_SECONDS = 10.0
FORBIDDEN = (401, 403)


class UnreachableError(DeployError):
    """Postgres does not answer."""


def command(pending: PendingRotation, stack: str) -> str:
    """What finishes a rotation that is under way."""
    name = "jwt" if pending.key == PRIVATE_KEY else next(n for n, key in SECRETS.items() if key == pending.key)
    return f"make rotate SECRET={name} STACK={stack}"


def unfinished(pending: PendingRotation, stack: str) -> str:
    """One line about a rotation that was cut short."""
    return f"the rotation of {pending.key} is not finished; `{command(pending, stack)}` finishes it"


def begin(engine: Engine, wanted: Settings, name: str) -> None:
    """Write down the next value of a secret beside the one in force; of one under way already, nothing.

    Raises DeployError when the stack is not up, or another secret's rotation is not finished.
    """
    private_key = wanted.jwt.private_key
    key = PRIVATE_KEY if name == "jwt" and private_key is not None else SECRETS[name]
    if wanted.rotation is not None:
        if wanted.rotation.key != key:
            raise DeployError(f"{unfinished(wanted.rotation, wanted.stack)}; then rotate {key}")
        return
    if not state.ids(engine.export(), state.CONTAINER):
        raise DeployError(f"stack {wanted.stack} is not up, so nothing knows {key} yet; `make up STACK={wanted.stack}`")
    if key == PRIVATE_KEY:
        generated_value = generated.generate_private_key(wanted.jwt.algorithm).strip()
    else:
        generated_value = generated.generate(key)
    pending = PendingRotation(key=key, previous=value_of(wanted, key), next=SecretStr(generated_value))
    engine.ask("config", "set", "--secret", ROTATION, stdin=pending.recorded())
    say(f"{key}: the next value is generated and in Pulumi.{wanted.stack}.yaml, encrypted, not in force yet")


def put_in_place(engine: Engine, client: docker.DockerClient, wanted: Settings, pending: PendingRotation) -> None:
    """Make the next value the config's, from which the update takes it; Postgres's password in Postgres before that.

    Raises DeployError when Postgres cannot be asked or knows neither password.
    """
    if pending.key == "postgres.password":
        try:
            alter_password(wanted.postgres, pending)
            say(f"{pending.key}: Postgres knows {wanted.postgres.user} by the next value")
        except UnreachableError:
            if holds_data(client, wanted):
                raise
            say(f"{pending.key}: there is no data yet, and a new Postgres starts with the next value")
    if value_of(wanted, pending.key) != pending.next:
        if pending.key in SIGNING_KEYS:
            # Their time begins anew with the keys. A second early, since the program's clock may be the engine's.
            engine.ask("config", "set", "--plaintext", "jwt.issued_at", str(int(time.time()) - 1))
        engine.ask("config", "set", "--secret", pending.key, stdin=pending.next.get_secret_value())


def value_of(wanted: Settings, key: str) -> SecretStr:
    """The value of a secret, without the line end that the CLI leaves out of a private key."""
    section, _, field = key.partition(".")
    secret: SecretStr = getattr(getattr(wanted, section), field)
    return SecretStr(secret.get_secret_value().strip())


def holds_data(client: docker.DockerClient, wanted: Settings) -> bool:
    """Whether there is a server or a data volume, which has a password already; a new one takes the config's."""
    if wanted.postgres.external is not None:
        return True
    try:
        client.volumes.get(f"{wanted.name}-postgres")
    except NotFound:
        return False
    return True


def alter_password(postgres: PostgresSettings, pending: PendingRotation) -> None:
    """Give the user the next password, as a SCRAM verifier: a statement may be logged, and says no password then.

    Logs in with the previous password or, where it was altered already, with the next. Raises DeployError when both
    are refused, and UnreachableError when Postgres does not answer.
    """
    for password in (pending.previous, pending.next):
        try:
            with psycopg.connect(_conninfo(postgres, password), autocommit=True) as connection:
                verifier = connection.pgconn.encrypt_password(
                    pending.next.get_secret_value().encode(), postgres.user.encode(), b"scram-sha-256"
                )
                connection.execute(
                    sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(postgres.user), verifier.decode())
                )
            return
        except psycopg.OperationalError as refused:
            if not is_wrong_password(refused):
                raise UnreachableError(
                    f"Postgres cannot be asked to take its next password: {_first_line(refused)}; start it "
                    f"(`docker ps -a` shows its container), then run the same command again"
                ) from None
    raise DeployError(
        f"Postgres refuses the previous and the next password of {postgres.user}, so somebody changed it by hand: "
        f"as another superuser `ALTER ROLE {postgres.user} PASSWORD …` to the value of `pulumi config get "
        "postgres.password`, then run the same command again"
    )


def _conninfo(postgres: PostgresSettings, password: SecretStr) -> str:
    return conninfo(postgres.model_copy(update={"password": password}))


def is_wrong_password(refused: psycopg.OperationalError) -> bool:
    """Whether a connection was refused for its password alone. libpq gives no SQLSTATE for a failed connection."""
    return "password authentication failed" in str(refused)


def _first_line(refused: psycopg.Error) -> str:
    return str(refused).strip().splitlines()[0]


def prove_and_forget(engine: Engine, client: docker.DockerClient, wanted: Settings, pending: PendingRotation) -> None:
    """See that the previous value opens nothing any more, then remove it from the config.

    ``wanted`` are the settings with the next value. Raises DeployError when the previous one is still accepted.
    """
    if pending.key in SIGNING_KEYS:
        drop_old_clients(client, wanted)
    if (still_open := OPENS.get(pending.key)) is not None:
        await_refusal(lambda: still_open(wanted, pending.previous), pending, wanted.stack)
    engine.ask("config", "rm", ROTATION)
    say(f"{pending.key} is rotated" + ("; the previous value is refused" if pending.key in OPENS else ""))


def drop_old_clients(client: docker.DockerClient, wanted: Settings) -> None:
    """Restart a Realtime that would keep clients of the old keys connected, and wait until it is healthy."""
    release = wanted.realtime.release
    if release is not None and release >= DISCONNECTS_ON_NEW_SECRET:
        return
    container = client.containers.get(f"{wanted.name}-realtime")
    container.restart(timeout=10)
    container.reload()
    deadline = time.monotonic() + HEALTHY_SECONDS
    while container.attrs["State"].get("Health", {}).get("Status") != "healthy":
        if time.monotonic() > deadline:
            raise DeployError(f"container {container.name} is not healthy; `docker logs --tail 20 {container.name}`")
        time.sleep(POLL_SECONDS)
        container.reload()


def await_refusal(still_open: Callable[[], str | None], pending: PendingRotation, stack: str) -> None:
    """Wait until the previous value is refused. Raises DeployError, with what still takes it, when it is not."""
    deadline = time.monotonic() + REFUSED_SECONDS
    while (open_door := still_open()) is not None:
        if time.monotonic() > deadline:
            raise DeployError(
                f"{open_door} for the previous value of {pending.key}; mend that, then `{command(pending, stack)}`"
            )
        time.sleep(POLL_SECONDS)


def _clients_are_let_in(wanted: Settings, previous: SecretStr) -> str | None:
    """Knocks with the old anon key at the gateway, and behind it: a gateway that asks for keys knows the new ones
    alone, and says nothing about Realtime."""
    import httpx  # noqa: PLC0415 - only a rotation pays for the import

    signing = "secret" if wanted.jwt.private_key is None else "private_key"
    old_key = api_key(wanted.jwt.model_copy(update={signing: previous}), ApiRole.ANON)
    host = "127.0.0.1" if wanted.gateway.host == "0.0.0.0" else wanted.gateway.host  # noqa: S104 - compared, not bound
    query = httpx.QueryParams(apikey=old_key, vsn="1.0.0")
    address = f"{host}:{wanted.gateway.port}"
    if opens := _websocket_opens("the gateway", f"ws://{address}/realtime/v1/websocket?{query}", host, {}):
        return opens
    # The tenant is the first label of the Host header, whatever the address.
    address = f"{wanted.realtime.tenant}:{wanted.realtime.host_port}"
    return _websocket_opens(
        "Realtime", f"ws://{address}/socket/websocket?vsn=1.0.0", "127.0.0.1", {"x-api-key": old_key}
    )


def _websocket_opens(who: str, url: str, host: str, headers: dict[str, str]) -> str | None:
    from websockets.exceptions import InvalidStatus, WebSocketException  # noqa: PLC0415
    from websockets.sync.client import connect  # noqa: PLC0415
    from websockets.uri import parse_uri  # noqa: PLC0415

    try:
        with connect(
            url,
            sock=socket.create_connection((host, parse_uri(url).port), timeout=KNOCK_SECONDS),
            additional_headers=headers,
            open_timeout=KNOCK_SECONDS,
            close_timeout=1,
        ):
            return f"{who} opens a websocket"
    except InvalidStatus as refused:
        status = refused.response.status_code
        return None if status in FORBIDDEN else f"{who} answers {status}"
    except (OSError, EOFError, WebSocketException) as unanswered:  # the last two of one that is just starting
        return f"{who} does not answer ({type(unanswered).__name__})"


def _postgres_opens(wanted: Settings, previous: SecretStr) -> str | None:
    try:
        with psycopg.connect(_conninfo(wanted.postgres, previous)):
            return f"Postgres opens to {wanted.postgres.user} (does its pg_hba.conf say `trust`?)"
    except psycopg.OperationalError as refused:
        return None if is_wrong_password(refused) else f"Postgres answers {_first_line(refused)}"


def _realtime_opens(wanted: Settings, previous: SecretStr, path: str) -> str | None:
    import httpx  # noqa: PLC0415

    bearer = {"Authorization": f"Bearer {bearer_token(previous.get_secret_value())}"}
    url = f"http://127.0.0.1:{wanted.realtime.host_port}{path}"
    try:
        status = httpx.get(url, headers=bearer, trust_env=False, timeout=10).status_code
    except httpx.TransportError as unanswered:
        return f"Realtime does not answer ({type(unanswered).__name__})"
    return None if status in FORBIDDEN else f"{url} answers {status}"


OPENS: dict[str, Callable[[Settings, SecretStr], str | None]] = {
    "jwt.secret": _clients_are_let_in,
    PRIVATE_KEY: _clients_are_let_in,
    "postgres.password": _postgres_opens,
    "realtime.api_jwt_secret": lambda wanted, old: _realtime_opens(
        wanted, old, f"/api/tenants/{wanted.realtime.tenant}"
    ),
    "realtime.metrics_jwt_secret": lambda wanted, old: _realtime_opens(wanted, old, "/metrics"),
}
"""What a secret opens: says in a few words that it still does, None once it is refused. The others open nothing that
can be knocked at: db_enc_key encrypts rows, which the tenant's update reads back with the next value, and
secret_key_base signs cookies that no client of this stack has."""
