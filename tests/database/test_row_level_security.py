"""Who sees and may write which row, tried in the roles themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql

from providers.table_security import TableSecurityProvider
from settings import Table
from tests.database.conftest import Connection
from tests.database.engine import Engine, security_of

ADA, BEN = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
OWN = "owner = (current_setting('request.jwt.claims', true)::json ->> 'sub')::uuid"
ROWS = [(1, "north", ADA, True), (2, "south", BEN, True), (3, "closed", BEN, False)]
STATEMENTS = {
    "select": "SELECT id FROM public.wells",
    "insert": "INSERT INTO public.wells (id, name, owner) VALUES (9, 'new', %(sub)s)",
    "update": "UPDATE public.wells SET name = 'changed' WHERE id = 1",
    "delete": "DELETE FROM public.wells WHERE id = 1",
    "truncate": "TRUNCATE public.wells",
}


@pytest.fixture(autouse=True)
def rows(admin: Connection) -> None:
    """Three rows in a table that supabase/postgres's default privileges leave wide open."""
    admin.execute("GRANT USAGE ON SCHEMA public TO anon, authenticated, service_role")
    admin.execute("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated, service_role")
    admin.execute("CREATE TABLE public.wells (id int PRIMARY KEY, name text, owner uuid, active bool DEFAULT true)")
    with admin.cursor() as cursor:
        cursor.executemany("INSERT INTO public.wells VALUES (%s, %s, %s, %s)", ROWS)


@pytest.fixture
def secured(admin: Connection) -> Callable[..., None]:
    """Secures the table, as the component does with its TableSecurity and its Grants."""

    def secure(**settings: Any) -> None:
        table = Table.model_validate({"table": "public.wells", **settings})
        Engine(TableSecurityProvider()).up(security_of(table))
        for role, privileges in table.privileges.items():
            for privilege in privileges:
                admin.execute(
                    sql.SQL("GRANT {} ON public.wells TO {}").format(sql.SQL(privilege), sql.Identifier(role.value))
                )

    return secure


def outcome(connection: Connection, statement: str, sub: str | None = None) -> Any:
    """What a statement does for a role: the ids it sees, the number of rows it changes, or why it may not."""
    try:
        with connection.transaction(force_rollback=True):
            cursor = connection.execute(STATEMENTS[statement].encode(), {"sub": sub})
            return sorted(id_ for (id_,) in cursor) if cursor.description else cursor.rowcount
    except psycopg.errors.InsufficientPrivilege as refused:
        return "policy" if "row-level security policy" in str(refused) else "privilege"


@pytest.mark.parametrize(
    ("role", "outcomes"),
    [
        ("anon", {"select": [1, 2, 3], "insert": "privilege", "update": "privilege", "delete": "privilege"}),
        ("authenticated", {"select": [1, 2, 3], "insert": 1, "update": 1, "delete": 1}),
        ("service_role", {"select": [1, 2, 3], "insert": 1, "update": 1, "delete": 1}),
    ],
)
def test_the_short_form_lets_readers_read_and_writers_write_and_nobody_truncate(
    role: str, outcomes: dict[str, object], secured: Callable[..., None], acting_as: Callable[..., Connection]
) -> None:
    secured(read=["anon", "authenticated"], write=["authenticated"])
    connection = acting_as(role)
    assert {statement: outcome(connection, statement) for statement in STATEMENTS} == outcomes | {
        "truncate": "privilege"
    }


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_a_table_that_only_one_role_reads_is_closed_to_the_other(
    role: str, secured: Callable[..., None], acting_as: Callable[..., Connection]
) -> None:
    secured(read=["authenticated"])
    assert outcome(acting_as(role), "select") == ([1, 2, 3] if role == "authenticated" else "privilege")


def test_a_role_that_only_writes_cannot_read_back(
    secured: Callable[..., None], acting_as: Callable[..., Connection]
) -> None:
    """And so cannot change or delete a row either, since it cannot name one."""
    secured(read=["authenticated"], write=["anon"])
    anon = acting_as("anon")
    assert outcome(anon, "select") == "privilege"
    assert outcome(anon, "insert") == 1
    assert outcome(anon, "update") == "privilege"
    assert outcome(anon, "delete") == "privilege"


OWNER_ONLY = [
    {"name": "own rows are seen", "command": "select", "roles": ["authenticated"], "using": OWN},
    {"name": "own rows are made", "command": "insert", "roles": ["authenticated"], "check": OWN},
    {"name": "own rows are changed", "command": "update", "roles": ["authenticated"], "using": OWN, "check": OWN},
]


@pytest.mark.parametrize(("sub", "seen", "changed"), [(ADA, [1], 1), (BEN, [2, 3], 0)])
def test_people_see_and_change_their_own_rows(
    sub: str,
    seen: list[int],
    changed: int,
    secured: Callable[..., None],
    acting_as: Callable[..., Connection],
) -> None:
    secured(policies=OWNER_ONLY)
    person = acting_as("authenticated", {"sub": sub})
    assert outcome(person, "select") == seen
    assert outcome(person, "update") == changed
    assert outcome(person, "insert", sub) == 1
    assert outcome(person, "delete") == "privilege"


def test_people_cannot_make_rows_for_others_or_give_theirs_away(
    secured: Callable[..., None], acting_as: Callable[..., Connection]
) -> None:
    secured(policies=OWNER_ONLY)
    ada = acting_as("authenticated", {"sub": ADA})
    assert outcome(ada, "insert", BEN) == "policy"
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security policy"):
        ada.execute("UPDATE public.wells SET owner = %s WHERE id = 1", [BEN])


def test_nobody_with_a_token_that_names_no_person_sees_a_row(
    secured: Callable[..., None], acting_as: Callable[..., Connection]
) -> None:
    secured(policies=OWNER_ONLY)
    assert outcome(acting_as("authenticated"), "select") == []


def test_service_role_passes_every_policy_by(
    secured: Callable[..., None], acting_as: Callable[..., Connection]
) -> None:
    secured(policies=OWNER_ONLY)
    service = acting_as("service_role")
    assert outcome(service, "select") == [1, 2, 3]
    assert outcome(service, "insert", BEN) == 1
    assert outcome(service, "truncate") == "privilege"


def test_a_restrictive_policy_takes_away_from_what_others_give(
    secured: Callable[..., None], acting_as: Callable[..., Connection]
) -> None:
    everything = {"name": "all", "command": "select", "roles": ["anon", "authenticated"], "using": "true"}
    secured(
        policies=[
            everything,
            {"name": "open", "command": "select", "roles": ["anon"], "using": "active", "permissive": False},
        ]
    )
    assert outcome(acting_as("anon"), "select") == [1, 2]
    assert outcome(acting_as("authenticated"), "select") == [1, 2, 3]


def test_permissive_policies_add_up(secured: Callable[..., None], acting_as: Callable[..., Connection]) -> None:
    secured(
        policies=[
            {"name": "one", "command": "select", "roles": ["anon"], "using": "id = 1"},
            {"name": "three", "command": "select", "roles": ["anon"], "using": "id = 3"},
        ]
    )
    assert outcome(acting_as("anon"), "select") == [1, 3]


def test_a_policy_for_all_commands_is_one_for_each(
    secured: Callable[..., None], acting_as: Callable[..., Connection]
) -> None:
    secured(
        policies=[{"name": "first", "command": "all", "roles": ["anon"], "using": "id = 1", "check": "id IN (1, 9)"}]
    )
    anon = acting_as("anon")
    assert [outcome(anon, statement) for statement in ("select", "insert", "update", "delete")] == [[1], 1, 1, 1]
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security policy"):
        anon.execute("INSERT INTO public.wells VALUES (10)")


@pytest.mark.parametrize(("force", "seen"), [(False, [1, 2, 3]), (True, [])])
def test_forced_row_level_security_binds_the_tables_owner(
    force: bool,
    seen: list[int],
    secured: Callable[..., None],
    admin: Connection,
    acting_as: Callable[..., Connection],
) -> None:
    admin.execute("ALTER TABLE public.wells OWNER TO postgres")
    admin.execute("GRANT USAGE ON SCHEMA public TO postgres")
    secured(read=["anon"], force=force)
    assert outcome(acting_as("postgres"), "select") == seen


def test_a_declared_table_without_policies_is_closed(
    secured: Callable[..., None], acting_as: Callable[..., Connection]
) -> None:
    secured(publish=False)
    for role in ("anon", "authenticated"):
        outcomes = {outcome(acting_as(role), statement) for statement in STATEMENTS}
        assert outcomes == {"privilege"}, role


def test_a_table_without_its_stack_is_closed(
    admin: Connection, secured: Callable[..., None], acting_as: Callable[..., Connection]
) -> None:
    secured(read=["anon", "authenticated"], write=["anon"])
    engine = Engine(TableSecurityProvider())
    declared = security_of(Table.model_validate({"table": "public.wells", "read": ["anon"]}))
    engine.up(declared)
    assert outcome(acting_as("anon"), "select") == [1, 2, 3]
    engine.destroy()
    admin.execute("GRANT ALL ON public.wells TO anon")
    # Even with every privilege back: no policy, no row.
    assert outcome(acting_as("anon"), "select") == []
    assert outcome(acting_as("anon"), "insert") == "policy"
    assert outcome(acting_as("anon"), "delete") == 0


def test_a_writer_of_a_serial_column_gets_its_number(admin: Connection, acting_as: Callable[..., Connection]) -> None:
    admin.execute("CREATE TABLE public.notes (id serial PRIMARY KEY, body text)")
    table = Table.model_validate({"table": "public.notes", "read": ["anon"], "write": ["anon"]})
    Engine(TableSecurityProvider()).up(security_of(table))
    number = acting_as("anon").execute("INSERT INTO public.notes (body) VALUES ('x') RETURNING id").fetchone()
    assert number == (1,)


def test_an_identity_column_needs_no_privilege_on_its_sequence(
    admin: Connection, acting_as: Callable[..., Connection]
) -> None:
    """As in the sample application's table."""
    admin.execute("CREATE TABLE public.notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)")
    table = Table.model_validate({"table": "public.notes", "read": ["anon"], "write": ["anon"]})
    Engine(TableSecurityProvider()).up(security_of(table))
    number = acting_as("anon").execute("INSERT INTO public.notes (body) VALUES ('x') RETURNING id").fetchone()
    assert number == (1,)
