"""The watch's rows on a real Postgres: none is left behind, and a server that hangs is one that is down."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import psycopg
import pytest

from doctor.failures import Cause, ProbeFailedError
from doctor.outputs import Outputs
from doctor.plan import Chosen, Written
from doctor.watching.rows import ANSWER_SECONDS, DatabaseDownError, Rows
from tests.database.test_probe_row import WELLS, open_to_anon, outputs_of

Admin = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def wells(database: str, admin: Admin) -> Outputs:
    """A stack whose one table anon may read and write."""
    admin.execute(WELLS)
    open_to_anon(admin, "public.wells")
    return outputs_of(database, ("public.wells", "anon", "anon"))


def count(admin: Admin) -> int:
    row = admin.execute("SELECT count(*) FROM public.wells").fetchone()
    assert row is not None
    return int(row[0])


def backend(admin: Admin) -> int:
    """The process id of the watch's session."""
    row = admin.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'doctor probe'").fetchone()
    assert row is not None
    return int(row[0])


async def written(rows: Rows) -> tuple[Chosen, Written]:
    chosen, notes = await rows.choose()
    assert notes == []
    return chosen, await rows.write(chosen)


def test_a_row_is_there_until_it_is_done_with(wells: Outputs, admin: Admin) -> None:
    async def run() -> None:
        rows = Rows(wells)
        chosen, row = await written(rows)
        assert count(admin) == 0, "not committed yet"
        await rows.commit()
        assert count(admin) == 1
        rows.discard(row, committed=True)
        await rows.remove(chosen)
        assert (count(admin), rows.removable) == (0, 0)
        await rows.close()

    asyncio.run(run())


def test_a_session_that_is_ended_is_made_again(wells: Outputs, admin: Admin) -> None:
    async def run() -> None:
        rows = Rows(wells)
        chosen, _ = await written(rows)
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [backend(admin)])
        with pytest.raises(DatabaseDownError, match="terminating connection"):
            await rows.commit()
        row = await rows.write(chosen)
        await rows.commit()
        rows.discard(row, committed=False)
        assert count(admin) == 1
        assert await rows.remove_all(chosen) == ()

    asyncio.run(run())
    assert count(admin) == 0


def test_a_server_that_hangs_is_given_up_on_and_its_rows_are_removed_when_it_is_back(
    wells: Outputs, admin: Admin
) -> None:
    async def run() -> None:
        rows = Rows(wells)
        chosen, row = await written(rows)
        await rows.commit()
        rows.discard(row, committed=True)
        stopped = backend(admin)
        os.kill(stopped, signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(DatabaseDownError) as down:
                await rows.write(chosen)
            assert time.monotonic() - started < ANSWER_SECONDS + 2
            assert down.value.failure.seen == "none for 5 s"
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert await rows.remove_all(chosen) == ()

    asyncio.run(run())
    assert count(admin) == 0


def test_a_lock_that_somebody_holds_is_not_waited_for_longer(wells: Outputs, admin: Admin) -> None:
    async def run() -> None:
        rows = Rows(wells)
        chosen, _ = await rows.choose()
        with admin.transaction():
            admin.execute("LOCK TABLE public.wells IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(DatabaseDownError, match="timeout"):
                await rows.write(chosen)
        await rows.close()

    asyncio.run(run())


def test_a_privilege_that_is_taken_away_is_named(wells: Outputs, admin: Admin) -> None:
    async def run() -> None:
        rows = Rows(wells)
        chosen, _ = await rows.choose()
        admin.execute("REVOKE INSERT ON public.wells FROM anon")
        with pytest.raises(DatabaseDownError, match="anon lacks INSERT on wells"):
            await rows.write(chosen)
        await rows.close()

    asyncio.run(run())


def test_a_row_that_the_database_will_not_remove_is_named_with_its_statement(wells: Outputs, admin: Admin) -> None:
    async def run() -> tuple[str, ...]:
        rows = Rows(wells)
        chosen, row = await written(rows)
        await rows.commit()
        rows.discard(row, committed=True)
        admin.execute(
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'rows are kept'; END $$"
        )
        admin.execute("CREATE TRIGGER keep BEFORE DELETE ON public.wells FOR EACH ROW EXECUTE FUNCTION keep()")
        with pytest.raises(ProbeFailedError) as refused:
            await rows.remove(chosen)
        assert refused.value.failure.cause is Cause.LEFT_BEHIND
        return await rows.remove_all(chosen)

    (statement,) = asyncio.run(run())
    assert statement.startswith('DELETE FROM "public"."wells" WHERE "id" = ')


def test_a_row_that_is_only_marked_as_deleted_is_named_with_its_statement(wells: Outputs, admin: Admin) -> None:
    async def run() -> tuple[str, ...]:
        rows = Rows(wells)
        chosen, row = await written(rows)
        await rows.commit()
        rows.discard(row, committed=True)
        admin.execute("CREATE RULE soft AS ON DELETE TO public.wells DO INSTEAD NOTHING")
        with pytest.raises(ProbeFailedError, match="the database deletes nothing"):
            await rows.remove(chosen)
        return await rows.remove_all(chosen)

    (statement,) = asyncio.run(run())
    assert statement.startswith('DELETE FROM "public"."wells" WHERE "id" = ')


def test_of_a_commit_that_was_rolled_back_nothing_is_removed(wells: Outputs, admin: Admin) -> None:
    async def run() -> tuple[str, ...]:
        rows = Rows(wells)
        chosen, row = await written(rows)
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [backend(admin)])
        with pytest.raises(DatabaseDownError):
            await rows.commit()
        rows.discard(row, committed=False)
        admin.execute("INSERT INTO public.wells OVERRIDING SYSTEM VALUE SELECT %s::text::bigint, 'theirs'", row.key)
        return await rows.remove_all(chosen)

    assert asyncio.run(run()) == ()
    assert count(admin) == 1
