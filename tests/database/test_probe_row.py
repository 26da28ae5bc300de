"""The probe's row on a real Postgres: one for any table, written as a user would, and taken away again."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, LiteralString, TypeVar

import jwt
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from doctor import probe, removal
from doctor.api_role import claims_of
from doctor.catalog import Connection, UnusableTableError, read_table
from doctor.database import connected
from doctor.failures import Cause, Failure, ProbeFailedError
from doctor.outputs import Outputs
from doctor.plan import Chosen, Written, choose, plans, write
from doctor.rendering import selectable
from doctor.sample_row import SampleRow, sample_row
from doctor.silence import SLOTS, Slots, decoding, silence, slots
from tests.database.conftest import until
from tests.unit.realtime_server import live, server

ResultT = TypeVar("ResultT")
Admin = psycopg.Connection[tuple[Any, ...]]
SIGNED_WITH = "a-secret-of-32-bytes-or-a-bit-more"


def key(role: str) -> str:
    return jwt.encode({"role": role, "exp": 4_102_444_800, "team": "drillers"}, SIGNED_WITH)


def outputs_of(database: str, *tables: tuple[str, str, str]) -> Outputs:
    """The outputs of a stack on that database; tables as (name, who reads, who writes)."""
    parts = conninfo_to_dict(database)
    return Outputs.model_validate(
        {
            "url": "http://127.0.0.1:1",
            "realtime_url": "ws://127.0.0.1:1/realtime/v1",
            "rest_url": "http://127.0.0.1:1/realtime/v1/api",
            "tenant": "supabase-realtime",
            "anon_key": key("anon"),
            "anon_key_expires": "2100-01-01T00:00:00+00:00",
            "service_role_key": key("service_role"),
            "database": {
                "host": parts["host"],
                "port": int(str(parts.get("port") or 5432)),
                "name": parts["dbname"],
                "user": parts["user"],
            },
            "database_password": parts.get("password") or "",
            "tables": [
                {"table": name, "read": read.split(), "write": write.split(), "events": ["insert"]}
                for name, read, write in tables
            ],
        }
    )


@pytest.fixture
def ask(database: str) -> Callable[[Callable[[Connection], Awaitable[ResultT]]], ResultT]:
    """Runs a question on a connection of the doctor's own, as the user that Realtime connects as."""

    def run(question: Callable[[Connection], Awaitable[ResultT]]) -> ResultT:
        async def asked() -> ResultT:
            async with connected(outputs_of(database), 20) as connection:
                return await question(connection)

        return asyncio.run(asked())

    return run


Ask = Callable[[Callable[[Connection], Awaitable[Any]]], Any]


def make(admin: Admin, *statements: LiteralString) -> None:
    for statement in statements:
        admin.execute(statement)


def open_to_anon(admin: Admin, table: LiteralString) -> None:
    """The table as the stack leaves one declared with read and write for anon."""
    admin.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    admin.execute(f"GRANT SELECT, INSERT, DELETE ON {table} TO anon, service_role")
    admin.execute(f"CREATE POLICY reading ON {table} FOR SELECT TO anon USING (true)")
    admin.execute(f"CREATE POLICY writing ON {table} FOR INSERT TO anon WITH CHECK (true)")


WELLS: LiteralString = (
    "CREATE TABLE public.wells (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL)"
)


@pytest.fixture
def wells(database: str, admin: Admin) -> Outputs:
    """A stack whose one table anon may read and write."""
    admin.execute(WELLS)
    open_to_anon(admin, "public.wells")
    return outputs_of(database, ("public.wells", "anon", "anon"))


def row_for(ask: Ask, name: str) -> SampleRow:
    async def question(connection: Connection) -> SampleRow:
        return await sample_row(connection, await read_table(connection, "public", name), random.Random(1))

    row: SampleRow = ask(question)
    return row


def inserted(ask: Ask, name: str, count: int = 1) -> list[SampleRow]:
    """Sample rows for a table, each inserted beside the others."""

    async def question(connection: Connection) -> list[SampleRow]:
        table = await read_table(connection, "public", name)
        rows = [await sample_row(connection, table, random.SystemRandom()) for _ in range(count)]
        for row in rows:
            await connection.execute(*row.insert())
        await connection.commit()
        return rows

    rows: list[SampleRow] = ask(question)
    return rows


def refusal(ask: Ask, name: str) -> str:
    with pytest.raises(UnusableTableError) as refused:
        row_for(ask, name)
    return str(refused.value)


# --- a row for any table ----------------------------------------------------------------------------------------

TYPES = (
    "smallint", "integer", "bigint", "oid", "numeric", "numeric(4)", "numeric(3,3)", "numeric(6,2)", "real",
    "double precision", "money", "text", "varchar", "varchar(2)", "char(1)", "char(40)", "name", '"char"', "uuid",
    "boolean", "date", "time", "timetz", "timestamp", "timestamptz", "interval", "json", "jsonb", "bytea", "bit(3)",
    "varbit(5)", "inet", "cidr", "macaddr", "macaddr8", "point", "line", "lseg", "box", "path", "polygon", "circle",
    "tsvector", "tsquery", "pg_lsn", "integer[]", "text[]", "varchar(3)[]", "jsonb[]", "uuid[][]", "int4range",
    "numrange", "tstzrange", "daterange", "int8multirange", "mood", "mood[]", "pair", "code", "code[]", "even",
)  # fmt: skip


def test_a_row_can_be_made_of_every_type(ask: Ask, admin: Admin) -> None:
    make(
        admin,
        "CREATE TYPE mood AS ENUM ('glad', 'it''s so-so')",
        "CREATE TYPE pair AS (a integer, b text)",
        "CREATE DOMAIN code AS text CHECK (VALUE ~ '^[A-Z]{2,3}$') NOT NULL",
        "CREATE DOMAIN positive AS integer CHECK (VALUE > 0)",
        "CREATE DOMAIN even AS positive CHECK (VALUE % 2 = 0)",
    )
    columns = ", ".join(f"c{number} {type_} NOT NULL" for number, type_ in enumerate(TYPES))
    admin.execute(f"CREATE TABLE public.zoo (id uuid PRIMARY KEY, {columns})")
    inserted(ask, "zoo", 2)
    assert admin.execute("SELECT count(*) FROM public.zoo").fetchone() == (2,)


@pytest.mark.parametrize(
    "type_",
    ["smallint", "integer", "numeric(5,2)", "text", "varchar(4)", "char(3)", "uuid", "date", "timestamptz", "bytea"],
)
def test_rows_of_unique_columns_stand_beside_each_other(ask: Ask, admin: Admin, type_: LiteralString) -> None:
    admin.execute(f"CREATE TABLE public.t (k {type_} PRIMARY KEY, u {type_} NOT NULL UNIQUE)")
    inserted(ask, "t", 5)
    assert admin.execute("SELECT count(*) FROM public.t").fetchone() == (5,)


def test_columns_that_fill_themselves_are_left_alone(ask: Ask, admin: Admin) -> None:
    make(
        admin,
        "CREATE DOMAIN defaulted AS integer DEFAULT 5 NOT NULL",
        """CREATE TABLE public.t (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, other bigint GENERATED BY DEFAULT AS IDENTITY,
            number serial, created timestamptz NOT NULL DEFAULT now(), note text, five defaulted,
            twice integer NOT NULL GENERATED ALWAYS AS (number * 2) STORED
        )""",
    )
    assert row_for(ask, "t").values == {}
    inserted(ask, "t")
    assert admin.execute("SELECT five FROM public.t").fetchone() == (5,)


def test_a_foreign_key_is_given_a_row_that_exists(ask: Ask, admin: Admin) -> None:
    make(
        admin,
        "CREATE TABLE public.clients (region text, number integer, PRIMARY KEY (region, number))",
        "INSERT INTO public.clients VALUES ('north', 7)",
        """CREATE TABLE public.orders (
            id serial PRIMARY KEY, number integer NOT NULL, region text NOT NULL, parent integer REFERENCES orders,
            FOREIGN KEY (region, number) REFERENCES public.clients
        )""",
    )
    assert inserted(ask, "orders")[0].values == {"number": "7", "region": "north"}


@pytest.mark.parametrize(
    ("definition", "columns"),
    [
        ("client integer PRIMARY KEY REFERENCES public.clients", "client"),
        ("id serial PRIMARY KEY, client integer NOT NULL UNIQUE REFERENCES public.clients", "client"),
        (
            "client integer REFERENCES public.clients, of integer REFERENCES public.clients, PRIMARY KEY (client, of)",
            "client, of",
        ),
    ],
)
def test_a_row_that_would_stand_in_for_one_of_the_applications_is_not_made(
    ask: Ask, admin: Admin, definition: LiteralString, columns: str
) -> None:
    """What the application upserts there while the row is in its place would be deleted with it."""
    make(
        admin,
        "CREATE TABLE public.clients (id integer PRIMARY KEY)",
        "INSERT INTO public.clients VALUES (1), (2)",
        f"CREATE TABLE public.profiles ({definition})",
    )
    assert f"public.profiles: there is one row for each value of {columns} in the rows it refers" in refusal(
        ask, "profiles"
    )


def test_rows_of_one_client_are_told_apart_by_the_rest_of_their_key(ask: Ask, admin: Admin) -> None:
    make(
        admin,
        "CREATE TABLE public.clients (id integer PRIMARY KEY)",
        "INSERT INTO public.clients VALUES (1)",
        "CREATE TABLE public.orders (client integer REFERENCES public.clients, number integer, note text,"
        " PRIMARY KEY (client, number))",
        "CREATE UNIQUE INDEX ON public.orders (client, lower(note))",
    )
    inserted(ask, "orders", 3)
    assert admin.execute("SELECT count(*), count(DISTINCT client) FROM public.orders").fetchone() == (3, 1)


def test_a_foreign_key_to_an_empty_table_is_named(ask: Ask, admin: Admin) -> None:
    make(
        admin,
        "CREATE TABLE public.clients (id integer PRIMARY KEY)",
        "CREATE TABLE public.orders (id serial PRIMARY KEY, client integer NOT NULL REFERENCES public.clients)",
    )
    assert refusal(ask, "orders") == (
        "public.orders: client must name a row of public.clients (orders_client_fkey), which has none to offer; "
        "insert one there, or declare another table"
    )


def test_check_constraints_are_satisfied(ask: Ask, admin: Admin) -> None:
    admin.execute(
        """CREATE TABLE public.t (
            id serial PRIMARY KEY,
            status text NOT NULL CHECK (status IN ('open', 'it''s closed')),
            mail text NOT NULL CHECK (mail LIKE '%_@_%._%'),
            low integer NOT NULL CHECK (low > 1234), high integer NOT NULL, CHECK (high > low),
            a integer, b integer, CHECK (num_nonnulls(a, b) = 1),
            size numeric(6, 2) NOT NULL CHECK (size BETWEEN 33.5 AND 34),
            since date NOT NULL CHECK (since >= DATE '2020-01-01'),
            age integer NOT NULL DEFAULT 7 CHECK (age > 5)
        )"""
    )
    inserted(ask, "t")


def test_constraints_that_no_candidate_satisfies_are_named(ask: Ask, admin: Admin) -> None:
    make(
        admin,
        "CREATE DOMAIN isbn AS text CHECK (VALUE ~ '^97[89]-\\d{10}$')",
        "CREATE TABLE public.books (id isbn PRIMARY KEY)",
        "CREATE TABLE public.t (id serial PRIMARY KEY, n integer NOT NULL CONSTRAINT odd CHECK (n * n = 7))",
    )
    assert "id is isbn, which accepts none of the sample values (CHECK" in refusal(ask, "books")
    assert "no sample value of n satisfies its constraint (odd: " in refusal(ask, "t")


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ("CREATE TABLE public.t (name text)", "public.t: has no primary key, and Realtime sends no rows"),
        ("CREATE VIEW public.t AS SELECT 1", "public.t: there is no such table"),
        ("CREATE TABLE public.t (id regclass PRIMARY KEY)", "id is regclass, for which no sample value is known"),
    ],
)
def test_a_table_that_no_row_can_be_made_for_is_named(
    ask: Ask, admin: Admin, definition: LiteralString, message: str
) -> None:
    admin.execute(definition)
    assert message in refusal(ask, "t")


def test_names_that_need_quoting_do_no_harm(ask: Ask, admin: Admin) -> None:
    admin.execute(
        """CREATE TABLE public."a ""b%s" ("id; --" text PRIMARY KEY, "%d" int NOT NULL CHECK ("%d" % 2 = 0))"""
    )
    inserted(ask, 'a "b%s')


# --- written as a user would ------------------------------------------------------------------------------------


async def chosen_for(connection: Connection, outputs: Outputs) -> Chosen:
    return (await choose(connection, outputs, random.SystemRandom()))[0]


async def written_to(connection: Connection, outputs: Outputs) -> tuple[Chosen, Written]:
    """A row written to the stack's table and not yet committed."""
    chosen = await chosen_for(connection, outputs)
    await connection.rollback()
    row = await sample_row(connection, chosen.table, random.SystemRandom())
    return chosen, await write(connection, chosen, row, outputs)


def test_a_row_is_not_committed_before_its_time_is_taken(ask: Ask, admin: Admin, wells: Outputs) -> None:
    """Otherwise its event may come before anybody waits for it, and the latency is too short."""

    async def question(connection: Connection) -> list[Any]:
        _, written = await written_to(connection, wells)
        before = admin.execute("SELECT count(*) FROM public.wells").fetchone()
        await connection.commit()
        return [before, admin.execute("SELECT id::text FROM public.wells").fetchone(), written.key]

    before, after, written_key = ask(question)
    assert before == (0,)
    assert after == written_key


def test_a_row_is_written_by_the_role_of_the_key_with_its_claims(ask: Ask, admin: Admin, wells: Outputs) -> None:
    make(
        admin,
        "ALTER TABLE public.wells ADD writer text DEFAULT current_user",
        "ALTER TABLE public.wells ADD team text DEFAULT current_setting('request.jwt.claims', true)::json ->> 'team'",
        "DROP POLICY writing ON public.wells",
        """CREATE POLICY writing ON public.wells FOR INSERT TO anon
            WITH CHECK (current_setting('request.jwt.claims')::json ->> 'role' = 'anon' AND team = 'drillers')""",
    )

    async def question(connection: Connection) -> Written:
        return (await written_to(connection, wells))[1]

    assert ask(question).expected | {"id": 0} == {"id": 0, "name": "probe", "writer": "anon", "team": "drillers"}


def test_the_event_is_expected_to_show_the_row_as_realtime_does_to_that_role(
    ask: Ask, admin: Admin, database: str
) -> None:
    """Seen on v2.32.12: char(5) loses its modifier and comes as its first character."""
    make(
        admin,
        """CREATE TABLE public.t (
            id integer PRIMARY KEY, code char(5) NOT NULL DEFAULT 'abc', flags bit(4) DEFAULT '1010', nothing text,
            numbers integer[] DEFAULT '{1,2}', data jsonb DEFAULT '{"a": 1}', secret text DEFAULT 'hidden'
        )""",
        "ALTER TABLE public.t ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY everything ON public.t TO anon USING (true)",
        "GRANT INSERT, SELECT (id, code, flags, nothing, numbers, data) ON public.t TO anon",
    )

    async def question(connection: Connection) -> Written:
        return (await written_to(connection, outputs_of(database, ("public.t", "anon", "anon"))))[1]

    assert ask(question).expected | {"id": 0} == {
        "id": 0,
        "code": "a",
        "flags": "1",
        "nothing": None,
        "numbers": [1, 2],
        "data": {"a": 1},
    }


def failure(ask: Ask, outputs: Outputs) -> Failure:
    with pytest.raises(ProbeFailedError) as failed:
        ask(lambda connection: chosen_for(connection, outputs))
    return failed.value.failure


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("DROP POLICY writing ON public.wells", (Cause.INSERT_REFUSED, "no INSERT policy of public.wells accepts")),
        ("DROP POLICY reading ON public.wells", (Cause.UNREADABLE, "no SELECT policy of public.wells lets anon see")),
        ("REVOKE INSERT ON public.wells FROM anon", (Cause.INSERT_REFUSED, "anon lacks INSERT on wells")),
        ("REVOKE SELECT ON public.wells FROM anon", (Cause.INSERT_REFUSED, "anon lacks SELECT on wells")),
        (
            "REVOKE USAGE ON SCHEMA public FROM public, anon",
            (Cause.INSERT_REFUSED, "anon lacks USAGE on schema public"),
        ),
    ],
)
def test_a_refused_insert_says_what_the_role_lacks(
    ask: Ask, admin: Admin, wells: Outputs, fault: LiteralString, expected: tuple[Cause, str]
) -> None:
    admin.execute(fault)
    found = failure(ask, wells)
    assert found.cause is expected[0]
    assert expected[1] in found.likely


# --- which table ------------------------------------------------------------------------------------------------


def test_trying_a_table_leaves_nothing_in_it(ask: Ask, admin: Admin, wells: Outputs) -> None:
    chosen = ask(lambda connection: chosen_for(connection, wells))
    assert str(chosen.table) == "public.wells"
    assert [column.name for column in chosen.columns] == ["id", "name"]
    assert admin.execute("SELECT count(*) FROM public.wells").fetchone() == (0,)


def test_a_table_that_no_row_fits_is_passed_over_with_a_note(
    ask: Ask, admin: Admin, database: str, wells: Outputs
) -> None:
    make(admin, "CREATE TABLE public.clients (id integer PRIMARY KEY)")
    make(admin, "CREATE TABLE public.orders (id serial PRIMARY KEY, client integer NOT NULL REFERENCES public.clients)")
    open_to_anon(admin, "public.orders")
    outputs = outputs_of(database, ("public.orders", "anon", "anon"), ("public.wells", "anon", "anon"))

    async def question(connection: Connection) -> tuple[Chosen, list[str]]:
        return await choose(connection, outputs, random.SystemRandom())

    chosen, notes = ask(question)
    assert str(chosen.table) == "public.wells"
    assert [note.partition(";")[0] for note in notes] == [
        "public.orders: client must name a row of public.clients (orders_client_fkey), which has none to offer"
    ]


def test_a_refused_writer_is_a_failure_and_no_reason_to_write_as_another(
    ask: Ask, admin: Admin, database: str, wells: Outputs
) -> None:
    make(admin, "CREATE TABLE public.news (id serial PRIMARY KEY)", "DROP POLICY writing ON public.wells")
    open_to_anon(admin, "public.news")
    outputs = outputs_of(database, ("public.wells", "anon", "anon"), ("public.news", "anon", ""))
    assert failure(ask, outputs).cause is Cause.INSERT_REFUSED


def test_a_stack_without_a_table_to_probe_is_told_to_declare_one(ask: Ask, database: str) -> None:
    found = failure(ask, outputs_of(database))
    assert found.cause is Cause.NO_TABLE
    assert "declare one in the setting tables" in found.likely


# --- taken away again -------------------------------------------------------------------------------------------


def test_the_row_is_removed_and_no_other(ask: Ask, admin: Admin, database: str) -> None:
    make(admin, "CREATE TABLE public.t (a text, b integer, PRIMARY KEY (a, b))", "INSERT INTO t VALUES ('it''s', 1)")
    open_to_anon(admin, "public.t")
    outputs = outputs_of(database, ("public.t", "anon", "anon"))

    async def question(connection: Connection) -> Failure | None:
        chosen, written = await written_to(connection, outputs)
        await connection.commit()
        return await removal.remove(outputs, connection, chosen.table, written, committed=True)

    assert ask(question) is None
    assert admin.execute("SELECT a, b FROM public.t").fetchall() == [("it's", 1)]


def test_a_row_whose_commit_was_broken_off_is_removed_once_it_can_be_seen(
    ask: Ask, admin: Admin, wells: Outputs
) -> None:
    async def question(connection: Connection) -> Failure | None:
        chosen, written = await written_to(connection, wells)
        removing = asyncio.ensure_future(removal.remove(wells, connection, chosen.table, written, committed=False))
        done, _ = await asyncio.wait({removing}, timeout=1)
        assert not done, "the row of a transaction under way cannot be removed"
        await connection.commit()
        return await removing

    assert ask(question) is None
    assert admin.execute("SELECT count(*) FROM public.wells").fetchone() == (0,)


def test_a_row_is_removed_though_the_connection_that_wrote_it_is_gone(ask: Ask, admin: Admin, wells: Outputs) -> None:
    async def question(connection: Connection) -> Failure | None:
        chosen, written = await written_to(connection, wells)
        await connection.commit()
        admin.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
        return await removal.remove(wells, connection, chosen.table, written, committed=True)

    assert ask(question) is None
    assert admin.execute("SELECT count(*) FROM public.wells").fetchone() == (0,)


KEEP: LiteralString = (
    "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'rows are kept'; END $$;"
    "CREATE TRIGGER keep BEFORE DELETE ON public.wells FOR EACH ROW EXECUTE FUNCTION keep()"
)
SOFT_BY_RULE: LiteralString = (
    "ALTER TABLE public.wells ADD deleted_at timestamptz;"
    "CREATE RULE soft AS ON DELETE TO public.wells DO INSTEAD"
    " UPDATE public.wells SET deleted_at = now() WHERE id = old.id"
)
SOFT_BY_TRIGGER: LiteralString = (
    "ALTER TABLE public.wells ADD deleted_at timestamptz;"
    "CREATE FUNCTION soft() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " UPDATE public.wells SET deleted_at = now() WHERE id = old.id; RETURN NULL; END $$;"
    "CREATE TRIGGER soft BEFORE DELETE ON public.wells FOR EACH ROW EXECUTE FUNCTION soft()"
)
CHILD: LiteralString = (
    "CREATE TABLE public.logs (well bigint REFERENCES public.wells DEFERRABLE INITIALLY DEFERRED);"
    "CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
    " INSERT INTO public.logs VALUES (new.id); RETURN NULL; END $$;"
    "CREATE TRIGGER log AFTER INSERT ON public.wells FOR EACH ROW EXECUTE FUNCTION log()"
)


@pytest.mark.parametrize(
    ("keeping", "reason"),
    [
        (KEEP, " (rows are kept)"),
        (SOFT_BY_RULE, ""),
        (SOFT_BY_TRIGGER, ""),
        (CHILD, ' (update or delete on table "wells" violates foreign key constraint'),
    ],
)
def test_a_table_that_keeps_its_rows_is_not_used(
    ask: Ask, admin: Admin, wells: Outputs, keeping: LiteralString, reason: str
) -> None:
    """Neither by the probe, nor the watch, nor the load test, which all choose it in this way."""
    make(admin, "CREATE TABLE public.news (id serial PRIMARY KEY)", keeping)
    open_to_anon(admin, "public.news")
    make(admin, "GRANT USAGE ON SEQUENCE public.news_id_seq TO anon")
    (table,) = wells.tables
    outputs = wells.model_copy(update={"tables": (table, table.model_copy(update={"table": "public.news"}))})

    async def question(connection: Connection) -> tuple[Chosen, list[str]]:
        return await choose(connection, outputs, random.SystemRandom())

    chosen, notes = ask(question)
    assert str(chosen.table) == "public.news"
    (note,) = notes
    assert note.startswith(f"public.wells: a trigger, rule or policy keeps its rows from being deleted{reason}")
    assert note.endswith("; declare another table")
    assert admin.execute("SELECT count(*) FROM public.wells").fetchone() == (0,)


def test_a_trigger_of_the_deletion_is_tried_as_who_will_delete(ask: Ask, admin: Admin, wells: Outputs) -> None:
    make(
        admin,
        """CREATE FUNCTION mine() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF coalesce(current_setting('request.jwt.claims', true), '') <> '' OR current_user = 'anon' THEN
                RAISE 'only the owner deletes';
            END IF; RETURN old; END $$""",
        "CREATE TRIGGER mine BEFORE DELETE ON public.wells FOR EACH ROW EXECUTE FUNCTION mine()",
    )
    assert str(ask(lambda connection: chosen_for(connection, wells)).table) == "public.wells"


@pytest.mark.parametrize(
    ("keeping", "reason"), [(KEEP, "rows are kept"), (SOFT_BY_RULE, "the database deletes nothing: a trigger, rule")]
)
def test_a_row_that_cannot_be_removed_is_left_with_the_statement_that_would(
    ask: Ask, admin: Admin, wells: Outputs, keeping: LiteralString, reason: str
) -> None:
    async def question(connection: Connection) -> Failure | None:
        chosen, written = await written_to(connection, wells)
        await connection.commit()
        make(admin, keeping)
        return await removal.remove(wells, connection, chosen.table, written, committed=True)

    left = ask(question)
    assert left.cause is Cause.LEFT_BEHIND
    assert left.seen.startswith(reason)
    statement = left.likely.partition("by hand: ")[2]
    make(admin, "DROP TRIGGER IF EXISTS keep ON public.wells", "DROP RULE IF EXISTS soft ON public.wells")
    admin.execute(statement)
    assert admin.execute("SELECT count(*) FROM public.wells").fetchone() == (0,)


def test_a_row_that_somebody_else_has_removed_is_gone(ask: Ask, admin: Admin, wells: Outputs) -> None:
    async def question(connection: Connection) -> Failure | None:
        chosen, written = await written_to(connection, wells)
        await connection.commit()
        admin.execute("DELETE FROM public.wells")
        return await removal.remove(wells, connection, chosen.table, written, committed=True)

    assert ask(question) is None


THEIRS: LiteralString = "INSERT INTO public.wells OVERRIDING SYSTEM VALUE SELECT %s::text::bigint, 'of the application'"


def test_a_row_with_the_key_of_one_that_was_rolled_back_is_left_alone(ask: Ask, admin: Admin, wells: Outputs) -> None:
    """A commit breaks off, Postgres recovers without it, and the application writes a row in its place."""

    async def question(connection: Connection) -> Failure | None:
        chosen, written = await written_to(connection, wells)
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
        await connection.close()
        admin.execute(THEIRS, written.key)
        return await removal.remove(wells, connection, chosen.table, written, committed=False)

    assert ask(question) is None
    assert admin.execute("SELECT name FROM public.wells").fetchall() == [("of the application",)]


@pytest.mark.parametrize("later", [0, 1_000_000], ids=["given out anew", "not given out again yet"])
def test_a_transaction_whose_number_a_crash_made_free_is_not_taken_for_the_rows(
    ask: Ask, admin: Admin, wells: Outputs, later: int
) -> None:
    async def question(connection: Connection) -> Failure | None:
        chosen, written = await written_to(connection, wells)
        await connection.rollback()
        admin.execute(THEIRS, written.key)
        (theirs,) = admin.execute("SELECT pg_current_xact_id()::text::bigint - 1").fetchone() or ()
        reborn = replace(written, transaction=str(theirs + later))
        return await removal.remove(wells, connection, chosen.table, reborn, committed=False)

    left = ask(question)
    assert admin.execute("SELECT name FROM public.wells").fetchall() == [("of the application",)]
    if later:
        assert left is None
    else:
        assert left.seen == "the row with its primary key is another one, or was changed since; look whose it is"
        admin.execute(left.likely.partition("by hand: ")[2])
        assert admin.execute("SELECT name FROM public.wells").fetchall() == [("of the application",)]


# --- why nothing comes ------------------------------------------------------------------------------------------


def likely_reason(ask: Ask, wells: Outputs) -> str:
    """What is said of a committed row whose event did not come."""

    async def question(connection: Connection) -> str:
        chosen, written = await written_to(connection, wells)
        await connection.commit()
        return await silence(connection, chosen.table, written.key, claims_of(wells.anon_key))

    reason: str = ask(question)
    return reason


PUBLICATION: LiteralString = "CREATE PUBLICATION supabase_realtime FOR TABLE public.wells"


@pytest.mark.parametrize(
    ("publication", "reason"),
    [
        ("SELECT 1", "the publication supabase_realtime is gone"),
        ("CREATE PUBLICATION supabase_realtime", "public.wells is not in the publication supabase_realtime"),
        (PUBLICATION + " WITH (publish = 'update')", "the publication supabase_realtime does not publish inserts"),
        (PUBLICATION, "Realtime does not read a replication slot: wal2json is missing"),
    ],
)
def test_silence_is_put_down_to_the_first_thing_wrong_on_the_way(
    ask: Ask, admin: Admin, wells: Outputs, publication: LiteralString, reason: str
) -> None:
    admin.execute(publication)
    assert likely_reason(ask, wells).startswith(reason)


def test_silence_for_a_subscriber_who_may_not_see_the_row_is_put_down_to_that(
    ask: Ask, admin: Admin, wells: Outputs
) -> None:
    admin.execute(PUBLICATION)

    async def question(connection: Connection) -> list[str]:
        chosen, written = await written_to(connection, wells)
        await connection.commit()
        claims = claims_of(wells.anon_key)
        admin.execute("DROP POLICY reading ON public.wells")
        hidden = await silence(connection, chosen.table, written.key, claims)
        await connection.rollback()
        admin.execute("REVOKE SELECT ON public.wells FROM anon")
        return [hidden, await silence(connection, chosen.table, written.key, claims)]

    hidden, revoked = ask(question)
    assert hidden.startswith("row level security: no SELECT policy of public.wells lets anon see the row")
    assert revoked.startswith("anon lacks the privilege SELECT on public.wells")


def test_a_slot_that_nobody_reads_is_not_taken_for_realtime(ask: Ask, admin: Admin, wells: Outputs) -> None:
    admin.execute("SELECT pg_create_logical_replication_slot('unread', 'pgoutput')")
    try:
        found = ask(slots)
        assert not found.reading and found.used >= 1
        assert ask(decoding) is None, "the server decodes, it only has no reader"
    finally:
        admin.execute("SELECT pg_drop_replication_slot('unread')")


@pytest.fixture
def polled(database: str, admin: Admin, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection[Any]]:
    """A session that holds a slot as Realtime's does. The server has no wal2json, and another plugin stands for it."""
    monkeypatch.setattr("doctor.silence.SLOTS", SLOTS.replace("'wal2json'", "'pgoutput'"))
    monkeypatch.setattr("doctor.silence.DEAD_AFTER_SECONDS", 0.05)
    make(
        admin,
        "CREATE SCHEMA _realtime",
        "CREATE TABLE _realtime.extensions (type text, settings jsonb, tenant_external_id text)",
    )
    with psycopg.connect(database, autocommit=True) as holder:
        holder.execute("SELECT pg_create_logical_replication_slot('held', 'pgoutput', true)")
        until(
            admin,
            "SELECT FROM pg_stat_activity WHERE query LIKE '%''held''%' AND state_change < now() - '0.2s'::interval",
        )
        yield holder
        holder.execute("SELECT pg_drop_replication_slot('held')")  # an active one keeps the database from being dropped


def polls_every(admin: Admin, interval: object) -> None:
    settings = json.dumps({"poll_interval_ms": interval})
    make(admin, "TRUNCATE _realtime.extensions")
    admin.execute("INSERT INTO _realtime.extensions VALUES ('postgres_cdc_rls', %s, 'tenant')", [settings])


@pytest.mark.usefixtures("polled")
@pytest.mark.parametrize(
    ("interval", "reading"), [(2, False), (2000, True), ("60000", True), (None, False), ("often", False)]
)
def test_a_realtime_that_polls_rarely_is_not_taken_for_one_that_was_killed(
    ask: Ask, admin: Admin, interval: object, reading: bool
) -> None:
    """v2.129.8 polls five times as rarely as poll_interval_ms while nothing happens."""
    polls_every(admin, interval)
    found = ask(slots)
    assert found.held and found.idle_seconds > 0.1
    assert found.reading is reading


@pytest.mark.usefixtures("polled")
def test_without_the_tenants_settings_a_reader_that_is_idle_is_one_that_was_killed(ask: Ask, admin: Admin) -> None:
    admin.execute("DROP TABLE _realtime.extensions")
    assert not ask(slots).reading


@pytest.mark.usefixtures("polled")
def test_an_event_that_comes_later_because_of_rare_polls_is_put_down_to_them(
    ask: Ask, admin: Admin, wells: Outputs
) -> None:
    admin.execute(PUBLICATION)
    polls_every(admin, 2000)
    assert likely_reason(ask, wells).startswith("Realtime polls its replication slot as rarely as every 10 s")


# --- the whole probe --------------------------------------------------------------------------------------------


def test_a_probe_without_a_gateway_says_so_and_leaves_no_row(admin: Admin, wells: Outputs) -> None:
    result = asyncio.run(probe.probe(wells, count=2, timeout=1.5))
    assert not result.ok
    assert (result.table, result.sent) == ("public.wells", 0)
    assert [found.cause for found in result.failures] == [Cause.GATEWAY_UNREACHABLE]
    assert admin.execute("SELECT count(*) FROM public.wells").fetchone() == (0,)


def test_a_probe_whose_row_cannot_be_removed_writes_no_other(
    admin: Admin, wells: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(
        admin,
        "ALTER TABLE public.wells ADD writer bigint DEFAULT txid_current()",
        """CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF old.writer <> txid_current() THEN RETURN NULL; END IF; RETURN old; END $$""",
        "CREATE TRIGGER keep BEFORE DELETE ON public.wells FOR EACH ROW EXECUTE FUNCTION keep()",
    )

    async def read(_: Connection) -> Slots:  # there is no wal2json here
        return Slots(held=True, idle_seconds=0.0, used=1, most=1)

    async def run() -> probe.ProbeResult:
        async with server(live) as url:
            stack = wells.model_copy(update={"realtime_url": url})
            return await probe.probe(stack, count=2, timeout=1.5)

    monkeypatch.setattr(probe, "slots", read)
    result = asyncio.run(run())
    assert (result.sent, admin.execute("SELECT count(*) FROM public.wells").fetchone()) == (1, (1,))
    assert [found.cause for found in result.failures] == [Cause.NOT_RECEIVED, Cause.LEFT_BEHIND]


@pytest.mark.usefixtures("polled")
def test_an_event_is_waited_for_until_a_realtime_that_polls_rarely_has_polled(
    admin: Admin, wells: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls_every(admin, 400)  # every 2 s while nothing happens
    monkeypatch.setattr("doctor.silence.DEAD_AFTER_SECONDS", 60)

    async def run() -> probe.ProbeResult:
        async with server(live) as url:
            return await probe.probe(wells.model_copy(update={"realtime_url": url}), count=1, timeout=1.5)

    (found,) = asyncio.run(run()).failures
    assert found.cause is Cause.NOT_RECEIVED
    assert found.waited_for.endswith(", for 3 s")


@pytest.mark.parametrize(
    ("change", "likely"),
    [({"password": "wrong"}, "is not the stack's postgres.password"), ({"port": 1}, "Postgres is stopped")],
)
def test_a_database_that_lets_nobody_in_is_told_apart_from_one_that_is_down(
    wells: Outputs, change: dict[str, Any], likely: str
) -> None:
    document = json.loads(wells.model_dump_json()) | {"service_role_key": key("service_role")}
    document["database_password"] = change.get("password", wells.database_password.get_secret_value())
    document["database"]["port"] = change.get("port", wells.database.port)
    result = asyncio.run(probe.probe(Outputs.model_validate(document), count=1, timeout=1.5))
    (found,) = result.failures
    assert found.cause is Cause.DATABASE
    assert likely in found.likely
    assert document["database_password"] not in str(found)


def test_every_plan_of_the_example_needs_only_the_outputs(wells: Outputs) -> None:
    (plan,) = plans(wells.tables)
    assert (plan.table.table, plan.note) == ("public.wells", None)


def test_columns_that_a_role_may_not_select_are_known(ask: Ask, admin: Admin, wells: Outputs) -> None:
    make(admin, "REVOKE SELECT ON public.wells FROM anon", "GRANT SELECT (id) ON public.wells TO anon")

    async def question(connection: Connection) -> list[str]:
        table = await read_table(connection, "public", "wells")
        return [column.name for column in await selectable(connection, table, "anon")]

    assert ask(question) == ["id"]
