"""DatabaseRoles: what is missing is made, what is there stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from providers.roles import DatabaseRolesProvider
from tests.database.conftest import ROLES, Connection
from tests.database.engine import Engine

OWN = ["test_reader", "test_writer"]


def attributes(admin: Connection, role: str) -> dict[str, Any]:
    """What a role may, as the catalog says."""
    cursor = admin.execute(
        "SELECT rolcanlogin, rolinherit, rolbypassrls, rolsuper, rolcreatedb, rolcreaterole "
        "FROM pg_roles WHERE rolname = %s",
        [role],
    )
    row = cursor.fetchone()
    assert row is not None, f"there is no role {role}"
    return dict(zip((column.name for column in cursor.description or ()), row, strict=True))


@pytest.fixture
def engine(admin: Connection) -> Iterator[Engine]:
    """Roles belong to the server, not to the test's database."""
    yield Engine(DatabaseRolesProvider())
    for role in OWN:
        admin.execute(f"DROP ROLE IF EXISTS {role}".encode())


NO_LOGIN_NO_POWER = {
    "rolcanlogin": False,
    "rolinherit": False,
    "rolbypassrls": False,
    "rolsuper": False,
    "rolcreatedb": False,
    "rolcreaterole": False,
}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_of_the_api_can_be_become_and_not_logged_in_as(role: str, admin: Connection) -> None:
    """Only service_role passes row level security by."""
    assert attributes(admin, role) == NO_LOGIN_NO_POWER | {"rolbypassrls": role == "service_role"}


def test_a_missing_role_is_made(engine: Engine, admin: Connection) -> None:
    assert engine.up({"roles": OWN}) == "create"
    assert [attributes(admin, role) for role in OWN] == [NO_LOGIN_NO_POWER] * 2
    assert engine.drift({"roles": OWN}) == {}


def test_a_role_that_exists_is_adopted_as_it_is(engine: Engine, admin: Connection) -> None:
    admin.execute("CREATE ROLE test_reader LOGIN CREATEDB")
    before = attributes(admin, "test_reader")
    assert engine.up({"roles": OWN}) == "create"
    assert attributes(admin, "test_reader") == before
    assert engine.up({"roles": OWN}) == "same"


def test_a_role_dropped_by_hand_is_drift_and_is_made_again(engine: Engine, admin: Connection) -> None:
    engine.up({"roles": OWN})
    admin.execute("DROP ROLE test_writer")
    assert engine.drift({"roles": OWN}) == {"roles": ["test_reader"]}
    engine.refresh()
    assert engine.up({"roles": OWN}) == "update"
    assert attributes(admin, "test_writer") == NO_LOGIN_NO_POWER
    assert engine.drift({"roles": OWN}) == {}


def test_a_role_added_to_the_config_is_made(engine: Engine, admin: Connection) -> None:
    engine.up({"roles": OWN[:1]})
    assert engine.up({"roles": OWN}) == "update"
    assert attributes(admin, "test_writer") == NO_LOGIN_NO_POWER


def test_destroying_the_stack_leaves_the_roles_which_others_may_use(engine: Engine, admin: Connection) -> None:
    engine.up({"roles": OWN})
    engine.destroy()
    assert [attributes(admin, role) for role in OWN] == [NO_LOGIN_NO_POWER] * 2


def test_none_of_several_roles_is_made_when_one_cannot_be(engine: Engine, admin: Connection) -> None:
    with pytest.raises(psycopg.errors.ReservedName):
        engine.up({"roles": ["test_reader", "pg_reserved"]})
    assert admin.execute("SELECT rolname FROM pg_roles WHERE rolname = 'test_reader'").fetchall() == []
