"""RealtimeTenant, as far as it goes without a Realtime: the rows that Realtime writes, read back for drift."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7
from psycopg.types.json import Jsonb
from pulumi.dynamic import Config, ConfigureRequest

import rehearsal.server
from providers import tenant
from providers.connection import DatabaseError, transaction
from providers.tenant import (
    RealtimeTenantProvider,
    TenantError,
    check_logical_decoding,
    decrypt,
    read_tenant,
    tenant_document,
)
from rehearsal.applier import connected_to
from rehearsal.server import embedded_postgres
from settings import NAMESPACE
from tests.database.conftest import Connection, until
from tests.database.engine import Engine, on_the_wire

KEY = "sixteen-bytes-ok"
PUBLIC_KEYS = {"keys": [{"kty": "EC", "crv": "P-256", "kid": "of-this-test", "x": "eA", "y": "eQ"}]}
LIMITS = {
    "max_concurrent_users": 200,
    "max_events_per_second": 100,
    "max_bytes_per_second": 100_000,
    "max_channels_per_client": 100,
    "max_joins_per_second": 100,
}
DATABASE = {
    "db_host": "supabase-realtime-dev-postgres",
    "db_port": "5432",
    "db_name": "postgres",
    "db_user": "supabase_admin",
    "db_password": "the-database-password-of-this-test",
}
REPLICATION = {
    "region": "us-east-1",
    "poll_interval_ms": 25,
    "poll_max_changes": 100,
    "poll_max_record_bytes": 1_048_576,
    "publication": "supabase_realtime",
    "slot_name": "supabase_realtime_replication_slot",
    "ssl_enforced": False,
}
DECLARED = {
    "external_id": "supabase-realtime",
    "jwt_secret": "the-client-key-secret-of-this-test-alone",
    "jwt_jwks": {},
    **LIMITS,
    **DATABASE,
    **REPLICATION,
    "changed_secrets": [],
    "server": "id-of-the-container",
}
STORED = {key: value for key, value in DECLARED.items() if key not in ("changed_secrets", "server")}
UNREADABLE = "(not encrypted with realtime.db_enc_key)"

TABLES = """
CREATE SCHEMA _realtime;
CREATE TABLE _realtime.tenants (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name text,
    external_id text UNIQUE,
    jwt_secret text,
    max_concurrent_users integer NOT NULL DEFAULT 200,
    max_events_per_second integer NOT NULL DEFAULT 100,
    postgres_cdc_default text DEFAULT 'postgres_cdc_rls',
    max_bytes_per_second integer NOT NULL DEFAULT 100000,
    max_channels_per_client integer NOT NULL DEFAULT 100,
    max_joins_per_second integer NOT NULL DEFAULT 500,
    suspend boolean DEFAULT false,
    jwt_jwks jsonb,
    notify_private_alpha boolean DEFAULT false,
    inserted_at timestamp(0) NOT NULL DEFAULT now(),
    updated_at timestamp(0) NOT NULL DEFAULT now()
);
CREATE TABLE _realtime.extensions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    type text,
    settings jsonb,
    tenant_external_id text REFERENCES _realtime.tenants (external_id) ON DELETE CASCADE,
    inserted_at timestamp(0) NOT NULL DEFAULT now(),
    updated_at timestamp(0) NOT NULL DEFAULT now(),
    UNIQUE (tenant_external_id, type)
);
"""
"""The tables as the migrations of v2.32.12 leave them (priv/repo/migrations)."""


def encrypted(value: str, key: str = KEY) -> str:
    """As Realtime stores it: AES-128-ECB, PKCS#7, base64."""
    padder = PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES128(key.encode()), modes.ECB()).encryptor()
    padded = padder.update(value.encode()) + padder.finalize()
    return base64.b64encode(encryptor.update(padded) + encryptor.finalize()).decode()


def stored_settings(key: str = KEY) -> dict[str, Any]:
    return {name: encrypted(value, key) for name, value in DATABASE.items()} | REPLICATION


@pytest.fixture
def realtime_tables(admin: Connection) -> None:
    admin.execute(TABLES.encode())


@pytest.fixture
def stored(realtime_tables: None, admin: Connection) -> None:
    """The declared tenant as Realtime's API would have stored it, beside another."""
    for external_id in ("realtime-dev", "supabase-realtime"):
        admin.execute(
            "INSERT INTO _realtime.tenants (name, external_id, jwt_secret, max_joins_per_second) "
            "VALUES (%(id)s, %(id)s, %(secret)s, 100)",
            {"id": external_id, "secret": encrypted(str(DECLARED["jwt_secret"]))},
        )
        admin.execute(
            "INSERT INTO _realtime.extensions (type, settings, tenant_external_id) VALUES ('postgres_cdc_rls', %s, %s)",
            [Jsonb(stored_settings()), external_id],
        )
    admin.execute(
        "INSERT INTO _realtime.extensions (type, settings, tenant_external_id) "
        """VALUES ('postgres_cdc_stream', '{"region": "elsewhere"}', 'supabase-realtime')"""
    )


def read(external_id: str = "supabase-realtime", key: str = KEY) -> dict[str, Any] | None:
    with transaction() as cursor:
        return read_tenant(cursor, external_id, key)


def test_a_value_is_decrypted_as_realtime_encrypted_it() -> None:
    """The vector was taken from a running v2.32.12."""
    assert decrypt("sWBpZNdjggEPTQVlI52Zfw==", "supabaserealtime") == "postgres"


@pytest.mark.parametrize("value", ["", "a", "exactly-16-bytes", "seventeen bytes..", "ä ö ü €", "x" * 300])
def test_a_value_of_any_length_is_decrypted(value: str) -> None:
    assert decrypt(encrypted(value), KEY) == value


@pytest.mark.parametrize("value", ["not base64", "c2hvcnQ=", "", encrypted("postgres", "another-16-bytes")])
def test_a_value_that_the_key_does_not_open_is_an_error(value: str) -> None:
    with pytest.raises(ValueError):
        decrypt(value, KEY)


@pytest.mark.usefixtures("stored")
def test_a_tenant_is_read_as_it_was_declared() -> None:
    assert read() == STORED


@pytest.mark.usefixtures("stored")
def test_a_tenant_that_is_not_there_is_none() -> None:
    assert read("nobody") is None


@pytest.mark.usefixtures("realtime_tables")
def test_no_tenant_is_none() -> None:
    assert read() is None


@pytest.mark.usefixtures("database")
def test_a_database_that_realtime_never_saw_has_no_tenant() -> None:
    assert read() is None


@pytest.mark.usefixtures("stored")
def test_another_encryption_key_makes_what_it_protects_unreadable_and_nothing_else() -> None:
    unreadable = dict.fromkeys(("jwt_secret", *DATABASE), UNREADABLE)
    assert read(key="another-16-bytes") == STORED | unreadable


@pytest.fixture
def stack_config(database: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The config of a stack on the test's Postgres, with a port on which no Realtime listens."""
    monkeypatch.setattr(tenant, "_config", None)
    where = psycopg.conninfo.conninfo_to_dict(database)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        unused_port = listener.getsockname()[1]
    config = {
        "postgres.host_port": where["port"],
        "postgres.database": where["dbname"],
        "postgres.user": where["user"],
        "postgres.password": where["password"],
        "realtime.host_port": unused_port,
        "realtime.db_enc_key": KEY,
        "realtime.secret_key_base": "a-secret-key-base-of-this-test-alone-that-is-sixty-four-bytes-ok",
        "realtime.api_jwt_secret": "the-management-secret-of-this-test-alone",
        "realtime.metrics_jwt_secret": "the-metrics-secret-of-this-test-alone",
    }
    return Config({f"{NAMESPACE}:{key}": str(value) for key, value in config.items()}, NAMESPACE)


@pytest.fixture
def engine(stored: None, stack_config: Config) -> Engine:
    """The tenant's resource in the state that a first update left, numbers as the engine keeps them."""
    made = Engine(RealtimeTenantProvider())
    made.provider.configure(ConfigureRequest(stack_config))
    made.id, made.inputs, made.outputs = "supabase-realtime", on_the_wire(DECLARED), on_the_wire(DECLARED)
    return made


def test_an_untouched_tenant_is_no_drift(engine: Engine) -> None:
    assert engine.drift(DECLARED) == {}
    engine.refresh()
    assert engine.up(DECLARED) == "same"


def of_extension(**settings: Any) -> str:
    return f"UPDATE _realtime.extensions SET settings = settings || '{json.dumps(settings)}'"


BY_HAND: dict[str, tuple[str, dict[str, Any]]] = {
    "limit": (
        "UPDATE _realtime.tenants SET max_concurrent_users = 5",
        {"max_concurrent_users": 5},
    ),
    "poll interval": (of_extension(poll_interval_ms=100), {"poll_interval_ms": 100}),
    "poll interval as text": (of_extension(poll_interval_ms="25"), {"poll_interval_ms": "25"}),
    "publication": (of_extension(publication="other"), {"publication": "other"}),
    "slot": (of_extension(slot_name="other"), {"slot_name": "other"}),
    "TLS": (of_extension(ssl_enforced=True), {"ssl_enforced": True}),
    "database host": (of_extension(db_host=encrypted("elsewhere")), {"db_host": "elsewhere"}),
    "database host in plain": (of_extension(db_host="elsewhere"), {"db_host": UNREADABLE}),
    "database port as a number": (of_extension(db_port=5432), {"db_port": UNREADABLE}),
    "database password": (of_extension(db_password=encrypted("other")), {"changed_secrets": ["db_password"]}),
    "client secret": (
        f"UPDATE _realtime.tenants SET jwt_secret = '{encrypted('other')}'",
        {"changed_secrets": ["jwt_secret"]},
    ),
    "client secret in plain": (
        "UPDATE _realtime.tenants SET jwt_secret = 'other'",
        {"changed_secrets": ["jwt_secret"]},
    ),
    "client secret gone": (
        "UPDATE _realtime.tenants SET jwt_secret = NULL",
        {"changed_secrets": ["jwt_secret"]},
    ),
    "public keys of somebody else": (
        f"""UPDATE _realtime.tenants SET jwt_jwks = '{json.dumps(PUBLIC_KEYS)}'""",
        {"jwt_jwks": PUBLIC_KEYS},
    ),
    "a setting gone": (
        "UPDATE _realtime.extensions SET settings = settings - 'poll_max_changes'",
        {"poll_max_changes": None},
    ),
    "extension gone": (
        "DELETE FROM _realtime.extensions WHERE type = 'postgres_cdc_rls'",
        {
            **dict.fromkeys(DATABASE.keys() - {"db_password"}),
            **dict.fromkeys(REPLICATION),
            "changed_secrets": ["db_password"],
        },
    ),
    "tenant gone": ("DELETE FROM _realtime.tenants", {"": "gone"}),
    "another tenant": ("UPDATE _realtime.tenants SET max_concurrent_users = 5 WHERE name = 'realtime-dev'", {}),
}


@pytest.mark.parametrize("change", BY_HAND)
def test_a_change_by_hand_is_named(change: str, engine: Engine, admin: Connection) -> None:
    statement, seen = BY_HAND[change]
    admin.execute(statement.encode())
    assert engine.drift(DECLARED) == seen


def test_public_keys_are_told_as_they_are_and_read_back(engine: Engine, admin: Connection) -> None:
    declared = {**DECLARED, "jwt_jwks": PUBLIC_KEYS}
    told = tenant_document(tenant._whole_numbers(on_the_wire(declared)))["tenant"]["jwt_jwks"]
    assert told == PUBLIC_KEYS
    admin.execute("UPDATE _realtime.tenants SET jwt_jwks = %s", [Jsonb(told)])
    assert read() == STORED | {"jwt_jwks": PUBLIC_KEYS}
    engine.inputs, engine.outputs = on_the_wire(declared), on_the_wire(declared)
    assert engine.drift(declared) == {}


def test_no_drift_shows_a_secret(engine: Engine, admin: Connection) -> None:
    """The engine shows both values of a property that differs; these two are marked, whatever is in the database."""
    admin.execute(f"UPDATE _realtime.tenants SET jwt_secret = '{encrypted('told-by-nobody')}'".encode())
    assert "told-by-nobody" not in str(engine.drift(DECLARED))


@pytest.mark.parametrize(
    ("property_", "value", "replaces"),
    [
        ("external_id", "other", ["external_id"]),
        ("jwt_secret", "another-client-key-secret-of-this-test", []),
        ("max_joins_per_second", 500, []),
        ("poll_interval_ms", 10, []),
        ("db_password", "other", []),
        ("server", "id-of-a-new-container", []),
        ("jwt_jwks", PUBLIC_KEYS, []),
    ],
)
def test_a_change_of_the_config_is_one_of_the_tenant(property_: str, value: object, replaces: list[str]) -> None:
    """Another name is another tenant; another container must be warmed up, so that no client waits for it."""
    diff = RealtimeTenantProvider().diff("id", on_the_wire(DECLARED), on_the_wire(DECLARED | {property_: value}))
    assert (diff.changes, diff.replaces) == (True, replaces)


def test_the_same_config_is_no_change_although_numbers_come_as_floats() -> None:
    diff = RealtimeTenantProvider().diff("id", on_the_wire(DECLARED), dict(DECLARED))
    assert (diff.changes, diff.replaces) == (False, [])


def test_the_api_is_told_everything_in_the_types_that_realtime_takes() -> None:
    """The port as text, every other number whole: Realtime refuses 25.0."""
    told = tenant_document(tenant._whole_numbers(on_the_wire(DECLARED)))
    assert json.dumps(told, sort_keys=True) == json.dumps(
        {
            "tenant": {
                "name": "supabase-realtime",
                "external_id": "supabase-realtime",
                "jwt_secret": "the-client-key-secret-of-this-test-alone",
                "jwt_jwks": None,
                **LIMITS,
                "extensions": [{"type": "postgres_cdc_rls", "settings": {**DATABASE, **REPLICATION}}],
            }
        },
        sort_keys=True,
    )


def test_a_removed_tenant_takes_its_extension_along_and_leaves_the_others(engine: Engine, admin: Connection) -> None:
    """No Realtime listens: then there is no replication slot to end either."""
    engine.destroy()
    assert admin.execute("SELECT external_id FROM _realtime.tenants").fetchall() == [("realtime-dev",)]
    assert admin.execute("SELECT tenant_external_id FROM _realtime.extensions").fetchall() == [("realtime-dev",)]


def test_a_provider_that_no_config_was_given_says_so(stored: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant, "_config", None)
    with pytest.raises(TenantError, match=r"set realtime\.\* in the stack's config"):
        RealtimeTenantProvider().read("supabase-realtime", on_the_wire(DECLARED))


@pytest.fixture
def no_free_slot(admin: Connection, database: str) -> Iterator[None]:
    """Somebody has every replication slot of the server."""
    with psycopg.connect(database, autocommit=True) as somebody:
        somebody.execute(
            "SELECT pg_create_logical_replication_slot('slot_' || n, 'pgoutput', true) "
            "FROM generate_series(1, current_setting('max_replication_slots')::int) n"
        )
        yield
    until(admin, "SELECT WHERE NOT EXISTS (SELECT FROM pg_replication_slots)")


def with_wal2json() -> Path | None:
    """The programs of a Postgres installed on this machine, outside the environment, that has wal2json."""
    found = shutil.which("pg_config")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_config"), reverse=True)
    for pg_config in [Path(found), *installed] if found else installed:
        told = [
            subprocess.run([pg_config, option], check=True, capture_output=True, text=True).stdout.strip()
            for option in ("--pkglibdir", "--bindir")
        ]
        if Path(told[0], "wal2json.so").exists() and Path(told[1], "initdb").exists():
            return Path(told[1])
    return None


WAL2JSON = with_wal2json()


class TestLogicalDecoding:
    """Without it Realtime says "Subscribed to PostgreSQL" and delivers nothing."""

    @pytest.mark.usefixtures("database")
    def test_a_server_without_wal2json_is_refused_with_the_cure(self) -> None:
        with pytest.raises(DatabaseError) as refused:
            check_logical_decoding()
        assert 'could not access file "wal2json"' in str(refused.value)
        assert "needs the output plugin wal2json; install it" in str(refused.value)

    @pytest.mark.usefixtures("no_free_slot")
    def test_a_server_without_a_free_slot_is_refused_with_the_cure(self) -> None:
        with pytest.raises(DatabaseError) as refused:
            check_logical_decoding()
        assert "all replication slots are in use" in str(refused.value)
        assert "raise max_replication_slots, or drop an idle one of pg_replication_slots" in str(refused.value)

    def test_a_server_that_is_not_logical_is_refused_with_the_cure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(rehearsal.server.SETTINGS, "wal_level", "replica")
        with embedded_postgres() as conninfo, connected_to(conninfo), pytest.raises(DatabaseError) as refused:
            check_logical_decoding()
        assert "logical decoding requires" in str(refused.value)
        assert "set wal_level = logical in the server's configuration and restart it" in str(refused.value)

    @pytest.mark.skipif(
        WAL2JSON is None,
        reason="no Postgres on this machine has wal2json: install postgresql-16-wal2json; the stack tests prove it too",
    )
    def test_a_change_of_a_published_table_is_decoded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rehearsal.server, "binaries", lambda: WAL2JSON)
        with embedded_postgres() as conninfo, connected_to(conninfo), psycopg.connect(conninfo, autocommit=True) as db:
            check_logical_decoding()
            assert db.execute("SELECT slot_name FROM pg_replication_slots").fetchall() == [], "the check's slot is left"
            db.execute("CREATE TABLE public.wells (id int PRIMARY KEY, name text)")
            db.execute("SELECT pg_create_logical_replication_slot('slot', 'wal2json', true)")
            # Only what has reached the disk is decoded, and the embedded server is in no hurry.
            db.execute("SET synchronous_commit = on")
            db.execute("INSERT INTO public.wells VALUES (1, 'north')")
            decoded = db.execute(
                "SELECT data FROM pg_logical_slot_get_changes('slot', NULL, NULL, 'format-version', '2', "
                "'include-transaction', 'false')"
            ).fetchall()
        assert [json.loads(data) for (data,) in decoded] == [
            {
                "action": "I",
                "schema": "public",
                "table": "wells",
                "columns": [
                    {"name": "id", "type": "integer", "value": 1},
                    {"name": "name", "type": "text", "value": "north"},
                ],
            }
        ]
