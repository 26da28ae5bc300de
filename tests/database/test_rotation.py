"""Another password for the database's user: Postgres knows it, whatever was done before, and its log does not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from deploy import rotation
from deploy.errors import DeployError
from rehearsal.server import embedded_postgres
from settings import PendingRotation, PostgresSettings

PREVIOUS, NEXT = "the-previous-password", "the-next-password"
names = itertools.count(1)

Connection = psycopg.Connection[tuple[object, ...]]


@pytest.fixture(scope="module")
def administrator() -> Iterator[Connection]:
    """A superuser's connection to a server that asks everybody for a password."""
    with embedded_postgres() as conninfo, psycopg.connect(conninfo, autocommit=True) as opened:
        yield opened


@pytest.fixture
def postgres(administrator: Connection) -> Iterator[PostgresSettings]:
    """The settings of a superuser of the test's own, who has the previous password."""
    user = f"rotated_{next(names)}"
    administrator.execute(sql.SQL("CREATE ROLE {} SUPERUSER LOGIN PASSWORD {}").format(sql.Identifier(user), PREVIOUS))
    where = {"host_port": administrator.info.port, "database": administrator.info.dbname}
    yield PostgresSettings.model_validate({"user": user, "password": PREVIOUS, **where})
    administrator.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(user)))


PENDING = PendingRotation(key="postgres.password", previous=SecretStr(PREVIOUS), next=SecretStr(NEXT))


def stored(administrator: Connection, user: str) -> str:
    """What Postgres keeps of a password."""
    row = administrator.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", [user]).fetchone()
    assert row is not None
    return str(row[0])


def opens(postgres: PostgresSettings, password: str) -> bool:
    """Whether the user gets in with a password."""
    try:
        with psycopg.connect(rotation._conninfo(postgres, SecretStr(password))):
            return True
    except psycopg.OperationalError as refused:
        assert rotation.is_wrong_password(refused)
        return False


def test_only_the_next_password_opens_postgres(postgres: PostgresSettings) -> None:
    assert (opens(postgres, PREVIOUS), opens(postgres, NEXT)) == (True, False)
    rotation.alter_password(postgres, PENDING)
    assert (opens(postgres, PREVIOUS), opens(postgres, NEXT)) == (False, True)


def test_a_step_that_was_done_before_the_interruption_is_done_again(postgres: PostgresSettings) -> None:
    rotation.alter_password(postgres, PENDING)
    rotation.alter_password(postgres, PENDING)
    assert opens(postgres, NEXT)


@pytest.mark.parametrize("encryption", ["scram-sha-256", "md5"])
def test_postgres_gets_a_verifier_and_its_log_no_password(
    postgres: PostgresSettings, administrator: Connection, encryption: str
) -> None:
    for setting, value in (("password_encryption", encryption), ("log_statement", "all")):
        administrator.execute(
            sql.SQL("ALTER ROLE {} SET {} = {}").format(sql.Identifier(postgres.user), sql.Identifier(setting), value)
        )
    rotation.alter_password(postgres, PENDING)
    assert stored(administrator, postgres.user).startswith("SCRAM-SHA-256$")
    row = administrator.execute("SELECT pg_read_file(current_setting('data_directory') || '/../log')").fetchone()
    assert row is not None
    assert f'ALTER ROLE "{postgres.user}" PASSWORD' in str(row[0])
    assert NEXT not in str(row[0])


def test_a_password_changed_by_somebody_else_is_said_and_left_alone(
    postgres: PostgresSettings, administrator: Connection
) -> None:
    administrator.execute(
        sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(postgres.user), "somebody-elses-password")
    )
    with pytest.raises(DeployError, match="refuses the previous and the next password") as refused:
        rotation.alter_password(postgres, PENDING)
    assert PREVIOUS not in str(refused.value)
    assert NEXT not in str(refused.value)
    assert opens(postgres, "somebody-elses-password")


def test_a_stopped_postgres_is_named_with_the_cure(postgres: PostgresSettings) -> None:
    elsewhere = postgres.model_copy(update={"host_port": 1})
    with pytest.raises(DeployError, match=r"cannot be asked to take its next password: .*refused.*; start it"):
        rotation.alter_password(elsewhere, PENDING)
