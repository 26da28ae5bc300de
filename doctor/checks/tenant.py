"""The tenant: there, with the secrets, the connection and the limits that it should have."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping
from typing import Any

import httpx
import jwt

from doctor.checks import database, postgres, realtime
from doctor.checks.finding import Finding, check, failed, ok, skipped, warning
from doctor.checks.setup import Need, Setup, image_name
from doctor.silence import PUBLICATION
from providers.tenant import ENCRYPTED, EXTENSION, LIMITS, decrypt
from realtime_versions import Version, image_version
from tokens import public_keys, tenant_secret

SUSPEND_HONOURED = Version(2, 34, 32)
HEALTH_SECONDS = 5.0
POLL_SECONDS = 0.5

TENANT = "SELECT * FROM _realtime.tenants WHERE external_id = %s"
CONNECTION = "SELECT settings FROM _realtime.extensions WHERE tenant_external_id = %s AND type = %s"


@check("the tenant exists", needs=(Need.DATABASE,), after=(realtime.search_path,))
def present(setup: Setup) -> Finding:
    rows = setup.rows("SELECT external_id FROM _realtime.tenants ORDER BY 1")
    names = [row["external_id"] for row in rows]
    if setup.tenant is None:
        if not names:
            return failed("tenant-missing", "no tenant at all", tenant="<name>")
        return ok(f"tenants: {', '.join(names)}")
    if setup.tenant not in names:
        seen = f"no tenant {setup.tenant}; there are: {', '.join(names) or 'none'}"
        return failed("tenant-missing", seen, tenant=setup.tenant)
    return ok(f"tenant {setup.tenant}")


@check("the tenant has its connection to the database", after=(present,))
def extension(setup: Setup) -> Finding:
    if (name := _name(setup)) is None:
        return skipped("which tenant is meant is not known")
    row = _row(setup, name)
    if not _settings(setup, name):
        return failed("tenant-extension-missing", f"tenant {name} has no extension {EXTENSION}")
    if row.get("suspend"):
        running = None
        if setup.docker_reason is None and (container := setup.parts["realtime"]) is not None:
            running = image_version(image_name(container))
        report = failed if running is None or running >= SUSPEND_HONOURED else warning
        return report("tenant-suspended", f"tenant {name} has suspend = true", tenant=name)
    return ok(f"extension {EXTENSION}")


@check("the tenant's secrets are encrypted with DB_ENC_KEY", after=(extension,))
def encryption(setup: Setup) -> Finding:
    if (name := _name(setup)) is None or (key := enc_key(setup)) is None:
        return skipped(_no_key(setup))
    if len(key.encode()) != 16:  # noqa: PLR2004 - AES-128
        return failed("db-enc-key-wrong-length", f"DB_ENC_KEY of the container is {len(key.encode())} bytes long")
    for field, value in _encrypted(setup, name).items():
        if _decrypted(value, key) is None:
            return failed("db-enc-key-changed", f"{field} of tenant {name} does not decrypt with DB_ENC_KEY")
    seen = f"{', '.join(_encrypted(setup, name))} decrypt"
    if _declared_enc_key(setup) not in (None, key):
        return warning("db-enc-key-differs", f"{seen} with DB_ENC_KEY of the container, which is not the declared one")
    return ok(seen)


@check("the tenant's jwt_secret signs the keys", after=(encryption,))
def secret(setup: Setup) -> Finding:
    if (name := _name(setup)) is None or (found := jwt_secret(setup)) is None:
        return skipped(_no_key(setup))
    settings = setup.config.jwt if setup.config else None
    if settings is not None:
        if found != tenant_secret(settings):
            return failed("tenant-secret-differs", f"jwt_secret of tenant {name} is not jwt.secret of the settings")
        if (_row(setup, name).get("jwt_jwks") or {}) != public_keys(settings):
            return failed("tenant-secret-differs", f"jwt_jwks of tenant {name} is not of jwt.private_key")
    elif setup.anon_key is not None and not verifies(setup, setup.anon_key.get_secret_value(), found):
        return failed("tenant-secret-differs", f"jwt_secret of tenant {name} does not verify the anon key")
    return ok(f"tenant {name} has what verifies the keys")


@check("the tenant's connection leads to the database", after=(encryption,))
def connection(setup: Setup) -> Finding:
    """The decrypted connection settings against the declared ones: names of the settings only, never the values."""
    server = setup.config.postgres if setup.config else None
    if (name := _name(setup)) is None or (key := enc_key(setup)) is None or server is None:
        return skipped(_no_key(setup))
    live = _settings(setup, name)
    if server.external is None:
        where = (setup.container_name("postgres"), "5432")
    else:
        where = (server.external.container_host, str(server.external.port))
    declared = {
        "db_host": where[0],
        "db_port": where[1],
        "db_name": server.database,
        "db_user": server.user,
        "db_password": server.password.get_secret_value(),
    }
    wrong = [field for field, value in declared.items() if _decrypted(str(live.get(field, "")), key) != value]
    if wrong:
        seen = f"{', '.join(wrong)} of tenant {name} differ from the settings"
        return failed("tenant-connection-differs", seen, settings=", ".join(wrong))
    return ok(f"{', '.join(declared)} as declared")


@check("the tenant's connection uses SSL only where the server has it", needs=(Need.DATABASE,), after=(extension,))
def ssl(setup: Setup) -> Finding:
    if (name := _name(setup)) is None:
        return skipped("which tenant is meant is not known")
    # Enforced unless told otherwise: lib/realtime/database.ex (v2.32.12), default_ssl_param.
    enforced = _settings(setup, name).get("ssl_enforced") is not False
    server = setup.row("SELECT current_setting('ssl') AS ssl")["ssl"]
    seen = f"ssl_enforced {str(enforced).lower()}, the server's ssl {server}"
    return failed("tenant-wants-ssl", seen) if enforced and server == "off" else ok(seen)


@check("the tenant reads the publication", after=(extension,))
def publication(setup: Setup) -> Finding:
    if (name := _name(setup)) is None:
        return skipped("which tenant is meant is not known")
    live = _settings(setup, name)
    found = live.get("publication", PUBLICATION)
    if found != PUBLICATION:
        return failed("tenant-publication-differs", f"tenant {name} reads publication {found}")
    return ok(f"publication {found}, slot {live.get('slot_name', 'by default')}")


@check("the tenant's limits are as declared", after=(extension,))
def limits(setup: Setup) -> Finding:
    if (name := _name(setup)) is None:
        return skipped("which tenant is meant is not known")
    row, live = _row(setup, name), _settings(setup, name)
    seen = ", ".join(f"{limit} {row.get(limit)}" for limit in LIMITS)
    declared = setup.config.realtime if setup.config else None
    if declared is None:
        return ok(seen)
    if wrong := [limit for limit in LIMITS if row.get(limit) != getattr(declared, limit)]:
        values = ", ".join(f"{limit} is {row.get(limit)}, declared {getattr(declared, limit)}" for limit in wrong)
        return warning("tenant-limits-differ", values)
    for field in ("poll_interval_ms", "poll_max_changes"):
        if live.get(field) != getattr(declared, field):
            return warning("tenant-poll-differs", f"{field} is {live.get(field)}, declared {getattr(declared, field)}")
    return ok(seen)


@check("Realtime knows the tenant", after=(present, realtime.management_api))
def visible(setup: Setup) -> Finding:
    answer = realtime.ask_management(setup, f"/{setup.tenant}")
    if answer is None:
        return skipped(setup.config_reason)
    if answer.status_code == httpx.codes.NOT_FOUND:
        return failed("search-path-wrong", f"the row of tenant {setup.tenant} is there, and Realtime answers 404 to it")
    return ok(f"GET /api/tenants/{setup.tenant} answers {answer.status_code}")


@check(
    "the tenant is healthy",
    after=(visible, encryption, connection, ssl, database.migrations, postgres.container, realtime.health),
)
def health(setup: Setup) -> Finding:
    """Realtime's own word on the tenant. The question opens the tenant's connection, and writes nothing: it would run
    migrations that are missing, and is not asked then. Newer versions say unhealthy once while they connect."""
    name = setup.container_name("realtime")
    deadline = time.monotonic() + HEALTH_SECONDS
    while True:
        try:
            left = max(1.0, deadline - time.monotonic())
            answer = realtime.ask_management(setup, f"/{setup.tenant}/health", seconds=left)
        except httpx.TimeoutException:
            seen = f"no answer of the tenant's health within {HEALTH_SECONDS:.0f} s"
            return failed("tenant-cannot-connect", seen, container=name)
        if answer is None:
            return skipped(setup.config_reason)
        if answer.status_code == httpx.codes.NOT_FOUND:
            # The answer before, of check visible, was the row's; this one is that of Realtime's cache.
            seen = f"the row of tenant {setup.tenant} is there, and health answers 404"
            return failed("websocket-refused", seen, container=name)
        data = realtime.tenant_of(answer)
        if answer.is_success and data.get("healthy"):
            return ok(f"healthy, {data.get('connected_cluster', 0)} clients")
        if time.monotonic() >= deadline:
            seen = f"health answers {answer.status_code} {data or ''}".strip()
            return failed("tenant-cannot-connect", seen, container=name)
        time.sleep(POLL_SECONDS)


def verifies(setup: Setup, key: str, secret: str) -> bool:
    """Whether the tenant takes a JWT's signature, whatever its claims.

    HS256 with its jwt_secret, others with the key of its jwt_jwks that the JWT names
    (lib/realtime_web/channels/auth/jwt_verification.ex, v2.32.12).
    """
    options: Any = {"verify_exp": False, "verify_aud": False, "verify_iat": False, "verify_nbf": False}
    try:
        header = jwt.get_unverified_header(key)
        if str(header.get("alg")).startswith("HS"):
            jwt.decode(key, secret, algorithms=["HS256", "HS384", "HS512"], options=options)
            return True
        row = _row(setup, _name(setup) or "")
        named = [jwk for jwk in (row.get("jwt_jwks") or {}).get("keys", ()) if jwk.get("kid") == header.get("kid")]
        if not named:
            return False
        jwt.decode(key, jwt.PyJWK(named[0]), algorithms=["ES256", "RS256"], options=options)
    except (jwt.InvalidTokenError, jwt.PyJWKError):
        return False
    return True


def jwt_secret(setup: Setup) -> str | None:
    """The tenant's jwt_secret, decrypted; None when the key is not known, or there is no such tenant."""
    name, key = _name(setup), enc_key(setup)
    if name is None or key is None:
        return None
    return _decrypted(str(_row(setup, name).get("jwt_secret") or ""), key)


def enc_key(setup: Setup) -> str | None:
    """The key of the tenants' stored secrets: that of Realtime's container, or else of the stack's config.

    None when neither can be read.
    """
    running = (setup.environment("realtime") or {}).get("DB_ENC_KEY")
    return running if running is not None else _declared_enc_key(setup)


def _declared_enc_key(setup: Setup) -> str | None:
    declared = setup.config.realtime if setup.config else None
    return declared.db_enc_key.get_secret_value() if declared else None


def _no_key(setup: Setup) -> str:
    return "no DSN was given" if setup.dsn is None else f"db_enc_key is not known: {setup.config_reason}"


def _name(setup: Setup) -> str | None:
    """The tenant; where none is named, the only one there is."""
    if setup.dsn is None or setup.tenant is not None:
        return setup.tenant if setup.dsn is not None else None
    names = [row["external_id"] for row in setup.rows("SELECT external_id FROM _realtime.tenants")]
    return names[0] if len(names) == 1 else None


def _row(setup: Setup, name: str) -> dict[str, Any]:
    rows = setup.rows(TENANT, [name])
    return rows[0] if rows else {}


def _settings(setup: Setup, name: str) -> dict[str, Any]:
    rows = setup.rows(CONNECTION, [name, EXTENSION])
    return dict(rows[0]["settings"] or {}) if rows else {}


def _encrypted(setup: Setup, name: str) -> Mapping[str, str]:
    live = _settings(setup, name)
    return {
        "jwt_secret": str(_row(setup, name).get("jwt_secret") or ""),
        **{field: str(live[field]) for field in ENCRYPTED if field in live},
    }


def _decrypted(value: str, key: str) -> str | None:
    """None when the value was encrypted with another key."""
    try:
        if len(base64.b64decode(value, validate=True)) % 16:
            return None
        return decrypt(value, key)
    except (ValueError, binascii.Error):
        return None
