"""The console's rows on a real Postgres: read and written as a role, page by page, and never older than they say."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString

import httpx
import psycopg
import pytest

from doctor.checks.setup import of_outputs
from doctor.console import rows
from doctor.console.identity import SUBJECT
from doctor.outputs import Outputs
from tests.console import Served, events, served
from tests.database.conftest import Connection, until
from tests.database.test_probe_row import WELLS, make, outputs_of

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def wells(database: str, admin: Connection) -> Outputs:
    """A stack where anon reads wells, and those who are logged in change them."""
    make(
        admin,
        WELLS,
        "ALTER TABLE public.wells ENABLE ROW LEVEL SECURITY",
        "GRANT SELECT ON public.wells TO anon",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON public.wells TO authenticated",
        "CREATE POLICY reading ON public.wells FOR SELECT TO anon, authenticated USING (true)",
        "CREATE POLICY inserting ON public.wells FOR INSERT TO authenticated WITH CHECK (true)",
        "CREATE POLICY updating ON public.wells FOR UPDATE TO authenticated USING (true)",
        "CREATE POLICY deleting ON public.wells FOR DELETE TO authenticated USING (true)",
    )
    return outputs_of(database, ("public.wells", "anon authenticated", "authenticated"))


@pytest.fixture
def console(wells: Outputs) -> Iterator[Served]:
    with served(of_outputs(wells, stack=None)) as running:
        yield running


@contextmanager
def console_of(database: str, *tables: LiteralString) -> Iterator[Served]:
    """A console of tables that anon reads."""
    with served(
        of_outputs(outputs_of(database, *((table, "anon", "anon") for table in tables)), stack=None)
    ) as running:
        yield running


def open_for_reading(admin: Connection, *tables: LiteralString) -> None:
    for table in tables:
        make(
            admin,
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            f"GRANT SELECT ON {table} TO anon",
            f"CREATE POLICY reading ON {table} FOR SELECT TO anon USING (true)",
        )


def read(console: Served, role: str = "anon", table: str = "public.wells", **more: str) -> dict[str, Any]:
    answer = console.get("/api/rows", table=table, role=role, **more)
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


def pages(console: Served, table: str, limit: int) -> Iterator[dict[str, Any]]:
    after: dict[str, str] = {}
    while True:
        page = read(console, table=table, limit=str(limit), **after)
        yield page
        if page["next"] is None:
            return
        after = {"after": page["next"]}


def moment(page: dict[str, Any], name: str = "as_of") -> datetime:
    return datetime.fromisoformat(page[name])


def now(admin: Connection) -> datetime:
    row = admin.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    found: datetime = row[0]
    return found


def count(admin: Connection) -> int:
    row = admin.execute("SELECT count(*) FROM public.wells").fetchone()
    assert row is not None
    return int(row[0])


# --- the stack --------------------------------------------------------------------------------------------------


def test_the_page_is_told_the_tables_with_their_columns_and_keys(console: Served) -> None:
    told = console.get("/api/stack").json()
    assert (told["stack"], told["roles"]) == ("dev", ["anon", "authenticated"])
    assert told["tables"] == [
        {
            "schema": "public",
            "name": "wells",
            "read": ["anon", "authenticated"],
            "write": ["authenticated"],
            "events": ["insert"],
            "primary_key": ["id"],
            "columns": [{"name": "id", "type": "bigint"}, {"name": "name", "type": "text"}],
            "unusable": None,
        }
    ]


def test_a_table_without_a_primary_key_says_what_to_add(database: str, admin: Connection) -> None:
    admin.execute("CREATE TABLE public.log (line text)")
    with console_of(database, "public.log") as console:
        (table,) = console.get("/api/stack").json()["tables"]
        assert (table["primary_key"], table["columns"]) == ([], [])
        assert "has no primary key" in table["unusable"]
        for answer in (
            console.get("/api/rows", table="public.log", role="anon"),
            console.send("POST", table="public.log", role="anon"),
        ):
            assert answer.status_code == 409
            assert "public.log: has no primary key" in answer.json()["error"]
            assert answer.json()["cure"] == "add one"


# --- reading as a role ------------------------------------------------------------------------------------------


def test_a_role_without_the_privilege_is_refused_in_postgres_own_words(console: Served, admin: Connection) -> None:
    admin.execute("REVOKE SELECT ON public.wells FROM anon")
    answer = console.get("/api/rows", table="public.wells", role="anon")
    assert (answer.status_code, answer.json()) == (403, {"error": "permission denied for table wells", "cure": None})
    assert read(console, "authenticated")["rows"] == []


def test_each_role_sees_the_rows_of_its_policies_and_its_claims_say_who_asks(
    console: Served, admin: Connection
) -> None:
    make(
        admin,
        "INSERT INTO public.wells (name) VALUES ('open'), ('of the console')",
        "DROP POLICY reading ON public.wells",
        "CREATE POLICY open ON public.wells FOR SELECT TO anon USING (name = 'open')",
        "CREATE POLICY own ON public.wells FOR SELECT TO authenticated USING (name = 'of the console' AND "
        f"current_setting('request.jwt.claims')::jsonb ->> 'sub' = '{SUBJECT}')",
    )
    assert [row["name"] for row in read(console, "anon")["rows"]] == ["open"]
    assert [row["name"] for row in read(console, "authenticated")["rows"]] == ["of the console"]


def test_columns_that_a_role_may_not_select_are_left_out(console: Served, admin: Connection) -> None:
    make(
        admin,
        "INSERT INTO public.wells (name) VALUES ('secret')",
        "REVOKE SELECT ON public.wells FROM anon",
        "GRANT SELECT (id) ON public.wells TO anon",
    )
    assert read(console)["rows"] == [{"id": 1}]


def test_values_are_as_realtime_sends_them_and_long_numbers_keep_their_digits(database: str, admin: Connection) -> None:
    make(
        admin,
        "CREATE TABLE public.kinds (id bigint PRIMARY KEY, document jsonb, exact numeric, code char(3), at timestamptz,"
        ' "100%" text[])',
        'INSERT INTO public.kinds VALUES (9007199254740993, \'{"b": [1, null], "a": {"ü": true}}\', '
        "12345678901234567890.000000000000000001, 'ab', '2026-01-02 03:04:05.678901+00', '{x,NULL}')",
    )
    open_for_reading(admin, "public.kinds")
    with console_of(database, "public.kinds") as console:
        answer = console.get("/api/rows", table="public.kinds", role="anon")
    assert '"id":9007199254740993,' in answer.text
    assert '"exact":12345678901234567890.000000000000000001,' in answer.text
    (row,) = answer.json()["rows"]
    assert row["document"] == {"a": {"ü": True}, "b": [1, None]}
    assert row["code"] == "a", "Realtime casts to the type without its length (v2.32.12)"
    assert row["at"] == "2026-01-02T03:04:05.678901+00:00"
    assert row["100%"] == ["x", None]


# --- pages ------------------------------------------------------------------------------------------------------


def test_pages_over_a_key_of_several_columns_hold_every_row_once_in_order(database: str, admin: Connection) -> None:
    make(
        admin,
        "CREATE TABLE public.samples (region text, taken timestamptz, number numeric(6, 1), "
        "PRIMARY KEY (number, region, taken))",
        "INSERT INTO public.samples SELECT r, timestamptz '2026-01-01' + t * interval '1 microsecond', n / 2.0 "
        "FROM unnest('{north,\"\",\"o''x \\\\% ü\"}'::text[]) r, generate_series(1, 3) t, generate_series(-2, 2) n",
    )
    open_for_reading(admin, "public.samples")
    with console_of(database, "public.samples") as console:
        found = list(pages(console, "public.samples", 7))
    assert [len(page["rows"]) for page in found] == [7] * 6 + [3]
    rows = [tuple(row.values()) for page in found for row in page["rows"]]
    expected = admin.execute(
        "SELECT region, taken, number FROM public.samples ORDER BY number, region, taken"
    ).fetchall()
    assert [(region, datetime.fromisoformat(taken), number) for region, taken, number in rows] == [
        (region, taken, float(number)) for region, taken, number in expected
    ]


def test_pages_over_a_text_key_follow_the_order_of_its_index(database: str, admin: Connection) -> None:
    make(
        admin,
        "CREATE TABLE public.codes (code text PRIMARY KEY)",
        "INSERT INTO public.codes VALUES ('b'), ('A'), ('a'), ('B'), ('ä'), ('')",
    )
    open_for_reading(admin, "public.codes")
    with console_of(database, "public.codes") as console:
        found = [row["code"] for page in pages(console, "public.codes", 1) for row in page["rows"]]
    assert found == [code for (code,) in admin.execute("SELECT code FROM public.codes ORDER BY code")]


def test_rows_that_come_and_go_between_two_pages_neither_shift_nor_repeat_the_others(
    console: Served, admin: Connection
) -> None:
    admin.execute("INSERT INTO public.wells (name) SELECT 'w' FROM generate_series(1, 4)")
    first = read(console, limit="2")
    make(admin, "DELETE FROM public.wells WHERE id = 1", "INSERT INTO public.wells (name) VALUES ('late')")
    rest = read(console, limit="500", after=first["next"])
    assert [row["id"] for row in first["rows"] + rest["rows"]] == [1, 2, 3, 4, 5]
    assert rest["next"] is None


def test_how_many_rows_there_are_is_known_of_a_single_page_and_estimated_of_more(
    console: Served, admin: Connection
) -> None:
    admin.execute("INSERT INTO public.wells (name) SELECT 'w' FROM generate_series(1, 30)")
    assert read(console)["total"] == 30
    assert read(console, limit="10")["total"] is None, "nobody has counted yet"
    admin.execute("ANALYZE public.wells")
    assert read(console, limit="10")["total"] == 30


@pytest.mark.parametrize("cursor", ["x", "WyIxIiwiMiJd", "WzFd", "WyJhYmMiXQ", "bnVsbA", "é"])
def test_what_is_no_cursor_of_the_table_is_refused(console: Served, cursor: str) -> None:
    answer = console.get("/api/rows", table="public.wells", role="anon", after=cursor)
    assert (answer.status_code, answer.json()["error"]) == (400, "after: is no cursor of public.wells")


# --- as_of: what committed before it is in the rows -------------------------------------------------------------


def test_an_open_transaction_is_not_in_the_rows_and_commits_no_earlier_than_they_say(
    console: Served, database: str, admin: Connection
) -> None:
    with psycopg.connect(database) as writer:
        writer.execute("INSERT INTO public.wells (name) VALUES ('open')")
        began = writer.execute("SELECT now()").fetchone()
        assert began is not None
        admin.execute("INSERT INTO public.wells (name) VALUES ('committed meanwhile')")
        committed = now(admin)
        page = read(console)
        assert [row["name"] for row in page["rows"]] == ["committed meanwhile"]
        assert moment(page) <= began[0], "the open one may still commit, at any time from its begin on"
        assert moment(page, "read_at") >= committed - timedelta(milliseconds=1)
        writer.commit()
    after = now(admin)
    page = read(console)
    assert [row["name"] for row in page["rows"]] == ["open", "committed meanwhile"]
    assert moment(page) >= after - timedelta(milliseconds=1)


def test_a_commit_that_has_its_timestamp_and_is_not_to_be_seen_yet_is_no_earlier_than_the_rows_say(
    console: Served, database: str, admin: Connection
) -> None:
    """It waits for a standby: what Realtime decodes of it is told already, and no snapshot has it."""

    def write() -> None:
        with psycopg.connect(database, application_name="waits") as writer:
            writer.execute("SET synchronous_commit = on")
            writer.execute("INSERT INTO public.wells (name) VALUES ('waiting')")
            writer.commit()

    make(admin, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
    try:
        until(admin, "SELECT 1 WHERE current_setting('synchronous_standby_names') = 'nobody'")
        thread = threading.Thread(target=write)
        thread.start()
        until(admin, "SELECT 1 FROM pg_stat_activity WHERE application_name = 'waits' AND wait_event = 'SyncRep'")
        committed_before = now(admin)
        page = read(console)
        assert page["rows"] == []
        began = admin.execute("SELECT xact_start FROM pg_stat_activity WHERE application_name = 'waits'").fetchone()
        assert began is not None
        assert moment(page) <= began[0] < committed_before
    finally:
        make(admin, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
    thread.join(20)
    assert [row["name"] for row in read(console)["rows"]] == ["waiting"]


def test_transactions_that_have_not_written_or_write_elsewhere_hold_nothing_back(
    console: Served, database: str, server: str, admin: Connection
) -> None:
    with ExitStack() as opened:
        reader = opened.enter_context(psycopg.connect(database))
        reader.execute("SELECT count(*) FROM public.wells")
        elsewhere = opened.enter_context(psycopg.connect(server))
        elsewhere.execute("SELECT pg_current_xact_id()")
        before = now(admin)
        assert moment(read(console)) >= before - timedelta(milliseconds=1)


def test_of_a_session_whose_activity_is_not_tracked_the_begin_counts(
    console: Served, database: str, admin: Connection
) -> None:
    with psycopg.connect(database, options="-c track_activities=off") as writer:
        began = writer.execute("SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()").fetchone()
        writer.execute("INSERT INTO public.wells (name) VALUES ('unseen')")
        assert began is not None
        assert moment(read(console)) <= began[0]


def test_every_commit_before_as_of_is_in_the_rows_while_many_write(
    console: Served, database: str, admin: Connection
) -> None:
    """Each writer's own clock, before its commit, is the earliest that the commit's timestamp can be."""
    commits: list[tuple[int, datetime]] = []
    ended = threading.Event()

    def write() -> None:
        with psycopg.connect(database) as writer:
            while not ended.is_set():
                row = writer.execute(
                    "INSERT INTO public.wells (name) VALUES ('busy') RETURNING id, clock_timestamp()"
                ).fetchone()
                writer.commit()
                done = writer.execute("SELECT clock_timestamp()").fetchone()
                writer.rollback()
                assert row is not None
                assert done is not None
                commits.append((row[0], done[0]))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        found = [read(console, limit="1000") for _ in range(6)]
    finally:
        ended.set()
        for thread in threads:
            thread.join(20)
    assert len(commits) > 50
    for page in found:
        if page["next"] is None:
            there = {row["id"] for row in page["rows"]}
            assert [id for id, done in commits if done < moment(page) and id not in there] == []


# --- test rows --------------------------------------------------------------------------------------------------

AS = {"table": "public.wells", "role": "authenticated"}


def test_a_test_row_is_inserted_changed_and_deleted_as_the_role(console: Served, admin: Connection) -> None:
    made = console.send("POST", **AS)
    assert made.status_code == 201
    key, row = made.json()["key"], made.json()["row"]
    assert row == {"id": 1, "name": "probe"}
    changed = console.send("PATCH", **AS, key=key)
    assert changed.status_code == 200
    assert changed.json()["row"]["name"] != "probe"
    again = console.send("PATCH", **AS, key=key)
    assert again.json()["row"]["name"] != changed.json()["row"]["name"], "each change is one"
    gone = console.send("DELETE", **AS, key=key)
    assert (gone.status_code, gone.json()) == (200, {"deleted": 1})
    assert count(admin) == 0
    assert console.send("DELETE", **AS, key=key).status_code == 403, "it is no test row any more"


def test_values_of_ones_own_go_over_those_of_the_sample(console: Served, admin: Connection) -> None:
    key = console.send("POST", **AS, values={"name": "it's 100% mine"}).json()["key"]
    assert admin.execute("SELECT name FROM public.wells").fetchall() == [("it's 100% mine",)]
    assert console.send("PATCH", **AS, key=key, values={"name": "another"}).json() == {
        "row": {"id": 1, "name": "another"}
    }


@pytest.mark.parametrize(
    ("values", "status", "error"),
    [
        ({"nothing": 1}, 400, "public.wells: has no column 'nothing'"),
        ({"id": "one"}, 400, 'invalid input syntax for type bigint: "one"'),
        ({"name": None}, 409, 'null value in column "name" of relation "wells" violates not-null constraint'),
        ({"id": 5}, 409, 'cannot insert a non-DEFAULT value into column "id"'),
    ],
)
def test_values_that_the_table_does_not_take_are_refused_in_postgres_own_words(
    console: Served, admin: Connection, values: dict[str, Any], status: int, error: str
) -> None:
    answer = console.send("POST", **AS, values=values)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert count(admin) == 0


def test_a_test_row_keeps_its_key(console: Served) -> None:
    key = console.send("POST", **AS).json()["key"]
    answer = console.send("PATCH", **AS, key=key, values={"id": 7})
    assert (answer.status_code, answer.json()["error"]) == (400, "id is of the primary key")


def test_what_the_role_may_not_do_is_403_and_what_it_does_not_reach_404(console: Served, admin: Connection) -> None:
    anon = {"table": "public.wells", "role": "anon"}
    refused = console.send("POST", **anon)
    assert (refused.status_code, refused.json()["error"]) == (403, "permission denied for table wells")
    key = console.send("POST", **AS).json()["key"]
    for method in ("PATCH", "DELETE"):
        assert console.send(method, **anon, key=key).status_code == 403
    make(
        admin,
        "DROP POLICY inserting ON public.wells",
        "DROP POLICY updating ON public.wells",
        "DROP POLICY deleting ON public.wells",
    )
    refused = console.send("POST", **AS)
    assert refused.status_code == 403
    assert refused.json()["error"] == 'new row violates row-level security policy for table "wells"'
    for method in ("PATCH", "DELETE"):
        hidden = console.send(method, **AS, key=key)
        assert (hidden.status_code, hidden.json()["error"]) == (404, "no row that this role may change")
    assert count(admin) == 1


def test_rows_of_the_application_are_not_the_consoles_to_change(console: Served, admin: Connection) -> None:
    admin.execute("INSERT INTO public.wells (name) VALUES ('theirs')")
    for method in ("PATCH", "DELETE"):
        answer = console.send(method, **AS, key={"id": 1})
        assert (answer.status_code, answer.json()["error"]) == (403, "not a test row of this console")
    assert admin.execute("SELECT name FROM public.wells").fetchall() == [("theirs",)]


def test_a_role_that_may_write_and_not_read_is_given_the_key_and_no_row(console: Served, admin: Connection) -> None:
    make(admin, "DROP POLICY reading ON public.wells")
    answer = console.send("POST", **AS)
    assert (answer.status_code, answer.json()) == (201, {"row": None, "key": {"id": 2}})
    assert count(admin) == 1, "and the console knows it, to remove it"


def test_a_key_that_the_browser_has_rounded_is_still_that_of_its_test_row(database: str, admin: Connection) -> None:
    make(
        admin,
        "CREATE TABLE public.big (id bigint PRIMARY KEY, done boolean NOT NULL)",
        "GRANT ALL ON public.big TO anon",
    )
    with console_of(database, "public.big") as console:
        key = console.send("POST", table="public.big", role="anon").json()["key"]
        assert key["id"] > 2**53
        rounded = {"id": float(key["id"])}
        changed = console.send("PATCH", table="public.big", role="anon", key=rounded)
        assert changed.json()["row"] == {"id": key["id"], "done": False}, "the other value of two"
        assert console.send("DELETE", table="public.big", role="anon", key=rounded).status_code == 200


def test_a_table_that_takes_no_sample_row_says_why(database: str, admin: Connection) -> None:
    make(
        admin,
        "CREATE TABLE public.parents (id int PRIMARY KEY)",
        "CREATE TABLE public.children (id serial PRIMARY KEY, parent int NOT NULL REFERENCES public.parents)",
    )
    with console_of(database, "public.children") as console:
        answer = console.send("POST", table="public.children", role="anon")
    assert answer.status_code == 409
    assert "parent must name a row of public.parents" in answer.json()["error"]


def test_a_table_that_keeps_its_rows_is_given_none(console: Served, admin: Connection) -> None:
    admin.execute("CREATE RULE keep AS ON DELETE TO public.wells DO INSTEAD NOTHING")
    answer = console.send("POST", **AS)
    assert answer.status_code == 409
    assert "keeps its rows from being deleted" in answer.json()["error"]
    assert count(admin) == 0


def test_a_lock_that_somebody_holds_is_503_and_says_where_to_look(
    console: Served, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "ANSWER_SECONDS", 1.0)
    with psycopg.connect(database) as holder:
        holder.execute("LOCK TABLE public.wells IN ACCESS EXCLUSIVE MODE")
        answer = console.get("/api/rows", table="public.wells", role="anon")
    assert answer.status_code == 503
    assert "pg_stat_activity" in answer.json()["cure"]


# --- the end ----------------------------------------------------------------------------------------------------


def test_test_rows_that_are_left_are_removed_at_the_end_whoever_may_delete(wells: Outputs, admin: Connection) -> None:
    admin.execute("INSERT INTO public.wells (name) VALUES ('theirs')")
    with served(of_outputs(wells, stack=None)) as console:
        for _ in range(3):
            assert console.send("POST", **AS).status_code == 201
        admin.execute("DROP POLICY deleting ON public.wells")
        assert count(admin) == 4
    assert admin.execute("SELECT name FROM public.wells").fetchall() == [("theirs",)]


def test_a_test_row_that_cannot_be_removed_is_named_with_its_statement(
    wells: Outputs, admin: Connection, capfd: pytest.CaptureFixture[str]
) -> None:
    with served(of_outputs(wells, stack=None)) as console:
        for _ in range(2):
            assert console.send("POST", **AS).status_code == 201
        make(
            admin,
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'kept'; END $$",
            "CREATE TRIGGER keep BEFORE DELETE ON public.wells FOR EACH ROW WHEN (old.id = 1) EXECUTE FUNCTION keep()",
        )
    assert count(admin) == 1
    said = capfd.readouterr().err
    assert "1 test rows could not be removed; remove them by hand:" in said
    assert 'DELETE FROM "public"."wells" WHERE "id" = ' in said


def test_a_signal_ends_it_with_its_test_rows_removed(wells: Outputs, admin: Connection, tmp_path: Path) -> None:
    document = wells.model_dump(mode="json") | {
        "service_role_key": wells.service_role_key.get_secret_value(),
        "database_password": wells.database_password.get_secret_value(),
    }
    (tmp_path / "outputs.json").write_text(json.dumps(document))
    with subprocess.Popen(
        [sys.executable, "-m", "doctor", "console", "--outputs", str(tmp_path / "outputs.json"), "--port", "0"],
        cwd=PROJECT,
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip().partition(": ")[2]
        with httpx.Client(base_url=url.partition("?")[0], trust_env=False) as client:
            client.get(url)
            assert client.post("/api/rows", json=AS).status_code == 201
            with client.stream("GET", "/api/flow") as flow:
                told = events(flow)
                assert next(told)[1]["flowing"] is False
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=20) == 0
    assert count(admin) == 0


# --- the flow ---------------------------------------------------------------------------------------------------


def test_the_flow_says_that_no_slot_is_read_and_that_the_database_went_and_came_back(
    console: Served, admin: Connection
) -> None:
    with console.client.stream("GET", "/api/flow") as answer:
        told = (state for _, state in events(answer))
        first = next(told)
        assert (first["flowing"], "no replication slot" in first["reason"]) == (False, True)
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'doctor probe'"
        )
        down = next(state for state in told if state["reason"] != first["reason"])
        assert "terminating connection" in down["reason"] or "server closed" in down["reason"]
        back = next(state for state in itertools.islice(told, 5) if state["reason"] == first["reason"])
        assert back["generation"] == first["generation"], "no slot was made in between"


def test_the_page_hears_all_of_this_as_utc_with_milliseconds(console: Served) -> None:
    page = read(console)
    for name in ("as_of", "read_at"):
        assert page[name].endswith("Z")
        assert len(page[name]) == len("2026-01-02T03:04:05.678Z")
        assert abs(moment(page, name) - datetime.now(UTC)) < timedelta(minutes=1)
