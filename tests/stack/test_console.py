"""The console's page in a real browser: it shows every change, and says when it cannot."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
import psycopg
import pytest

from tests.stack.conftest import Deployment
from tests.stack.interruption import await_condition
from tests.stack.page import CHROMIUM, LIVE_SECONDS, OFFLINE_SECONDS, chromium, console, looking, origins

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: install Debian's package chromium")

INGESTED = 500
HOPS = ("table", "publication", "slot", "realtime", "gateway", "browser")


@pytest.fixture(scope="module")
def url(live: Deployment) -> Iterator[str]:
    with console(live) as printed:
        yield printed


@pytest.fixture
def database(live: Deployment) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """The application's writer. The table is empty before and after.

    It does not wait for its commits, for the reason that is in conftest: Realtime would drop one now and then.
    """
    with live.database() as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute("DELETE FROM public.wells")
        yield connection
    with live.database() as connection:
        connection.execute("DELETE FROM public.wells")


def insert(connection: psycopg.Connection[tuple[Any, ...]], *names: str) -> list[int]:
    """Rows, each in a transaction of its own; their keys."""
    keys = []
    for name in names:
        row = connection.execute("INSERT INTO public.wells (name) VALUES (%s) RETURNING id", [name]).fetchone()
        assert row is not None
        keys.append(int(row[0]))
    return keys


@contextmanager
def stopped(deployment: Deployment, part: str) -> Iterator[None]:
    """The container is down meanwhile."""
    container = docker.from_env().containers.get(deployment.container_name(part))
    container.stop(timeout=5)
    try:
        yield
    finally:
        container.start()


def test_rows_appear_change_and_go_and_nobody_else_is_asked(
    live: Deployment, url: str, database: psycopg.Connection[tuple[Any, ...]]
) -> None:
    (present,) = insert(database, "there before")

    async def scenario() -> None:
        async with chromium() as browser, looking(browser, url) as operator:
            await operator.sees("live")
            await operator.sees_row(present, "there before")
            (added,) = insert(database, "added")
            await operator.sees_row(added, "added")
            database.execute("UPDATE public.wells SET name = 'renamed' WHERE id = %s", [added])
            await operator.sees_row(added, "renamed")
            database.execute("DELETE FROM public.wells WHERE id = %s", [present])
            await operator.misses_row(present)
            await operator.counts(1)
            assert await operator.number("events") == 3
            assert await operator.number("reconnects") == 0
            assert "token" not in operator.page.url
            for hop in HOPS:
                await operator.hop(hop, "ok")
            gateway = urlsplit(live.outputs()["url"]).netloc
            own = urlsplit(url).netloc
            assert origins(operator.requests) == {f"http://{own}", f"ws://{gateway}"}
            assert operator.complaints == []

    asyncio.run(scenario())


def test_every_row_inserted_while_the_page_loads_arrives(
    url: str, database: psycopg.Connection[tuple[Any, ...]]
) -> None:
    """The first of them are rows when the page reads the table, the last are events, and some are both."""

    async def scenario() -> None:
        async with chromium() as browser:
            names = [f"ingested {n}" for n in range(INGESTED)]
            ingestion = asyncio.create_task(asyncio.to_thread(insert, database, *names))
            async with looking(browser, url) as operator:
                keys = await ingestion
                await operator.sees("live")
                await operator.counts(INGESTED)
                await operator.page.get_by_label("Order").select_option("primary key")
                await operator.sees_row(keys[0], "ingested 0")
                await operator.page.get_by_test_id("table").focus()
                await operator.page.keyboard.press("End")
                await operator.sees_row(keys[-1], f"ingested {INGESTED - 1}")

    asyncio.run(scenario())


@pytest.mark.parametrize("part", ["gateway", "realtime", "postgres"])
def test_a_stopped_server_shows_offline_and_what_was_missed_is_there_after_it_started(
    part: str, live: Deployment, url: str, database: psycopg.Connection[tuple[Any, ...]]
) -> None:
    """Rows inserted while nothing flows: with Postgres itself down, right after it answers again."""
    kept, doomed = insert(database, "kept", "doomed")

    async def scenario() -> None:
        async with chromium() as browser, looking(browser, url) as operator:
            await operator.sees("live")
            await operator.sees_row(doomed, "doomed")
            with stopped(live, part):
                await operator.sees("offline", seconds=OFFLINE_SECONDS)
                missed = [] if part == "postgres" else missed_meanwhile(database, kept, doomed)
            if part == "postgres":
                with await asyncio.to_thread(answering, live) as restarted:
                    missed = missed_meanwhile(restarted, kept, doomed)
            await operator.sees("live", seconds=2 * LIVE_SECONDS)
            for key in missed:
                await operator.sees_row(key, "missed")
            await operator.sees_row(kept, "kept, changed")
            await operator.misses_row(doomed)
            with live.database() as connection:
                (after,) = insert(connection, "afterwards")
            await operator.sees_row(after, "afterwards")

    asyncio.run(scenario())


def missed_meanwhile(connection: psycopg.Connection[tuple[Any, ...]], kept: int, doomed: int) -> list[int]:
    keys = insert(connection, "missed 1", "missed 2")
    connection.execute("UPDATE public.wells SET name = 'kept, changed' WHERE id = %s", [kept])
    connection.execute("DELETE FROM public.wells WHERE id = %s", [doomed])
    return keys


def answering(deployment: Deployment) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection, as soon as Postgres takes one again."""
    found: list[psycopg.Connection[tuple[Any, ...]]] = []

    def connects() -> bool:
        try:
            found.append(deployment.database())
        except psycopg.OperationalError:
            return False
        return True

    await_condition(connects, "Postgres takes connections again")
    return found[0]


def test_a_frozen_tab_catches_up(url: str, database: psycopg.Connection[tuple[Any, ...]]) -> None:
    async def scenario() -> None:
        async with chromium() as browser, looking(browser, url) as operator:
            await operator.sees("live")
            session = await operator.page.context.new_cdp_session(operator.page)
            await session.send("Page.setWebLifecycleState", {"state": "frozen"})
            keys = insert(database, "while it slept 1", "while it slept 2")
            await session.send("Page.setWebLifecycleState", {"state": "active"})
            for key in keys:
                await operator.sees_row(key, "while it slept")
            await operator.sees("live")

    asyncio.run(scenario())


def test_two_pages_agree_on_what_one_of_them_did(url: str, database: psycopg.Connection[tuple[Any, ...]]) -> None:
    async def scenario() -> None:
        async with chromium() as browser, looking(browser, url) as one, looking(browser, url) as other:
            await one.sees("live")
            await other.sees("live")
            for button in ("Insert test row", "Insert test row", "Change"):
                await one.page.get_by_role("button", name=button, exact=True).click()
            await one.counts(2)
            await other.counts(2)
            rows = [await operator.page.get_by_test_id("table").inner_text() for operator in (one, other)]
            assert rows[0] == rows[1]
            await one.page.get_by_role("button", name="Delete", exact=True).click()
            await one.counts(1)
            await other.counts(1)

    asyncio.run(scenario())


def test_a_policy_taken_away_turns_the_table_red_and_says_why(
    live: Deployment, url: str, database: psycopg.Connection[tuple[Any, ...]]
) -> None:
    async def scenario() -> None:
        async with chromium() as browser, looking(browser, url) as operator:
            await operator.hop("table", "ok", seconds=LIVE_SECONDS)
            database.execute("DROP POLICY wells_select ON public.wells")
            await operator.page.get_by_role("button", name="Check again").click()
            await operator.hop("table", "failed")
            await operator.page.get_by_test_id("hop-table").click()
            why = operator.page.get_by_role("dialog")
            assert "policy" in await why.inner_text()
            assert "make up" in await why.inner_text() or "pulumi up" in await why.inner_text()

    try:
        asyncio.run(scenario())
    finally:
        live.up()


def test_a_token_that_ends_is_replaced_while_changes_flow(
    live: Deployment, database: psycopg.Connection[tuple[Any, ...]]
) -> None:
    lifetime = 35

    async def scenario() -> None:
        with console(live, "--token-lifetime", str(lifetime)) as url:
            async with chromium() as browser, looking(browser, url) as operator:
                await operator.sees("live")
                first = {request for request in operator.requests if "/api/token" in request}
                assert len(first) == 1
                async with operator.page.expect_response("**/api/token*", timeout=lifetime * 1000):
                    pass
                ended = time.monotonic() + lifetime
                while time.monotonic() < ended:
                    (key,) = insert(database, "with one token or the other")
                    await operator.sees_row(key, "with one token")
                assert await operator.number("reconnects") == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_a_phone_and_a_desk(width: int, url: str, database: psycopg.Connection[tuple[Any, ...]]) -> None:
    """CONSOLE_SCREENSHOTS names a folder to keep the pictures in; that of the documentation is one of them."""
    insert(database, "a well with a name that is longer than a phone is wide, as names are")

    async def scenario() -> None:
        async with chromium() as browser, looking(browser, url, viewport=(width, 800)) as operator:
            await operator.sees("live")
            keys = insert(database, *(f"Brunnen {number}" for number in range(1, 9)))
            await operator.sees_row(keys[-1], "Brunnen 8")
            for hop in HOPS:
                await operator.hop(hop, "ok")
            assert await operator.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            if folder := os.environ.get("CONSOLE_SCREENSHOTS"):
                await operator.page.screenshot(path=Path(folder) / f"console-{width}.png")

    asyncio.run(scenario())
