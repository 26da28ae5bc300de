"""A database that a newer Realtime has migrated is kept from an older one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from providers.connection import DatabaseError
from providers.realtime_schema import RealtimeSchemaProvider
from realtime_versions import Version
from tests.database.conftest import Connection

FIRST, ACTION_FILTER, SELECTED_COLUMNS = 20211116024918, 20251120212548, 20260527120000


def migrated(admin: Connection, migrations: Sequence[int]) -> None:
    """The record of migrations as Ecto keeps it."""
    admin.execute("CREATE SCHEMA IF NOT EXISTS realtime")
    admin.execute("CREATE TABLE realtime.schema_migrations (version bigint PRIMARY KEY, inserted_at timestamp(0))")
    for migration in migrations:
        admin.execute("INSERT INTO realtime.schema_migrations VALUES (%s, now())", [migration])


def changed_to(version: str) -> bool:
    """Whether a stack of another version may go over to this one; raises DatabaseError when not."""
    return bool(RealtimeSchemaProvider().diff("", {"realtime_version": "2.0.0"}, {"realtime_version": version}).changes)


@pytest.mark.parametrize(
    ("migrations", "version"),
    [
        ([FIRST], "2.32.12"),
        ([FIRST], "2.129.8"),
        ([FIRST, ACTION_FILTER], "2.74.0"),
        ([FIRST, ACTION_FILTER], "2.100.9"),
        ([FIRST, ACTION_FILTER, SELECTED_COLUMNS], "2.101.0"),
        ([FIRST, ACTION_FILTER, SELECTED_COLUMNS], ""),
    ],
)
def test_a_version_that_can_use_the_schema_is_accepted(admin: Connection, migrations: list[int], version: str) -> None:
    migrated(admin, migrations)
    assert changed_to(version)


@pytest.mark.parametrize(
    ("migrations", "version", "needed"),
    [
        ([FIRST, ACTION_FILTER], "2.32.12", Version(2, 74, 0)),
        ([FIRST, ACTION_FILTER], "2.73.9", Version(2, 74, 0)),
        ([FIRST, ACTION_FILTER, SELECTED_COLUMNS], "2.32.12", Version(2, 101, 0)),
        ([FIRST, ACTION_FILTER, SELECTED_COLUMNS], "2.100.9", Version(2, 101, 0)),
    ],
)
def test_a_version_that_cannot_is_refused_at_preview_with_reason_and_cure(
    admin: Connection, migrations: list[int], version: str, needed: Version
) -> None:
    migrated(admin, migrations)
    with pytest.raises(DatabaseError) as refused:
        changed_to(version)
    assert f"realtime.image: Realtime {version} cannot use this database any more: {needed} or newer" in str(
        refused.value
    )
    assert "42P10" in str(refused.value)
    assert f"set realtime.image to {needed} or newer, or restore a backup into a new stack" in str(refused.value)


def test_a_stack_over_a_database_that_a_newer_one_has_left_is_refused_as_well(admin: Connection) -> None:
    migrated(admin, [FIRST, ACTION_FILTER])
    with pytest.raises(DatabaseError, match=r"2\.74\.0 or newer has migrated it"):
        RealtimeSchemaProvider().create({"realtime_version": "2.32.12"})


@pytest.mark.usefixtures("database")
def test_a_database_without_realtime_takes_any_version() -> None:
    assert RealtimeSchemaProvider().create({"realtime_version": "2.32.12"}).id == "realtime-schema"


def test_the_same_version_is_not_asked_about(admin: Connection) -> None:
    """A preview of a stack that stays as it is needs no database."""
    migrated(admin, [FIRST, ACTION_FILTER])
    same = {"realtime_version": "2.32.12"}
    assert not RealtimeSchemaProvider().diff("", same, same).changes
