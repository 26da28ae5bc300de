"""What the stack's config may say, and the exact line a user reads for everything it may not."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import ValidationError

from deploy.generated import generate_private_key
from settings import (
    NAMESPACE,
    SECTIONS,
    WELL_KNOWN_SECRETS,
    ApiRole,
    Command,
    Event,
    JwtSettings,
    Policy,
    PostgresSettings,
    RealtimeSettings,
    ReplicaIdentity,
    Settings,
    SettingsError,
    load,
    load_section,
    secret_keys,
)

NOW = datetime(2026, 7, 1, tzinfo=UTC)

SECRETS = {
    "postgres.password": "correct horse battery staple",
    "realtime.db_enc_key": "sixteen-bytes-ok",
    "realtime.secret_key_base": "a-secret-key-base-of-this-test-alone-that-is-sixty-four-bytes-ok",
    "realtime.api_jwt_secret": "the-management-secret-of-this-test-alone",
    "realtime.metrics_jwt_secret": "the-metrics-secret-of-this-test-alone",
    "jwt.secret": "the-client-key-secret-of-this-test-alone",
}
DEVELOPMENT_SECRETS = {
    "postgres.password": "postgres-development-password",
    "realtime.db_enc_key": "development-16by",
    "realtime.secret_key_base": "development-secret-key-base-of-at-least-sixty-four-bytes-as-phoenix-wants-it",
    "realtime.api_jwt_secret": "development-management-api-secret-of-32-bytes",
    "realtime.metrics_jwt_secret": "development-metrics-secret-of-32-bytes-or-so",
    "jwt.secret": "development-jwt-secret-of-32-bytes-or-more",
}
UPSTREAM_SECRETS = {
    "supabase-env-example-password": ("postgres.password", "your-super-secret-and-long-postgres-password"),
    "supabase-cli-password": ("postgres.password", "postgres"),
    "supabase-env-example-jwt-secret": (
        "jwt.secret",
        "your-super-secret-jwt-token-with-at-least-32-characters-long",
    ),
    "supabase-cli-jwt-secret": ("jwt.secret", "super-secret-jwt-token-with-at-least-32-characters-long"),
    "supabase-compose-encryption-key": ("realtime.db_enc_key", "supabaserealtime"),
    "realtime-makefile-encryption-key": ("realtime.db_enc_key", "1234567890123456"),
    "realtime-compose-api-secret": ("realtime.api_jwt_secret", "dc447559-996d-4761-a306-f47a5eab1623"),
    "supabase-env-example-secret-key-base": (
        "realtime.secret_key_base",
        "UpNVntn3cDxHJpq99YMc1T1AQgQpc8kfYTuRgBiYa15BLrx8etQoXz3gZv1/u2oq",
    ),
    "supabase-cli-secret-key-base": (
        "realtime.secret_key_base",
        "EAx3IQ/wRG1v47ZD4NE4/9RzBI8Jmil3x0yhcW4V2NHBP6c2iPIzwjofi2Ep4HIG",
    ),
}


class Unset:
    """In a case's changes: the key is not in the config at all."""


UNSET = Unset()


def as_pulumi_hands_over(value: object) -> object:
    """A scalar as text, a list or mapping as JSON text: what the engine gives a program."""
    if isinstance(value, str):
        return value
    return json.dumps(value)


def config_of(changes: Mapping[str, object]) -> dict[str, object]:
    values = {key: value for key, value in {**SECRETS, **changes}.items() if value is not UNSET}
    return {f"{NAMESPACE}:{key}": as_pulumi_hands_over(value) for key, value in values.items()}


def loaded(changes: Mapping[str, object], *, stack: str = "prod", environ: Mapping[str, str] | None = None) -> Settings:
    return load(config_of(changes), stack=stack, environ=environ or {}, now=lambda: NOW)


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def faults_of(
    changes: Mapping[str, object], *, stack: str = "prod", environ: Mapping[str, str] | None = None
) -> list[str]:
    with pytest.raises(SettingsError) as refusal:
        loaded(changes, stack=stack, environ=environ)
    text = "".join(traceback.format_exception(refusal.value))
    for key in SECRETS:
        text = text.replace(key, "")
    shown = [key for key in SECRETS if str({**SECRETS, **changes}[key]) in text]
    assert not shown, f"the error shows the secrets {shown}"
    return refusal.value.faults


def tables(*entries: object) -> dict[str, object]:
    return {"tables": list(entries)}


def wells(**changes: object) -> dict[str, object]:
    return {"table": "public.wells", "read": ["anon"], **changes}


def with_policies(*policies: object) -> dict[str, object]:
    return tables({"table": "public.wells", "policies": [*policies]})


def policy(**changes: object) -> dict[str, object]:
    whole = {"name": "read", "command": "select", "roles": ["anon"], "using": "true", **changes}
    return {key: value for key, value in whole.items() if value is not UNSET}


TENANT_CURE = (
    "is not a DNS label, and Realtime takes the tenant from the first label of the Host header; "
    "use lower-case letters, digits and hyphens, 63 at most, a letter or digit at both ends"
)
IDENTIFIER_CURE = (
    "is not a plain Postgres identifier; use lower-case letters, digits and underscores, 63 at most, no leading digit"
)
ORIGIN_CURE = "is not an origin; write scheme://host[:port] in lower case without a path, or * for all"
IMAGE_CURE = "is not an image reference; write it like supabase/realtime:v2.32.12"
ADDRESS_CURE = "is not an IPv4 address; use 127.0.0.1, or 0.0.0.0 for every interface"
WHOLE_NUMBER = "is not a whole number; write digits only"
BOOLEAN = "is neither true nor false; write one of the two"
ROLES = "is not one of 'anon', 'authenticated' or 'service_role'; use one of these"
RESERVED = "is in a schema of the server's own; declare tables of your application"
TABLE_KEYS = "table, read, write, policies, publish, events, replica_identity, force, exclusive"
TABLE_LIST = "is not a list; write it as a YAML list, like [{table: public.wells, read: [anon]}]"
ROLE_LIST = "is not a list; write it as a YAML list, like [anon, authenticated]"
UNREADABLE = (
    "is published but no subscribing role can select it, so every subscription would be silent; "
    "add `read: [authenticated]` or a SELECT policy, or set `publish: false`"
)
DEVELOPMENT_SECRET = "is a development secret that anyone can read; `make secrets` generates one for this stack"
EMPTY = "is empty; give it a value, or remove the key to use the default"

UNKNOWN_KEYS = [
    pytest.param(
        {"gateway.prot": "8000"},
        "gateway.prot: is not a setting; gateway has: image, host, port, anonymous, cors_origins, status_port, "
        "workers, memory, or remove it with `pulumi config rm gateway.prot`",
        id="misspelt-key",
    ),
    pytest.param(
        {"kong.port": "8000"},
        "kong.port: is not a setting; the sections are postgres, realtime, gateway, jwt, "
        "and the keys tables and migrations, or remove it with `pulumi config rm kong.port`",
        id="unknown-section",
    ),
    pytest.param(
        {"port": "8000"},
        "port: is not a setting; the sections are postgres, realtime, gateway, jwt, "
        "and the keys tables and migrations, or remove it with `pulumi config rm port`",
        id="key-without-section",
    ),
    pytest.param(
        {"gateway": {"port": 8001}},
        "gateway: holds a whole section, but every setting is a flat key; "
        "`pulumi config rm gateway`, then `pulumi config set gateway.<name> <value>` without --path",
        id="section-set-with-path",
    ),
    pytest.param(
        tables(wells(reed=["anon"])),
        f"tables[0].reed: is not a setting; a table has: {TABLE_KEYS}",
        id="misspelt-key-of-a-table",
    ),
    pytest.param(
        with_policies(policy(role="anon")),
        "tables[0].policies[0].role: is not a setting; a policy has: name, command, roles, using, check, permissive",
        id="misspelt-key-of-a-policy",
    ),
]

WRONG_TYPES = [
    pytest.param({"gateway.port": "eight thousand"}, f"gateway.port: {WHOLE_NUMBER}", id="port-in-words"),
    pytest.param({"realtime.memory": "512MiB"}, f"realtime.memory: {WHOLE_NUMBER}", id="memory-with-a-unit"),
    pytest.param({"realtime.memory": 512.5}, f"realtime.memory: {WHOLE_NUMBER}", id="memory-with-a-fraction"),
    pytest.param({"jwt.lifetime_days": "10y"}, f"jwt.lifetime_days: {WHOLE_NUMBER}", id="lifetime-with-a-unit"),
    pytest.param({"gateway.workers": ""}, f"gateway.workers: {WHOLE_NUMBER}", id="number-left-empty"),
    pytest.param({"postgres.protect": "perhaps"}, f"postgres.protect: {BOOLEAN}", id="protect-perhaps"),
    pytest.param({"gateway.anonymous": "anon"}, f"gateway.anonymous: {BOOLEAN}", id="anonymous-names-a-consumer"),
    pytest.param(
        {"gateway.cors_origins": "https://app.example.com"},
        "gateway.cors_origins: is not a list; write it as a YAML list, like [https://app.example.com]",
        id="one-origin-without-a-list",
    ),
    pytest.param({"tables": "public.wells"}, f"tables: {TABLE_LIST}", id="tables-are-not-json"),
    pytest.param({"tables": '[{"table": "public.wells"'}, f"tables: {TABLE_LIST}", id="tables-are-broken-json"),
    pytest.param({"tables": wells()}, f"tables: {TABLE_LIST}", id="tables-are-one-mapping"),
    pytest.param(
        tables("public.wells"),
        "tables[0]: is not a mapping; write it as {table: public.wells, read: [anon]}",
        id="table-is-only-a-name",
    ),
    pytest.param(tables(wells(read="anon")), f"tables[0].read: {ROLE_LIST}", id="read-is-one-role"),
    pytest.param(tables(wells(write="anon")), f"tables[0].write: {ROLE_LIST}", id="write-is-one-role"),
    pytest.param(
        tables(wells(events="insert")),
        "tables[0].events: is not a list; write it as a YAML list, like [insert, update]",
        id="events-are-one-event",
    ),
    pytest.param(
        tables({"table": "public.wells", "policies": policy()}),
        "tables[0].policies: is not a list; write it as a YAML list, "
        "like [{name: read_all, command: select, roles: [anon], using: 'true'}]",
        id="policies-are-one-mapping",
    ),
    pytest.param(
        with_policies("read_all"),
        "tables[0].policies[0]: is not a mapping; "
        "write it as {name: read_all, command: select, roles: [anon], using: 'true'}",
        id="policy-is-only-a-name",
    ),
    pytest.param(tables(wells(publish="often")), f"tables[0].publish: {BOOLEAN}", id="publish-often"),
    pytest.param(
        with_policies(policy(using=True)),
        "tables[0].policies[0].using: is not text; put it in quotes",
        id="expression-without-quotes",
    ),
    pytest.param({"migrations": "  "}, f"migrations: {EMPTY}", id="migrations-of-blanks"),
]

SECRETS_MISSING_OR_WEAK = [
    pytest.param(
        {"jwt.secret": UNSET},
        "jwt.secret: is missing; `make secrets` generates it, or `pulumi config set --secret jwt.secret <value>` "
        "(Secret that signs the anon and service_role keys, HS256.)",
        id="jwt-secret-missing",
    ),
    pytest.param(
        {"postgres.password": UNSET},
        "postgres.password: is missing; `make secrets` generates it, "
        "or `pulumi config set --secret postgres.password <value>` (Password of postgres.user.)",
        id="password-missing",
    ),
    pytest.param(
        {"realtime.db_enc_key": "fifteen-bytes-k"},
        "realtime.db_enc_key: is 15 bytes long, must be exactly 16 (AES-128); `make secrets` generates one",
        id="encryption-key-of-15-bytes",
    ),
    pytest.param(
        {"realtime.db_enc_key": "seventeen-bytes-k"},
        "realtime.db_enc_key: is 17 bytes long, must be exactly 16 (AES-128); `make secrets` generates one",
        id="encryption-key-of-17-bytes",
    ),
    pytest.param(
        {"realtime.db_enc_key": "schlüssel-16-zei"},
        "realtime.db_enc_key: is 17 bytes long, must be exactly 16 (AES-128); `make secrets` generates one",
        id="encryption-key-of-16-characters-in-17-bytes",
    ),
    pytest.param(
        {"jwt.secret": "only-thirty-one-bytes-of-secret"},
        "jwt.secret: is 31 bytes long, needs at least 32; `make secrets` generates one",
        id="jwt-secret-of-31-bytes",
    ),
    pytest.param(
        {"realtime.api_jwt_secret": "only-thirty-one-bytes-of-secret"},
        "realtime.api_jwt_secret: is 31 bytes long, needs at least 32; `make secrets` generates one",
        id="management-secret-of-31-bytes",
    ),
    pytest.param(
        {"realtime.metrics_jwt_secret": "metrics"},
        "realtime.metrics_jwt_secret: is 7 bytes long, needs at least 32; `make secrets` generates one",
        id="metrics-secret-of-7-bytes",
    ),
    pytest.param(
        {"realtime.secret_key_base": "k" * 63},
        "realtime.secret_key_base: is 63 bytes long, needs at least 64; `make secrets` generates one",
        id="secret-key-base-of-63-bytes",
    ),
    pytest.param(
        {"postgres.password": "hunter2"},
        "postgres.password: is 7 bytes long, needs at least 8; `make secrets` generates one",
        id="password-of-7-bytes",
    ),
    pytest.param(
        {"realtime.api_jwt_secret": SECRETS["jwt.secret"]},
        "realtime.api_jwt_secret: equals jwt.secret, so that the public anon key would open the management API; "
        "`make secrets` generates another",
        id="management-secret-equals-jwt-secret",
    ),
    pytest.param(
        {"realtime.metrics_jwt_secret": SECRETS["jwt.secret"]},
        "realtime.metrics_jwt_secret: equals jwt.secret; `make secrets` generates another",
        id="metrics-secret-equals-jwt-secret",
    ),
    pytest.param(
        {"realtime.metrics_jwt_secret": SECRETS["realtime.api_jwt_secret"]},
        "realtime.metrics_jwt_secret: equals realtime.api_jwt_secret; `make secrets` generates another",
        id="metrics-secret-equals-management-secret",
    ),
    pytest.param(
        {"postgres.password": SECRETS["jwt.secret"]},
        "postgres.password: equals jwt.secret; `make secrets` generates another",
        id="password-equals-jwt-secret",
    ),
    *(
        pytest.param({key: secret}, f"{key}: {DEVELOPMENT_SECRET}", id=f"development-{key}-on-prod")
        for key, secret in DEVELOPMENT_SECRETS.items()
    ),
    *(
        pytest.param({key: secret}, f"{key}: {DEVELOPMENT_SECRET}", id=f"{name}-on-prod")
        for name, (key, secret) in UPSTREAM_SECRETS.items()
    ),
]

KEY_LIFETIME = [
    pytest.param(
        {"jwt.issued_at": 1_577_836_800, "jwt.lifetime_days": 365},
        "jwt.lifetime_days: ended the keys on 2020-12-31, which is past; raise jwt.issued_at or jwt.lifetime_days",
        id="keys-expired-years-ago",
    ),
    pytest.param(
        {"jwt.issued_at": 1_782_777_600, "jwt.lifetime_days": 1},
        "jwt.lifetime_days: ended the keys on 2026-07-01, which is past; raise jwt.issued_at or jwt.lifetime_days",
        id="keys-expire-at-this-very-moment",
    ),
    pytest.param(
        {"jwt.issued_at": 1_893_456_000},
        "jwt.issued_at: is in the future; use a moment that has passed",
        id="issued-in-the-future",
    ),
    pytest.param(
        {"jwt.issued_at": 1_767_225_600_000},
        "jwt.issued_at: is thousands of years ahead; write seconds since 1970, not milliseconds",
        id="issued-at-in-milliseconds",
    ),
    pytest.param(
        {"jwt.issued_at": -1},
        "jwt.issued_at: is below 0, the lowest value allowed; raise it",
        id="issued-before-1970",
    ),
    pytest.param(
        {"jwt.lifetime_days": 0},
        "jwt.lifetime_days: is below 1, the lowest value allowed; raise it",
        id="lifetime-of-no-days",
    ),
    pytest.param(
        {"jwt.lifetime_days": 36_501},
        "jwt.lifetime_days: is above 36500, the highest value allowed; lower it",
        id="lifetime-of-a-century",
    ),
]

OTHER_CURVE = ec.generate_private_key(ec.SECP384R1())
SHORT_RSA = rsa.generate_private_key(public_exponent=65_537, key_size=1024)
ANOTHER_KEY = "`pulumi config rm jwt.private_key`, then `make secrets` generates one"

SIGNING = [
    *(
        pytest.param(
            {"jwt.algorithm": algorithm},
            f"jwt.private_key: is missing, and {algorithm} signs with it; `make secrets` generates it",
            id=f"{algorithm}-without-a-key",
        )
        for algorithm in ("ES256", "RS256")
    ),
    pytest.param(
        {"jwt.private_key": generate_private_key("ES256")},
        "jwt.private_key: is set, and jwt.algorithm is HS256, which does not use it; "
        "`pulumi config rm jwt.private_key`",
        id="a-private-key-that-nothing-uses",
    ),
    pytest.param(
        {"jwt.algorithm": "HS512"},
        "jwt.algorithm: is not one of 'HS256', 'ES256' or 'RS256'; use one of these",
        id="algorithm-unknown",
    ),
    pytest.param(
        {"jwt.algorithm": "ES256", "jwt.private_key": "no key at all"},
        f"jwt.private_key: is not a private key in PEM without a passphrase; {ANOTHER_KEY}",
        id="not-a-key",
    ),
    pytest.param(
        {"jwt.algorithm": "ES256", "jwt.private_key": generate_private_key("RS256")},
        f"jwt.private_key: is not a key of curve P-256, which ES256 signs with; {ANOTHER_KEY}",
        id="an-RSA-key-for-ES256",
    ),
    pytest.param(
        {"jwt.algorithm": "ES256", "jwt.private_key": pem(OTHER_CURVE)},
        f"jwt.private_key: is not a key of curve P-256, which ES256 signs with; {ANOTHER_KEY}",
        id="another-curve",
    ),
    pytest.param(
        {"jwt.algorithm": "RS256", "jwt.private_key": pem(SHORT_RSA)},
        f"jwt.private_key: is not an RSA key of 2048 bits or more, which RS256 signs with; {ANOTHER_KEY}",
        id="a-short-RSA-key",
    ),
]

NUMBERS_OUT_OF_RANGE = [
    *(
        pytest.param({key: 0}, f"{key}: is below 1, the lowest value allowed; raise it", id=f"{key}-0")
        for key in ("postgres.host_port", "realtime.host_port", "gateway.port")
    ),
    *(
        pytest.param({key: 65536}, f"{key}: is above 65535, the highest value allowed; lower it", id=f"{key}-65536")
        for key in ("postgres.host_port", "realtime.host_port", "gateway.port")
    ),
    *(
        pytest.param({key: 0}, f"{key}: is below 1, the lowest value allowed; raise it", id=f"{key}-0")
        for key in (
            "realtime.max_concurrent_users",
            "realtime.max_events_per_second",
            "realtime.max_bytes_per_second",
            "realtime.max_channels_per_client",
            "realtime.max_joins_per_second",
            "realtime.poll_interval_ms",
            "realtime.poll_max_changes",
            "gateway.workers",
        )
    ),
    pytest.param(
        {"realtime.poll_interval_ms": -25},
        "realtime.poll_interval_ms: is below 1, the lowest value allowed; raise it",
        id="negative-poll-interval",
    ),
    pytest.param(
        {"realtime.poll_interval_ms": 60_001},
        "realtime.poll_interval_ms: is above 60000, the highest value allowed; lower it",
        id="poll-interval-over-a-minute",
    ),
    pytest.param(
        {"realtime.max_bytes_per_second": 2**31},
        "realtime.max_bytes_per_second: is above 2147483647, the highest value allowed; lower it",
        id="limit-that-no-postgres-integer-holds",
    ),
    pytest.param(
        {"realtime.rlimit_nofile": 1023},
        "realtime.rlimit_nofile: is below 1024, the lowest value allowed; raise it",
        id="too-few-open-files",
    ),
    pytest.param(
        {"realtime.rlimit_nofile": 1_048_577},
        "realtime.rlimit_nofile: is above 1048576, the highest value allowed; lower it",
        id="more-open-files-than-a-kernel-allows",
    ),
    pytest.param(
        {"gateway.workers": 65},
        "gateway.workers: is above 64, the highest value allowed; lower it",
        id="workers-65",
    ),
    pytest.param(
        {"postgres.memory": 127},
        "postgres.memory: is below 128, the lowest value allowed; raise it",
        id="postgres-memory-too-small",
    ),
    pytest.param(
        {"realtime.memory": 255},
        "realtime.memory: is below 256, the lowest value allowed; raise it",
        id="realtime-memory-too-small",
    ),
    pytest.param(
        {"gateway.memory": 64},
        "gateway.memory: is below 128, the lowest value allowed; raise it",
        id="gateway-memory-too-small",
    ),
    pytest.param(
        {"realtime.host_port": 54322},
        "realtime.host_port: is 54322, which postgres.host_port uses already; give each its own port",
        id="realtime-on-the-port-of-postgres",
    ),
    pytest.param(
        {"gateway.port": 54322},
        "gateway.port: is 54322, which postgres.host_port uses already; give each its own port",
        id="gateway-on-the-port-of-postgres",
    ),
    pytest.param(
        {"gateway.port": 4001},
        "gateway.port: is 4001, which realtime.host_port uses already; give each its own port",
        id="gateway-on-the-port-of-realtime",
    ),
    pytest.param(
        {"gateway.status_port": 8000},
        "gateway.status_port: is 8000, which gateway.port uses already; give each its own port",
        id="status-on-the-port-of-the-gateway",
    ),
]

NAMES = [
    *(
        pytest.param(
            {"realtime.tenant": tenant}, f"realtime.tenant: {tenant!r} {TENANT_CURE}", id=f"tenant-{description}"
        )
        for description, tenant in {
            "in-upper-case": "Wells",
            "with-an-underscore": "my_wells",
            "with-a-dot": "wells.example",
            "with-a-leading-hyphen": "-wells",
            "with-a-trailing-hyphen": "wells-",
            "of-64-characters": "w" * 64,
            "with-a-port": "wells:4000",
            "left-empty": "",
            "with-a-line-break": "wells\n",
        }.items()
    ),
    pytest.param(
        {"realtime.tenant": "127"},
        "realtime.tenant: '127' is all digits, which as a host name is an IPv4 address; add a letter",
        id="tenant-of-digits",
    ),
    *(
        pytest.param(
            {"realtime.tenant": tenant},
            f"realtime.tenant: {tenant!r} is in every container's /etc/hosts, so that the gateway would not find "
            "Realtime by it; take another name",
            id=f"tenant-{tenant}",
        )
        for tenant in ("localhost", "ip6-loopback")
    ),
    pytest.param(
        {"realtime.tenant": "realtime-dev"},
        "realtime.tenant: 'realtime-dev' is the tenant that Realtime's own seed deletes and remakes; take another",
        id="tenant-of-realtimes-own-seed",
    ),
    pytest.param(
        {"postgres.database": "wells-db"},
        f"postgres.database: 'wells-db' {IDENTIFIER_CURE}",
        id="database-with-a-hyphen",
    ),
    pytest.param({"postgres.user": "Admin"}, f"postgres.user: 'Admin' {IDENTIFIER_CURE}", id="user-in-upper-case"),
]

IMAGES = [
    pytest.param(
        {"realtime.image": "supabase/realtime"},
        "realtime.image: 'supabase/realtime' has no tag; "
        "pin one, like supabase/realtime:v1.2.3, so that every run is the same",
        id="image-without-tag",
    ),
    pytest.param(
        {"gateway.image": "registry.example.com:5000/kong"},
        "gateway.image: 'registry.example.com:5000/kong' has no tag; "
        "pin one, like registry.example.com:5000/kong:v1.2.3, so that every run is the same",
        id="image-without-tag-on-a-registry-with-port",
    ),
    *(
        pytest.param({"gateway.image": image}, f"gateway.image: {image!r} {IMAGE_CURE}", id=f"image-{description}")
        for description, image in {
            "with-an-empty-tag": "kong:",
            "with-two-tags": "kong:2.8:1",
            "in-upper-case": "Kong:2.8.1",
            "with-a-blank": "kong: 2.8.1",
            "with-a-scheme": "https://hub.docker.com/kong:2.8.1",
            "with-an-empty-part": "library//kong:2.8.1",
            "with-a-short-digest": "kong@sha256:abc",
            "with-digits-that-are-not-ascii": "kong:２.8.1",
            "left-empty": "",
        }.items()
    ),
]

GATEWAY = [
    *(
        pytest.param({"gateway.host": host}, f"gateway.host: {host!r} {ADDRESS_CURE}", id=f"host-{description}")
        for description, host in {
            "is-a-name": "localhost",
            "with-three-parts": "127.0.1",
            "out-of-range": "127.0.0.256",
            "with-a-port": "127.0.0.1:8000",
            "left-empty": "",
            "of-digits-that-are-not-ascii": "127.0.0.²",
        }.items()
    ),
    *(
        pytest.param(
            {"gateway.cors_origins": ["*", origin]},
            f"gateway.cors_origins[1]: {origin!r} {ORIGIN_CURE}",
            id=f"origin-{description}",
        )
        for description, origin in {
            "with-a-path": "https://app.example.com/login",
            "without-scheme": "app.example.com",
            "with-a-trailing-slash": "https://app.example.com/",
            "with-another-scheme": "ws://app.example.com",
            "with-a-wildcard": "https://*.example.com",
            "with-a-port-out-of-range": "http://localhost:99999",
            "with-no-port-after-the-colon": "http://localhost:",
            "with-digits-that-are-not-ascii": "http://localhost:８０００",
            "in-upper-case": "https://App.example.com",
            "left-empty": "",
        }.items()
    ),
    pytest.param(
        {"gateway.cors_origins": []},
        "gateway.cors_origins: is empty, so no browser could connect; name the origins, or * for all",
        id="no-origins",
    ),
]

TABLES = [
    pytest.param(tables({"read": ["anon"]}), "tables[0].table: is missing; add it", id="table-without-name"),
    pytest.param(
        tables(wells(table="wells")),
        "tables[0].table: 'wells' has no schema; write it like public.wells",
        id="table-without-schema",
    ),
    pytest.param(
        tables(wells(table='"public"."wells"')),
        f"tables[0].table: '\"public\"' {IDENTIFIER_CURE}",
        id="table-in-quotes",
    ),
    pytest.param(tables(wells(table="public.Wells")), f"tables[0].table: 'Wells' {IDENTIFIER_CURE}", id="upper-case"),
    pytest.param(
        tables(wells(table="app.public.wells")),
        f"tables[0].table: 'public.wells' {IDENTIFIER_CURE}",
        id="table-with-database",
    ),
    pytest.param(tables(wells(table="public.")), f"tables[0].table: '' {IDENTIFIER_CURE}", id="schema-without-table"),
    pytest.param(
        tables(wells(table="public.wells; drop table public.wells")),
        f"tables[0].table: 'wells; drop table public.wells' {IDENTIFIER_CURE}",
        id="sql-in-a-name",
    ),
    *(
        pytest.param(tables(wells(table=table)), f"tables[0].table: {table!r} {RESERVED}", id=f"reserved-{table}")
        for table in (
            "_realtime.tenants",
            "realtime.messages",
            "pg_catalog.pg_class",
            "information_schema.tables",
            "pg_toast.pg_toast_1",
        )
    ),
    pytest.param(
        tables(wells(), {"table": "public.rigs", "read": ["anon"]}, wells(read=["authenticated"])),
        "tables[2].table: 'public.wells' is declared already as tables[0]; keep one",
        id="table-declared-twice",
    ),
    pytest.param(
        tables({"table": "public.wells"}),
        f"tables[0]: {UNREADABLE}",
        id="published-and-nobody-named",
    ),
    pytest.param(
        tables({"table": "public.wells", "write": ["anon"]}),
        f"tables[0]: {UNREADABLE}",
        id="published-and-only-written",
    ),
    pytest.param(
        with_policies(policy(roles=["service_role"])),
        f"tables[0]: {UNREADABLE}",
        id="published-and-readable-by-service-role-alone",
    ),
    pytest.param(
        with_policies(policy(permissive=False)),
        f"tables[0]: {UNREADABLE}",
        id="published-and-only-restricted",
    ),
    pytest.param(
        with_policies(policy(command="insert", using=UNSET, check="true")),
        f"tables[0]: {UNREADABLE}",
        id="published-with-an-insert-policy-alone",
    ),
    pytest.param(tables(wells(read=["postgres"])), f"tables[0].read[0]: {ROLES}", id="read-by-an-unknown-role"),
    pytest.param(tables(wells(write=["anon", "admin"])), f"tables[0].write[1]: {ROLES}", id="write-by-unknown-role"),
    *(
        pytest.param(
            tables(wells(**{field: ["anon", "service_role"]})),
            f"tables[0].{field}: names service_role, which bypasses row level security and needs no policy; "
            "leave it out",
            id=f"service-role-in-{field}",
        )
        for field in ("read", "write")
    ),
    pytest.param(
        tables(wells(read=["anon", "anon"])),
        "tables[0].read: names a role twice; name each once",
        id="role-named-twice",
    ),
    pytest.param(
        tables(wells(events=["truncate"])),
        "tables[0].events[0]: is not one of 'insert', 'update' or 'delete'; use one of these",
        id="unknown-event",
    ),
    pytest.param(tables(wells(events=[])), "tables[0].events: is empty; name at least one", id="no-events"),
    pytest.param(
        tables(wells(events=["insert", "insert"])),
        "tables[0]: lists an event twice in `events`; name each once",
        id="event-named-twice",
    ),
    pytest.param(
        tables(wells(events=["insert"]), {"table": "public.rigs", "read": ["anon"]}),
        "tables[1].events: differs from another table's, and Postgres keeps one list of events for a whole "
        "publication; make them the same on every published table",
        id="different-events-in-two-tables",
    ),
    pytest.param(
        tables(wells(replica_identity="index")),
        "tables[0].replica_identity: is not one of 'default', 'full' or 'nothing'; use one of these",
        id="unknown-replica-identity",
    ),
    pytest.param(
        tables(wells(table=f"public.{'w' * 57}")),
        "tables[0]: has a name too long for the short form, which adds _select to it: Postgres keeps 63 bytes; "
        "write `policies` with names of your own",
        id="name-too-long-for-the-short-form",
    ),
]

POLICIES = [
    pytest.param(
        tables(wells(policies=[policy()])),
        "tables[0]: has `policies` beside `read` or `write`; say it in one of the two forms",
        id="policies-beside-read",
    ),
    pytest.param(
        tables({"table": "public.wells", "write": ["anon"], "policies": [policy()]}),
        "tables[0]: has `policies` beside `read` or `write`; say it in one of the two forms",
        id="policies-beside-write",
    ),
    pytest.param(
        with_policies(policy(), policy(command="delete")),
        "tables[0]: has two policies named read; Postgres wants distinct names on a table",
        id="two-policies-of-one-name",
    ),
    pytest.param(
        with_policies(policy(roles=["postgres"])),
        f"tables[0].policies[0].roles[0]: {ROLES}",
        id="policy-of-an-unknown-role",
    ),
    pytest.param(
        with_policies(policy(roles=[])),
        "tables[0].policies[0].roles: is empty; name at least one",
        id="policy-of-no-role",
    ),
    pytest.param(
        with_policies(policy(roles=["anon", "anon"])),
        "tables[0].policies[0].roles: names a role twice; name each once",
        id="policy-of-one-role-twice",
    ),
    pytest.param(
        with_policies(policy(roles=UNSET)),
        "tables[0].policies[0].roles: is missing; add it",
        id="policy-without-roles",
    ),
    pytest.param(
        with_policies(policy(command="truncate")),
        "tables[0].policies[0].command: is not one of 'all', 'select', 'insert', 'update' or 'delete'; "
        "use one of these",
        id="policy-for-an-unknown-command",
    ),
    pytest.param(
        with_policies(policy(), policy(name="write", command="insert")),
        "tables[0].policies[1]: has `using` on INSERT, which Postgres refuses; write it as `check`",
        id="using-on-insert",
    ),
    *(
        pytest.param(
            with_policies(policy(), policy(name="other", command=command, check="true")),
            f"tables[0].policies[1]: has `check` on {command.upper()}, which Postgres refuses; write it as `using`",
            id=f"check-on-{command}",
        )
        for command in ("select", "delete")
    ),
    pytest.param(
        with_policies(policy(), policy(name="write", command="insert", using=UNSET)),
        "tables[0].policies[1]: has no `check`, so every row may be inserted; write check: 'true' if that is meant",
        id="insert-without-check",
    ),
    *(
        pytest.param(
            with_policies(policy(), policy(name="other", command=command, using=UNSET)),
            "tables[0].policies[1]: has no `using`, so every row is in reach; write using: 'true' if that is meant",
            id=f"{command}-without-using",
        )
        for command in ("all", "select", "update", "delete")
    ),
    pytest.param(
        with_policies(policy(using="  ")), f"tables[0].policies[0].using: {EMPTY}", id="empty-expression-in-using"
    ),
    pytest.param(
        with_policies(policy(), policy(name="write", command="insert", using=UNSET, check="")),
        f"tables[0].policies[1].check: {EMPTY}",
        id="empty-expression-in-check",
    ),
    pytest.param(
        with_policies(policy(name="")), "tables[0].policies[0].name: is empty; name the policy", id="policy-unnamed"
    ),
    pytest.param(
        with_policies(policy(name="é" * 32)),
        "tables[0].policies[0].name: is 64 bytes long, and Postgres keeps 63 of a name; shorten it",
        id="policy-name-of-32-characters-in-64-bytes",
    ),
]

BAD_CONFIGURATIONS = [
    *UNKNOWN_KEYS,
    *WRONG_TYPES,
    *SECRETS_MISSING_OR_WEAK,
    *KEY_LIFETIME,
    *SIGNING,
    *NUMBERS_OUT_OF_RANGE,
    *NAMES,
    *IMAGES,
    *GATEWAY,
    *TABLES,
    *POLICIES,
]


@pytest.mark.parametrize(("changes", "fault"), BAD_CONFIGURATIONS)
def test_a_bad_setting_is_refused_with_its_key_fault_and_cure(changes: dict[str, object], fault: str) -> None:
    assert faults_of(changes) == [f"{NAMESPACE}:{fault}"]


def test_every_fault_is_reported_at_once() -> None:
    assert faults_of(
        {
            "gateway.prot": "8000",
            "gateway.port": "70000",
            "jwt.secret": UNSET,
            "postgres.password": "hunter2",
            **tables(wells(table="wells"), "rigs"),
        }
    ) == [
        f"{NAMESPACE}:gateway.prot: is not a setting; gateway has: image, host, port, anonymous, cors_origins, "
        "status_port, workers, memory, or remove it with `pulumi config rm gateway.prot`",
        f"{NAMESPACE}:postgres.password: is 7 bytes long, needs at least 8; `make secrets` generates one",
        f"{NAMESPACE}:gateway.port: is above 65535, the highest value allowed; lower it",
        f"{NAMESPACE}:jwt.secret: is missing; `make secrets` generates it, or `pulumi config set --secret jwt.secret "
        "<value>` (Secret that signs the anon and service_role keys, HS256.)",
        f"{NAMESPACE}:tables[0].table: 'wells' has no schema; write it like public.wells",
        f"{NAMESPACE}:tables[1]: is not a mapping; write it as {{table: public.wells, read: [anon]}}",
    ]


def test_every_fault_between_keys_is_reported_at_once() -> None:
    one_secret = "one-secret-for-everything-of-this-stack"
    keys = [
        fault.removeprefix(f"{NAMESPACE}:").partition(": ")[0]
        for fault in faults_of(
            {
                "jwt.secret": one_secret,
                "realtime.api_jwt_secret": one_secret,
                "realtime.metrics_jwt_secret": one_secret,
                "postgres.password": "your-super-secret-and-long-postgres-password",
                "postgres.host_port": 4001,
                "gateway.port": 4001,
                "jwt.issued_at": 1_893_456_000,
                **tables(wells(), wells(events=["insert"])),
            }
        )
    ]
    assert keys == [
        "postgres.password",
        "realtime.api_jwt_secret",
        "realtime.metrics_jwt_secret",
        "realtime.host_port",
        "gateway.port",
        "jwt.issued_at",
        "tables[1].table",
        "tables[1].events",
    ]


def test_the_error_counts_its_faults_and_gives_each_a_line() -> None:
    error = SettingsError(["first", "second"])
    assert str(error) == "2 fault(s) in the stack's config:\n  first\n  second"


@pytest.mark.parametrize(
    ("variable", "key"),
    [
        ("POSTGRES_IMAGE", "postgres.image"),
        ("REALTIME_IMAGE", "realtime.image"),
        ("KONG_IMAGE", "gateway.image"),
    ],
)
def test_a_bad_image_from_the_environment_is_blamed_on_the_variable(variable: str, key: str) -> None:
    assert faults_of({}, environ={variable: "mirror.example.com/image"}) == [
        f"{variable} (environment, instead of {NAMESPACE}:{key}): 'mirror.example.com/image' has no tag; "
        "pin one, like mirror.example.com/image:v1.2.3, so that every run is the same"
    ]


@pytest.mark.parametrize("key", SECRETS)
@pytest.mark.parametrize("value", [12345678901234567, ["a-secret-in-a-list"], {"value": "a-secret-in-a-mapping"}])
def test_a_secret_of_the_wrong_type_is_refused_unseen(key: str, value: object) -> None:
    with pytest.raises(SettingsError) as refusal:
        load({**config_of({}), f"{NAMESPACE}:{key}": value}, stack="prod", environ={}, now=lambda: NOW)
    assert refusal.value.faults == [f"{NAMESPACE}:{key}: is not text; put it in quotes"]
    assert "a-secret" not in "".join(traceback.format_exception(refusal.value))
    assert "12345678901234567" not in "".join(traceback.format_exception(refusal.value))


def test_settings_never_show_a_secret_when_printed() -> None:
    settings = loaded({})
    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert not [key for key, secret in SECRETS.items() if secret in text]


def test_the_development_stack_runs_on_the_well_known_secrets_alone() -> None:
    settings = loaded(DEVELOPMENT_SECRETS, stack="dev")
    assert settings.name == "supabase-realtime-dev"
    assert settings.postgres.password.get_secret_value() == "postgres-development-password"


def test_every_well_known_secret_has_a_case_above() -> None:
    tested = {*DEVELOPMENT_SECRETS.values(), *(secret for _, secret in UPSTREAM_SECRETS.values())}
    assert tested == WELL_KNOWN_SECRETS


def test_secrets_alone_are_a_whole_config_and_the_rest_has_defaults() -> None:
    settings = loaded({})
    assert settings.name == "supabase-realtime-prod"
    assert settings.postgres.image.startswith("supabase/postgres:15.")
    assert settings.realtime.image == "supabase/realtime:v2.32.12"
    assert settings.gateway.image == "kong:2.8.1"
    assert settings.realtime.tenant == "supabase-realtime"
    assert settings.realtime.poll_interval_ms == 25
    assert settings.realtime.rlimit_nofile == 10_000
    assert (settings.postgres.host_port, settings.realtime.host_port, settings.gateway.port) == (54322, 4001, 8000)
    assert settings.gateway.host == "127.0.0.1"
    assert settings.gateway.anonymous is False
    assert settings.gateway.cors_origins == ("*",)
    assert settings.postgres.protect is False
    assert settings.tables == ()
    assert settings.migrations is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("realtime.db_enc_key", "é" * 8),
        ("realtime.secret_key_base", "k" * 64),
        ("jwt.secret", "j" * 32),
        ("jwt.secret", "é" * 16),
        ("postgres.password", "8 bytes."),
        ("realtime.tenant", "w"),
        ("realtime.tenant", "w" * 63),
        ("realtime.tenant", "1-well"),
        ("gateway.port", 1),
        ("gateway.port", 65535),
        ("gateway.host", "0.0.0.0"),
        ("realtime.memory", 256),
        ("jwt.issued_at", 0),
        ("jwt.lifetime_days", 36_500),
        ("gateway.image", "kong@sha256:" + "0" * 64),
        ("gateway.image", "registry.example.com:5000/mirror/kong_2:2.8.1-alpine@sha256:" + "0" * 64),
        ("gateway.image", "localhost/kong:latest"),
        ("postgres.database", "_wells_2"),
        ("migrations", "sql/migrations"),
    ],
)
def test_the_last_allowed_value_is_accepted(key: str, value: object) -> None:
    section, _, field = key.partition(".")
    settings = loaded({"jwt.lifetime_days": 36_500, key: value})
    accepted = getattr(getattr(settings, section), field) if field else getattr(settings, key)
    assert (accepted.get_secret_value() if key in SECRETS else accepted) == value


@pytest.mark.parametrize(
    "origin", ["*", "http://localhost:5173", "https://app.example.com", "http://127.0.0.1:65535", "https://a"]
)
def test_an_origin_as_a_browser_sends_it_is_accepted(origin: str) -> None:
    assert loaded({"gateway.cors_origins": [origin]}).gateway.cors_origins == (origin,)


def test_an_empty_migrations_folder_means_none() -> None:
    assert loaded({"migrations": ""}).migrations is None


def test_json_text_and_native_values_are_the_same_config() -> None:
    native = {
        "gateway.port": 8010,
        "gateway.anonymous": True,
        "gateway.cors_origins": ["https://app.example.com"],
        **tables(wells(write=["authenticated"], replica_identity="full")),
    }
    as_given = {f"{NAMESPACE}:{key}": value for key, value in {**SECRETS, **native}.items()}
    settings = load(as_given, stack="prod", environ={}, now=lambda: NOW)
    assert settings == loaded(native)
    assert settings.gateway.port == 8010
    assert settings.tables[0].replica_identity is ReplicaIdentity.FULL


def test_keys_of_other_namespaces_are_nobodys_fault() -> None:
    config = config_of({}) | {"aws:region": "eu-central-1", "postgres:password": "x", "pulumi:tags": "{}"}
    assert load(config, stack="prod", environ={}, now=lambda: NOW) == loaded({})


def test_environment_variables_replace_the_images_for_one_run() -> None:
    environ = {
        "POSTGRES_IMAGE": "mirror.example.com/postgres:15",
        "REALTIME_IMAGE": "realtime:local",
        "KONG_IMAGE": "kong:3.9.1",
        "HOME": "/root",
    }
    settings = loaded({"gateway.image": "kong:2.8.1"}, environ=environ)
    assert settings.postgres.image == "mirror.example.com/postgres:15"
    assert settings.realtime.image == "realtime:local"
    assert settings.gateway.image == "kong:3.9.1"


def test_an_empty_environment_variable_replaces_nothing() -> None:
    assert loaded({"gateway.image": "kong:3.9.1"}, environ={"KONG_IMAGE": ""}).gateway.image == "kong:3.9.1"


def test_settings_cannot_be_changed_once_loaded() -> None:
    settings = loaded(tables(wells()))
    for model, field in (
        (settings, "stack"),
        (settings.postgres, "image"),
        (settings.realtime, "tenant"),
        (settings.gateway, "port"),
        (settings.jwt, "secret"),
        (settings.tables[0], "publish"),
        (settings.tables[0].row_policies[0], "using"),
    ):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(model, field, getattr(model, field))


def test_the_short_form_is_four_policies_and_the_privileges_they_need() -> None:
    (table,) = loaded(tables(wells(read=["anon", "authenticated"], write=["authenticated"]))).tables
    assert (table.schema_name, table.name) == ("public", "wells")
    readers, writers = (ApiRole.ANON, ApiRole.AUTHENTICATED), (ApiRole.AUTHENTICATED,)
    assert table.row_policies == (
        Policy(name="wells_select", command=Command.SELECT, roles=readers, using="true"),
        Policy(name="wells_insert", command=Command.INSERT, roles=writers, check="true"),
        Policy(name="wells_update", command=Command.UPDATE, roles=writers, using="true", check="true"),
        Policy(name="wells_delete", command=Command.DELETE, roles=writers, using="true"),
    )
    assert table.privileges == {
        ApiRole.ANON: ("SELECT",),
        ApiRole.AUTHENTICATED: ("SELECT", "INSERT", "UPDATE", "DELETE"),
        ApiRole.SERVICE_ROLE: ("SELECT", "INSERT", "UPDATE", "DELETE"),
    }
    assert table.readers == (ApiRole.ANON, ApiRole.AUTHENTICATED)
    assert table.events == (Event.INSERT, Event.UPDATE, Event.DELETE)
    assert table.publish
    assert table.exclusive
    assert not table.force


def test_a_table_that_is_only_read_lets_nobody_write() -> None:
    (table,) = loaded(tables(wells(read=["authenticated"]))).tables
    assert [p.name for p in table.row_policies] == ["wells_select"]
    assert table.privileges[ApiRole.ANON] == ()
    assert table.privileges[ApiRole.AUTHENTICATED] == ("SELECT",)


def test_written_policies_are_taken_as_they_are() -> None:
    own = policy(name="own rows", command="all", roles=["authenticated"], using="owner = auth.uid()")
    office_hours = policy(name="office hours", command="update", permissive=False)
    (table,) = loaded(with_policies(own, office_hours)).tables
    assert [(p.name, p.command, p.using, p.check, p.permissive) for p in table.row_policies] == [
        ("own rows", Command.ALL, "owner = auth.uid()", None, True),
        ("office hours", Command.UPDATE, "true", None, False),
    ]
    assert table.privileges[ApiRole.AUTHENTICATED] == ("SELECT", "INSERT", "UPDATE", "DELETE")
    assert table.privileges[ApiRole.ANON] == (), "a restrictive policy alone lets nobody do anything"


def test_a_name_of_56_bytes_still_fits_the_short_form() -> None:
    (table,) = loaded(tables(wells(table=f"public.{'w' * 56}"))).tables
    assert [len(p.name) for p in table.row_policies] == [63]


def test_a_table_may_be_declared_and_not_published() -> None:
    settings = loaded(tables(wells(), {"table": "public.audit", "publish": False, "events": ["insert"]}))
    assert [table.publish for table in settings.tables] == [True, False]
    assert settings.tables[1].row_policies == ()


def test_the_order_of_events_is_not_a_difference() -> None:
    rigs = {"table": "public.rigs", "read": ["anon"], "events": ["delete", "insert"]}
    assert len(loaded(tables(wells(events=["insert", "delete"]), rigs)).tables) == 2


@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
def test_a_generated_private_key_signs(algorithm: str) -> None:
    key = generate_private_key(algorithm)
    jwt = loaded({"jwt.algorithm": algorithm, "jwt.private_key": key}).jwt
    assert jwt.private_key is not None
    assert jwt.private_key.get_secret_value() == key


def test_keys_end_after_their_lifetime() -> None:
    jwt = loaded({"jwt.issued_at": 1_767_225_600, "jwt.lifetime_days": 365}).jwt
    assert jwt.expires_at == datetime(2027, 1, 1, tzinfo=UTC)


def test_the_clock_of_the_machine_is_used_when_none_is_given() -> None:
    with pytest.raises(SettingsError, match=r"jwt\.lifetime_days: ended the keys on 1970-01-02"):
        load(config_of({"jwt.issued_at": 0, "jwt.lifetime_days": 1}), stack="prod", environ={})


def test_a_section_alone_is_what_the_whole_config_holds_of_it() -> None:
    config = config_of({"postgres.host_port": 55432})
    assert load_section("postgres", PostgresSettings, config.get) == loaded({"postgres.host_port": 55432}).postgres


def test_a_section_alone_takes_whole_numbers_as_the_provider_protocol_sends_them() -> None:
    config: dict[str, Any] = config_of({}) | {f"{NAMESPACE}:realtime.host_port": 4001.0}
    assert load_section("realtime", RealtimeSettings, config.get).host_port == 4001


def test_a_section_alone_names_its_faults_by_the_whole_key_and_shows_no_secret() -> None:
    config = config_of({"jwt.secret": "too-short", "jwt.lifetime_days": "long"})
    with pytest.raises(SettingsError) as refusal:
        load_section("jwt", JwtSettings, config.get)
    assert refusal.value.faults == [
        f"{NAMESPACE}:jwt.secret: is 9 bytes long, needs at least 32; `make secrets` generates one",
        f"{NAMESPACE}:jwt.lifetime_days: {WHOLE_NUMBER}",
    ]
    assert "too-short" not in "".join(traceback.format_exception(refusal.value))


def test_a_section_alone_reports_what_is_missing() -> None:
    with pytest.raises(SettingsError, match=r"jwt\.secret: is missing; `make secrets` generates it"):
        load_section("jwt", JwtSettings, lambda key: None)


def test_the_secret_keys_are_exactly_those_that_have_no_default() -> None:
    without_default = {
        f"{section}.{field}"
        for section, model in SECTIONS.items()
        for field, info in model.model_fields.items()
        if info.is_required()
    }
    assert set(secret_keys()) == without_default == set(SECRETS)
