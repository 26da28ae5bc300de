"""What the doctor says of a tenant's secrets, by the key that Realtime really runs with."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from psycopg.types.json import Jsonb
from pydantic import SecretStr

from doctor.checks import keys, tenant
from doctor.checks.finding import Status
from doctor.checks.setup import Setup, config_of
from doctor.examination import Examination, examine
from settings import NAMESPACE
from tests.database.conftest import Connection
from tests.database.test_tenant import DECLARED, KEY, TABLES, encrypted, stored_settings
from tests.program.recorder import ANON_KEY, SECRETS

NAME = "supabase-realtime"
ANOTHER = "another-16-bytes"


def examined(database: str, *, running: str | None, declared: str | None = KEY) -> Examination:
    """The tenant's checks on a stack whose Realtime runs with a DB_ENC_KEY; None: Docker cannot be asked."""
    values = {f"{NAMESPACE}:{key}": value for key, value in {**SECRETS, "realtime.db_enc_key": declared}.items()}
    setup = Setup(
        stack="dev",
        tenant=NAME,
        dsn=SecretStr(database),
        anon_key=SecretStr(ANON_KEY),
        config=config_of(values, environ={}) if declared else None,
        config_reason="of this test",
    )
    realtime = SimpleNamespace(attrs={"Config": {"Env": [f"DB_ENC_KEY={running}"]}})
    parts = {"postgres": None, "realtime": realtime, "gateway": None}
    # Worked out once, and kept there: what Docker would say.
    setup.__dict__.update(docker_reason=None if running else "no Docker", parts=parts)
    checks = [tenant.encryption, tenant.secret, tenant.connection, keys.claims, keys.signature]
    return examine(setup, checks=checks)


@pytest.fixture
def stored(database: str, admin: Connection) -> str:
    """A database with the tenant that is declared, its secrets encrypted with the key that is declared."""
    admin.execute(TABLES.encode())
    admin.execute(
        "INSERT INTO _realtime.tenants (external_id, jwt_secret) VALUES (%s, %s)",
        [NAME, encrypted(str(DECLARED["jwt_secret"]))],
    )
    admin.execute(
        "INSERT INTO _realtime.extensions (type, settings, tenant_external_id) VALUES ('postgres_cdc_rls', %s, %s)",
        [Jsonb(stored_settings()), NAME],
    )
    return database


@pytest.mark.parametrize("running", [KEY, None])
def test_a_tenant_as_declared_is_well(stored: str, running: str | None) -> None:
    examination = examined(stored, running=running)
    assert {finding.status for finding in examination.findings} == {Status.OK}, examination


def test_a_declared_key_that_was_not_applied_is_a_warning_of_its_own_and_all_else_is_well(stored: str) -> None:
    examination = examined(stored, running=KEY, declared=ANOTHER)
    assert examination.exit_status == 1, examination
    assert examination.root == "db-enc-key-differs"
    others = [finding for finding in examination.findings if finding.check != "tenant.encryption"]
    assert {finding.status for finding in others} == {Status.OK}, examination
    assert ANOTHER not in examination.model_dump_json()
    assert KEY not in examination.model_dump_json()


def test_a_container_that_runs_with_another_key_than_the_tenant_s_is_a_failure(stored: str) -> None:
    examination = examined(stored, running=ANOTHER)
    assert examination.exit_status == 2
    assert examination.root == "db-enc-key-changed"


@pytest.mark.parametrize("running", ["short", "of-more-than-16-bytes"])
def test_a_container_with_a_key_of_another_length_is_told_of(stored: str, running: str) -> None:
    assert examined(stored, running=running).root == "db-enc-key-wrong-length"


def test_without_the_config_the_container_s_key_opens_the_tenant_s_secrets(stored: str) -> None:
    examination = examined(stored, running=KEY, declared=None)
    for check in ("tenant.encryption", "tenant.secret", "keys.signature"):
        assert examination.finding(check).status is Status.OK, examination
    assert examination.finding("tenant.connection").status is Status.SKIPPED


def test_another_connection_than_the_declared_is_still_seen(stored: str, admin: Connection) -> None:
    admin.execute(
        "UPDATE _realtime.extensions SET settings = settings || %s", [Jsonb({"db_host": encrypted("db.example")})]
    )
    examination = examined(stored, running=KEY)
    assert examination.root == "tenant-connection-differs"
    assert examination.finding("tenant.connection").seen.startswith("db_host of tenant")
