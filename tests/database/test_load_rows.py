"""The rows of a load test on a real Postgres: every one of them is removed, or named, and no other."""

from __future__ import annotations

import asyncio
import random
from typing import LiteralString

import pytest

from doctor.database import connected
from doctor.deliveries import Deliveries
from doctor.load_inserts import Inserts
from doctor.outputs import Outputs
from doctor.plan import Chosen, choose
from tests.database.conftest import Connection as Admin
from tests.database.test_probe_row import WELLS, open_to_anon, outputs_of


@pytest.fixture
def wells(database: str, admin: Admin) -> Outputs:
    """A stack whose one table anon may read and write."""
    admin.execute(WELLS)
    open_to_anon(admin, "public.wells")
    return outputs_of(database, ("public.wells", "anon", "anon"))


async def chosen_of(outputs: Outputs) -> Chosen:
    async with connected(outputs, 20) as connection:
        chosen, _ = await choose(connection, outputs, random.SystemRandom())
        await connection.rollback()
        return chosen


async def made(outputs: Outputs, failures: list[str], inserts: int = 20) -> Inserts:
    rows = Inserts(outputs, await chosen_of(outputs), Deliveries(clients=1, inserts=inserts), failed=failures.append)
    await rows.run(rate=100, seconds=1, inserts=inserts)
    return rows


def names(admin: Admin) -> list[str]:
    return [name for (name,) in admin.execute("SELECT name FROM public.wells").fetchall()]


def test_every_row_is_removed_and_no_other(wells: Outputs, admin: Admin) -> None:
    admin.execute("INSERT INTO public.wells (name) VALUES ('of the application')")
    failures: list[str] = []

    async def run() -> str | None:
        rows = await made(wells, failures)
        assert len(names(admin)) == 21
        admin.execute("DELETE FROM public.wells WHERE id = %s", [int(rows.last_key[0])])  # by somebody else
        return await rows.remove()

    assert asyncio.run(run()) is None
    assert (names(admin), failures) == (["of the application"], [])


@pytest.mark.parametrize(
    "keeping",
    [
        "CREATE RULE soft AS ON DELETE TO public.wells DO INSTEAD NOTHING",
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
        "CREATE TRIGGER keep BEFORE DELETE ON public.wells FOR EACH ROW WHEN (old.id % 2 = 0) EXECUTE FUNCTION keep()",
    ],
)
def test_rows_that_the_database_keeps_are_counted_and_not_taken_for_removed(
    wells: Outputs, admin: Admin, keeping: LiteralString
) -> None:
    async def run() -> str | None:
        rows = await made(wells, [])
        admin.execute(keeping)
        return await rows.remove()

    left = asyncio.run(run())
    kept = admin.execute("SELECT count(*) FROM public.wells").fetchone() or (0,)
    assert kept[0] >= 10
    assert left is not None
    assert left.startswith(
        f"{kept[0]} rows of public.wells could not be removed (a trigger, rule or policy of the table keeps them)"
    )


def test_of_a_commit_that_was_rolled_back_nothing_is_removed(wells: Outputs, admin: Admin) -> None:
    """The application has written a row in its place since; one that was committed, unknown to us, is removed."""

    async def run() -> str | None:
        rows = Inserts(wells, await chosen_of(wells), Deliveries(clients=1, inserts=9), failed=pytest.fail)
        async with connected(wells, 20) as connection:
            for name in ("committed", "rolled back"):
                query = "INSERT INTO wells (name) VALUES (%s) RETURNING pg_current_xact_id()::text, id::text"
                transaction, key = await (await connection.execute(query, [name])).fetchone() or ("", "")
                rows._doubtful[transaction] = (key,)
                await (connection.commit() if name == "committed" else connection.rollback())
        admin.execute("INSERT INTO wells OVERRIDING SYSTEM VALUE SELECT %s::text::bigint, 'of the application'", [key])
        assert len(names(admin)) == 2
        return await rows.remove()

    assert asyncio.run(run()) is None
    assert names(admin) == ["of the application"]


def test_a_transaction_whose_number_a_crash_made_free_is_not_taken_for_the_rows(wells: Outputs, admin: Admin) -> None:
    async def run() -> str | None:
        rows = Inserts(wells, await chosen_of(wells), Deliveries(clients=1, inserts=9), failed=pytest.fail)
        query = "INSERT INTO wells (name) VALUES ('of the application') RETURNING id::text"
        key = admin.execute(query).fetchone() or ("",)
        other = admin.execute("SELECT pg_current_xact_id()::text").fetchone() or ("",)
        rows._doubtful[other[0]] = key
        return await rows.remove()

    left = asyncio.run(run())
    assert left is not None and "are other ones or were changed since; look whose they are" in left
    assert names(admin) == ["of the application"]


def test_a_commit_that_is_under_way_is_waited_for(wells: Outputs, admin: Admin) -> None:
    async def run() -> str | None:
        rows = Inserts(wells, await chosen_of(wells), Deliveries(clients=1, inserts=9), failed=pytest.fail)
        async with connected(wells, 20) as connection:
            query = "INSERT INTO wells (name) VALUES ('late') RETURNING pg_current_xact_id()::text, id::text"
            transaction, key = await (await connection.execute(query)).fetchone() or ("", "")
            rows._doubtful[transaction] = (key,)
            removing = asyncio.ensure_future(rows.remove())
            done, _ = await asyncio.wait({removing}, timeout=1)
            assert not done, "the row of a transaction under way cannot be removed"
            await connection.commit()
            return await removing

    assert asyncio.run(run()) is None
    assert names(admin) == []
