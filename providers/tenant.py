"""Realtime's tenant: written through the management API, read back from the rows that the API writes."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pulumi
from psycopg import sql
from pulumi.dynamic import Config, ConfigureRequest, CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from providers.connection import Cursor, DatabaseError, DatabaseProvider, transaction
from providers.first_subscription import SubscriptionError, subscribe

if TYPE_CHECKING:
    import httpx

    from settings import RealtimeSettings

EXTENSION = "postgres_cdc_rls"
LIMITS = (
    "max_concurrent_users",
    "max_events_per_second",
    "max_bytes_per_second",
    "max_channels_per_client",
    "max_joins_per_second",
)
ENCRYPTED = ("db_host", "db_port", "db_name", "db_user", "db_password")
"""Settings that Realtime stores encrypted: lib/extensions/postgres_cdc_rls/db_settings.ex (v2.32.12)."""
PLAIN = (
    "region",
    "poll_interval_ms",
    "poll_max_changes",
    "poll_max_record_bytes",
    "publication",
    "slot_name",
    "ssl_enforced",
)
NUMBERS = (*LIMITS, "poll_interval_ms", "poll_max_changes", "poll_max_record_bytes")
DECLARED = ("external_id", "jwt_secret", "jwt_jwks", *LIMITS, *ENCRYPTED, *PLAIN)
SECRETS = ("jwt_secret", "db_password")
"""Shown as ``[secret]`` whatever their value, so that ``changed_secrets`` says which of them somebody changed."""
CONNECTS_WITH_CLIENT = "replication_connected"
"""A health answer with this key comes from a version whose health call migrates the tenant and leaves connecting
to its first client (lib/realtime/tenants.ex, health_check, v2.129.8); before, it connects, and the next one says so."""
READY_TIMEOUT = 90.0
"""Seconds for the tenant to become healthy: its first health call runs some sixty migrations."""
SUBSCRIBED_TIMEOUT = 60.0
"""Seconds for the first subscription, which starts the replication."""
POLL = 0.1

_config: Config | None = None


class TenantError(Exception):
    """What Realtime's management API refused, and what to do about it."""


def _configured() -> RealtimeSettings:
    from settings import RealtimeSettings, load_section  # noqa: PLC0415 - a preview without a change needs none

    if _config is None:
        raise TenantError("Realtime was not configured for this provider: set realtime.* in the stack's config")
    return load_section("realtime", RealtimeSettings, _config.get)


def decrypt(value: str, key: str) -> str:
    """A value as Realtime stores it: AES-128-ECB, PKCS#7, base64 (lib/realtime/crypto.ex).

    Raises ValueError when the key is another one than the value was encrypted with.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # noqa: PLC0415
    from cryptography.hazmat.primitives.padding import PKCS7  # noqa: PLC0415

    decryptor = Cipher(algorithms.AES128(key.encode()), modes.ECB()).decryptor()  # noqa: S305 - upstream's choice
    padded = decryptor.update(base64.b64decode(value, validate=True)) + decryptor.finalize()
    unpadder = PKCS7(128).unpadder()
    return (unpadder.update(padded) + unpadder.finalize()).decode()


def _decrypted(value: Any, key: str) -> str:
    try:
        return decrypt(value, key)
    except (TypeError, ValueError):
        return "(not encrypted with realtime.db_enc_key)"


def read_tenant(cursor: Cursor, external_id: str, enc_key: str) -> dict[str, Any] | None:
    """The tenant's row and its extension's, decrypted; None when there is no such tenant.

    From the database, since GET /api/tenants leaves out jwt_secret and max_bytes_per_second
    (lib/realtime_web/views/tenant_view.ex, v2.32.12), and since a stopped Realtime must not hide its tenant.
    """
    cursor.execute("SELECT to_regclass('_realtime.tenants') AS tenants")
    row = cursor.fetchone()
    if row is None or row["tenants"] is None:
        return None
    cursor.execute(
        sql.SQL(
            "SELECT t.jwt_secret, t.jwt_jwks, {limits}, e.settings FROM _realtime.tenants t "
            "LEFT JOIN _realtime.extensions e ON e.tenant_external_id = t.external_id AND e.type = %s "
            "WHERE t.external_id = %s"
        ).format(limits=sql.SQL(", ").join(sql.Identifier("t", limit) for limit in LIMITS)),
        [EXTENSION, external_id],
    )
    tenant = cursor.fetchone()
    if tenant is None:
        return None
    settings = tenant["settings"] or {}
    return {
        "external_id": external_id,
        "jwt_secret": _decrypted(tenant["jwt_secret"], enc_key),
        "jwt_jwks": tenant["jwt_jwks"] or {},
        **{limit: tenant[limit] for limit in LIMITS},
        **{key: _decrypted(settings[key], enc_key) for key in ENCRYPTED if key in settings},
        **{key: settings[key] for key in PLAIN if key in settings},
    }


def check_logical_decoding() -> None:
    """Prove that the server can serve a wal2json slot, by making a temporary one.

    Without this, Realtime tells its clients "Subscribed to PostgreSQL" and delivers nothing. Raises DatabaseError.
    """
    name = "supabase_realtime_stack_check"
    try:
        with transaction() as cursor:
            cursor.execute("SELECT pg_create_logical_replication_slot(%s, 'wal2json', true)", [name])
            cursor.execute("SELECT pg_drop_replication_slot(%s)", [name])
    except psycopg.errors.ObjectNotInPrerequisiteState as unready:
        raise DatabaseError(
            f"{unready.diag.message_primary}: set wal_level = logical in the server's configuration and restart it"
        ) from unready
    except psycopg.errors.ConfigurationLimitExceeded as full:
        raise DatabaseError(
            f"{full.diag.message_primary}: raise max_replication_slots, or drop an idle one of pg_replication_slots"
        ) from full
    except psycopg.Error as unusable:
        raise DatabaseError(
            f"{unusable.diag.message_primary}: Realtime needs the output plugin wal2json; install it, and since "
            "Postgres 15.19 name it in output_plugin_libraries"
        ) from unusable


def tenant_document(props: Mapping[str, Any]) -> dict[str, Any]:
    """The body of PUT /api/tenants/:external_id. Realtime wants db_port as text and the other numbers as such."""
    settings = {key: str(props[key]) for key in ENCRYPTED} | {key: props[key] for key in PLAIN}
    return {
        "tenant": {
            "name": props["external_id"],
            "external_id": props["external_id"],
            "jwt_secret": props["jwt_secret"],
            "jwt_jwks": props["jwt_jwks"] or None,
            **{limit: props[limit] for limit in LIMITS},
            "extensions": [{"type": EXTENSION, "settings": settings}],
        }
    }


def _whole_numbers(props: Mapping[str, Any]) -> dict[str, Any]:
    """The declared inputs; the engine hands every number over as a float."""
    return {key: int(props[key]) if key in NUMBERS else props[key] for key in DECLARED}


@contextmanager
def _management_api() -> Iterator[httpx.Client]:
    import httpx  # noqa: PLC0415 - only the process that talks to Realtime pays for the imports

    from tokens import bearer_token  # noqa: PLC0415

    realtime = _configured()
    with httpx.Client(
        base_url=f"http://127.0.0.1:{realtime.host_port}/api/tenants",
        headers={"Authorization": f"Bearer {bearer_token(realtime.api_jwt_secret.get_secret_value())}"},
        timeout=30.0,
        trust_env=False,
    ) as client:
        yield client


def _live(external_id: str) -> dict[str, Any] | None:
    with transaction() as cursor:
        return read_tenant(cursor, external_id, _configured().db_enc_key.get_secret_value())


def _put(props: Mapping[str, Any]) -> dict[str, Any]:
    """PUT the tenant until its row says what is declared, wait until it is healthy and connected, and subscribe once.

    A PUT may go unanswered while Realtime restarts, or be answered 401 with the row stored all the same
    (v2.129.8): the row decides, and a repeated PUT is harmless.
    """
    import httpx  # noqa: PLC0415

    declared = _whole_numbers(props)
    external_id = declared["external_id"]
    check_logical_decoding()
    deadline = time.monotonic() + READY_TIMEOUT
    with _management_api() as api:
        last = "no answer"
        stored = False
        while time.monotonic() < deadline:
            try:
                if not stored:
                    answer = api.put(f"/{external_id}", json=tenant_document(declared))
                    last = f"PUT answered {answer.status_code}"
                    if answer.status_code == httpx.codes.FORBIDDEN:
                        raise TenantError(
                            "Realtime's management API answers 403: the running container has another "
                            "realtime.api_jwt_secret than the config; replace the container with `make up`"
                        )
                    stored = _live(external_id) == declared
                    if stored:
                        api.post(f"/{external_id}/reload")
                else:
                    health = api.get(f"/{external_id}/health")
                    data = health.json().get("data", {}) if health.is_success else {}
                    last = f"health answered {health.status_code} {data}"
                    if data.get("healthy") and (data.get("db_connected") or CONNECTS_WITH_CLIENT in data):
                        break
            except httpx.TransportError as unanswered:
                last = f"{type(unanswered).__name__}"
            time.sleep(POLL)
        else:
            raise TenantError(
                f"tenant {external_id} was not healthy within {READY_TIMEOUT:.0f} s (last: {last}); "
                "the log of the Realtime container says why: `docker logs`"
            )
    _start_replication(declared)
    return declared


def _start_replication(declared: Mapping[str, Any]) -> None:
    """Subscribe once to a published table, if there is one, so that no client has to wait for the first time."""
    with transaction() as cursor:
        cursor.execute(
            "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = %s LIMIT 1",
            [declared["publication"]],
        )
        published = cursor.fetchone()
    if published is None:
        return
    try:
        subscribe(
            port=_configured().host_port,
            tenant=declared["external_id"],
            jwt_secret=declared["jwt_secret"],
            schema=published["schemaname"],
            table=published["tablename"],
            timeout=SUBSCRIBED_TIMEOUT,
        )
    except SubscriptionError as refused:
        raise TenantError(
            f"tenant {declared['external_id']} is healthy, but a subscription to {published['schemaname']}."
            f"{published['tablename']} was not served within {SUBSCRIBED_TIMEOUT:.0f} s (last: {refused}); "
            "`make doctor` says why, and so does the log of the Realtime container"
        ) from None


def _applied(props: Mapping[str, Any]) -> dict[str, Any]:
    return {**_put(props), "changed_secrets": [], "server": props["server"]}


class RealtimeTenantProvider(DatabaseProvider):
    def configure(self, req: ConfigureRequest) -> None:
        global _config  # noqa: PLW0603 - the stack's config, the same for every resource of the process
        super().configure(req)
        _config = req.config

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(id_=props["external_id"], outs=_applied(props))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        live = _live(props["external_id"])
        if live is None:
            return ReadResult(id_="", outs={})
        outs = {
            **live,
            **{key: props[key] for key in SECRETS},
            "changed_secrets": [key for key in SECRETS if live.get(key) != props[key]],
            "server": props["server"],
        }
        return ReadResult(id_=id_, outs=outs, inputs=outs)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        replaces = ["external_id"] if _olds.get("external_id") != _news["external_id"] else []
        changed = any(_olds.get(key) != _news[key] for key in (*DECLARED, "server"))
        return DiffResult(changes=changed or bool(_olds.get("changed_secrets")), replaces=replaces)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(outs=_applied(_news))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Deletes the tenant's row, which takes its extension along, and reloads so that its slot ends.

        Not by DELETE /api/tenants: that ends the active replication slots of every tenant of the database
        (replication_slot_teardown in lib/realtime/database.ex, v2.32.12). A stopped Realtime has no slot to end.
        """
        import httpx  # noqa: PLC0415

        external_id = _props["external_id"]
        try:
            with _management_api() as api:
                api.post(f"/{external_id}/reload")
        except httpx.ConnectError:
            pulumi.log.debug(f"Realtime is not running: tenant {external_id} holds no replication slot")
        with transaction() as cursor:
            cursor.execute("DELETE FROM _realtime.tenants WHERE external_id = %s", [external_id])


class RealtimeTenant(Resource, module="index", name="RealtimeTenant"):
    """The tenant that clients reach, named by the first label of the Host header that arrives at Realtime.

    Made or adopted, then warmed up until Realtime calls it healthy and connected to the database and has served a
    first subscription, so that no client waits for the tenant's migrations or for the start of the replication.
    ``server`` is the id of Realtime's container: another one warms the tenant up again. Raises DatabaseError when the
    server cannot decode changes with wal2json, and TenantError when Realtime refuses the tenant, does not connect
    within READY_TIMEOUT or serves no subscription within SUBSCRIBED_TIMEOUT.
    """

    external_id: pulumi.Output[str]

    def __init__(
        self,
        name: str,
        *,
        external_id: str,
        jwt_secret: pulumi.Input[str],
        public_keys: Mapping[str, Any],
        limits: Mapping[str, int],
        database: Mapping[str, pulumi.Input[str]],
        poll_interval_ms: int,
        poll_max_changes: int,
        publication: str,
        slot_name: str,
        ssl_enforced: bool = False,
        server: pulumi.Input[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__(
            RealtimeTenantProvider(),
            name,
            {
                "external_id": external_id,
                "jwt_secret": jwt_secret,
                "jwt_jwks": public_keys,
                **limits,
                **database,
                "region": "us-east-1",
                "poll_interval_ms": poll_interval_ms,
                "poll_max_changes": poll_max_changes,
                "poll_max_record_bytes": 1_048_576,
                "publication": publication,
                "slot_name": slot_name,
                "ssl_enforced": ssl_enforced,
                "changed_secrets": [],
                "server": server,
            },
            pulumi.ResourceOptions.merge(
                pulumi.ResourceOptions(additional_secret_outputs=["jwt_secret", "db_password"]), opts
            ),
        )
