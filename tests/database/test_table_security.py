"""TableSecurity: made, read back, repaired and removed, each in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from psycopg import sql

from providers import table_security
from providers.connection import DatabaseError, transaction
from providers.table_security import LiveTable, TableSecurityProvider, read_table
from settings import ApiRole, Command, Policy, ReplicaIdentity, Table
from tests.database.conftest import Connection, until
from tests.database.engine import Engine, security_of

ANON, AUTHENTICATED = ApiRole.ANON, ApiRole.AUTHENTICATED


def security(table: str = "public.wells", **settings: Any) -> dict[str, Any]:
    """The inputs for a table with these settings, the others as by default."""
    return security_of(Table.model_validate({"table": table, **settings}))


DECLARED = security(read=[ANON, AUTHENTICATED], write=[AUTHENTICATED])


@pytest.fixture(autouse=True)
def tables(admin: Connection) -> None:
    """A table as supabase/postgres lets it be made: with every privilege for the API roles, without any policy."""
    admin.execute("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated, service_role")
    admin.execute(
        """
        CREATE TABLE public.wells (
            id serial PRIMARY KEY,
            name text,
            depth numeric,
            owner uuid,
            tags text[],
            active boolean NOT NULL DEFAULT true
        )
        """
    )


@pytest.fixture
def engine() -> Engine:
    return Engine(TableSecurityProvider())


def live(table: str = "wells", schema: str = "public") -> LiveTable:
    """The table as the catalog says, read past the state."""
    with transaction() as cursor:
        found = read_table(cursor, schema, table)
    assert found is not None
    return found


def policies(admin: Connection) -> list[dict[str, Any]]:
    """The table's policies in Postgres's own view of them."""
    cursor = admin.execute(
        "SELECT policyname, permissive, roles::text[], cmd, qual, with_check FROM pg_policies "
        "WHERE tablename = 'wells' ORDER BY policyname"
    )
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def held_by(admin: Connection, role: str) -> set[str]:
    """The privileges that a role has on the table itself, in Postgres's own words."""
    cursor = admin.execute(
        "SELECT privilege_type FROM information_schema.role_table_grants WHERE table_name = 'wells' AND grantee = %s",
        [role],
    )
    return {privilege for (privilege,) in cursor}


def test_the_short_form_becomes_these_policies(engine: Engine, admin: Connection) -> None:
    assert engine.up(DECLARED) == "create"
    assert [tuple(policy.values()) for policy in policies(admin)] == [
        ("wells_delete", "PERMISSIVE", ["authenticated"], "DELETE", "true", None),
        ("wells_insert", "PERMISSIVE", ["authenticated"], "INSERT", None, "true"),
        ("wells_select", "PERMISSIVE", ["anon", "authenticated"], "SELECT", "true", None),
        ("wells_update", "PERMISSIVE", ["authenticated"], "UPDATE", "true", "true"),
    ]
    assert live().row_security
    assert not live().force


def test_a_long_form_becomes_what_it_says(engine: Engine, admin: Connection) -> None:
    declared = security(
        policies=(
            Policy(name="all of it", command=Command.ALL, roles=(AUTHENTICATED,), using="active", check="depth > 0"),
            Policy(
                name="and never these", command=Command.SELECT, roles=(ANON,), using="name <> 'x'", permissive=False
            ),
        ),
        force=True,
        replica_identity=ReplicaIdentity.FULL,
    )
    assert engine.up(declared) == "create"
    assert policies(admin) == [
        {
            "policyname": "all of it",
            "permissive": "PERMISSIVE",
            "roles": ["authenticated"],
            "cmd": "ALL",
            "qual": "active",
            "with_check": "(depth > (0)::numeric)",
        },
        {
            "policyname": "and never these",
            "permissive": "RESTRICTIVE",
            "roles": ["anon"],
            "cmd": "SELECT",
            "qual": "(name <> 'x'::text)",
            "with_check": None,
        },
    ]
    assert (live().force, live().replica_identity) == (True, "full")


def test_privileges_that_nobody_declared_are_taken_away(engine: Engine, admin: Connection) -> None:
    """What is declared is the Grant resources' to give; here it may stay."""
    admin.execute("GRANT SELECT, TRUNCATE ON public.wells TO PUBLIC")
    admin.execute("GRANT UPDATE (name) ON public.wells TO anon")
    engine.up(DECLARED)
    assert held_by(admin, "anon") == {"SELECT"}
    assert held_by(admin, "authenticated") == {"SELECT", "INSERT", "UPDATE", "DELETE"}
    assert held_by(admin, "service_role") == {"SELECT", "INSERT", "UPDATE", "DELETE"}
    assert held_by(admin, "PUBLIC") == set()
    assert live().privileges == {
        "anon": ["SELECT"],
        "authenticated": ["DELETE", "INSERT", "SELECT", "UPDATE"],
        "service_role": ["DELETE", "INSERT", "SELECT", "UPDATE"],
    }


def test_roles_that_are_not_the_apis_keep_their_privileges(engine: Engine, admin: Connection) -> None:
    admin.execute("GRANT ALL ON public.wells TO postgres")
    engine.up(DECLARED)
    assert held_by(admin, "postgres") >= {"SELECT", "TRUNCATE"}


@pytest.mark.parametrize(
    ("existing", "exclusive", "left"),
    [
        ("wells_select", True, ["wells_delete", "wells_insert", "wells_select", "wells_update"]),
        ("somebody's", True, ["wells_delete", "wells_insert", "wells_select", "wells_update"]),
        ("somebody's", False, ["somebody's", "wells_delete", "wells_insert", "wells_select", "wells_update"]),
    ],
)
def test_an_existing_table_is_adopted(
    existing: str, exclusive: bool, left: list[str], engine: Engine, admin: Connection
) -> None:
    admin.execute("ALTER TABLE public.wells ENABLE ROW LEVEL SECURITY")
    admin.execute(
        sql.SQL("CREATE POLICY {} ON public.wells FOR ALL TO anon USING (false)").format(sql.Identifier(existing))
    )
    declared = DECLARED | {"exclusive": exclusive}
    assert engine.up(declared) == "create"
    assert [policy["policyname"] for policy in policies(admin)] == left
    assert engine.drift(declared) == {}


def test_a_table_that_does_not_exist_is_named_with_the_cure(engine: Engine) -> None:
    with pytest.raises(DatabaseError) as missing:
        engine.up(DECLARED | {"table": "pumps"})
    assert str(missing.value) == (
        "table public.pumps is declared in `tables` and does not exist; "
        "create it in a file of `migrations`, or correct its name"
    )


def test_a_partitioned_table_is_secured_like_any_other(engine: Engine, admin: Connection) -> None:
    admin.execute("CREATE TABLE public.readings (id int, at date) PARTITION BY RANGE (at)")
    declared = security("public.readings", read=[ANON])
    engine.up(declared)
    assert engine.drift(declared) == {}
    assert live("readings").row_security


def test_an_inserting_role_may_draw_numbers_for_a_serial_column(engine: Engine, admin: Connection) -> None:
    engine.up(DECLARED)
    allowed = admin.execute(
        "SELECT r, has_sequence_privilege(r, 'public.wells_id_seq', 'USAGE') FROM unnest(%s::text[]) r",
        [["anon", "authenticated", "service_role"]],
    )
    assert dict(allowed.fetchall()) == {"anon": False, "authenticated": True, "service_role": True}


def draws_numbers(admin: Connection, sequence: str = "public.wells_id_seq") -> dict[str, set[str]]:
    """What everybody but its owner holds on a sequence, in Postgres's own words."""
    cursor = admin.execute(
        "SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(grantee) END, array_agg(privilege_type) "
        "FROM pg_class c, aclexplode(c.relacl) WHERE c.oid = %s::regclass AND grantee <> c.relowner GROUP BY 1",
        [sequence],
    )
    return {grantee: set(held) for grantee, held in cursor}


@pytest.fixture
def open_sequences(admin: Connection) -> None:
    """Tables as supabase/postgres lets them be made: API roles hold all privileges on sequences, too."""
    admin.execute(
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO anon, authenticated, service_role;"
        "CREATE TABLE public.pumps (id serial PRIMARY KEY, number bigint GENERATED ALWAYS AS IDENTITY)"
    )


def test_a_role_that_no_longer_inserts_may_no_longer_draw_numbers(engine: Engine, admin: Connection) -> None:
    engine.up(security(read=[ANON, AUTHENTICATED], write=[ANON, AUTHENTICATED]))
    assert set(draws_numbers(admin)) == {"anon", "authenticated", "service_role"}
    assert engine.up(DECLARED) == "update"
    assert set(draws_numbers(admin)) == {"authenticated", "service_role"}


def test_a_table_that_is_no_longer_declared_leaves_nobody_its_sequence(engine: Engine, admin: Connection) -> None:
    engine.up(DECLARED)
    admin.execute("GRANT SELECT ON SEQUENCE public.wells_id_seq TO PUBLIC; GRANT USAGE ON wells_id_seq TO postgres")
    engine.destroy()
    assert draws_numbers(admin) == {"postgres": {"USAGE"}}


@pytest.mark.usefixtures("open_sequences")
def test_who_does_not_insert_holds_nothing_on_sequences_that_supabase_opens_to_all(
    engine: Engine, admin: Connection
) -> None:
    declared = security("public.pumps", read=[ANON], write=[AUTHENTICATED])
    engine.up(declared)
    for sequence in ("public.pumps_id_seq", "public.pumps_number_seq"):
        assert set(draws_numbers(admin, sequence)) == {"authenticated", "service_role"}
    assert engine.drift(declared) == {}
    assert engine.up(declared) == "same"


@pytest.mark.usefixtures("open_sequences")
def test_a_serial_column_that_comes_later_is_drift_until_the_next_up(engine: Engine, admin: Connection) -> None:
    declared = security("public.pumps", read=[ANON], write=[AUTHENTICATED])
    engine.up(declared)
    admin.execute("ALTER TABLE public.pumps ADD turn serial")
    beyond = {"anon": [f"{privilege} ON SEQUENCE public.pumps_turn_seq" for privilege in ("SELECT", "UPDATE", "USAGE")]}
    assert engine.drift(declared) == {"undeclared_privileges": beyond}
    engine.refresh()
    assert engine.up(declared) == "update"
    assert engine.drift(declared) == {}


def test_an_identity_column_is_given_no_privilege_on_its_sequence(engine: Engine, admin: Connection) -> None:
    admin.execute("CREATE TABLE public.pumps (id bigint GENERATED ALWAYS AS IDENTITY)")
    declared = security("public.pumps", read=[AUTHENTICATED], write=[AUTHENTICATED])
    engine.up(declared)
    assert draws_numbers(admin, "public.pumps_id_seq") == {}
    assert engine.drift(declared) == {}


@pytest.mark.parametrize(
    "name", ["wells select", 'in "quotes"', "ein Wörtchen", "100 % {of it}", "; DROP TABLE public.wells; --"]
)
def test_a_policy_may_have_any_name(name: str, engine: Engine, admin: Connection) -> None:
    declared = security(policies=(Policy(name=name, command=Command.SELECT, roles=(ANON,), using="true"),))
    engine.up(declared)
    assert [policy["policyname"] for policy in policies(admin)] == [name]
    assert engine.drift(declared) == {}
    assert engine.up(declared) == "same"


ODD_EXPRESSIONS = [
    "TRUE",
    "(((active)))",
    "active = TRUE and not (depth is null)",
    "name LIKE 'a%' OR name ~ '^[{}]+$'",
    "name in ('a','b')",
    "name NOT IN (SELECT 'x')",
    "depth between 1 and 2.50",
    "coalesce(name,'') != ''",
    "owner = (current_setting('request.jwt.claims', true)::json->>'sub')::uuid",
    "tags && ARRAY['a', 'b']::text[]",
    "EXISTS (SELECT 1 FROM public.wells w WHERE w.id > wells.id)",
    "CASE WHEN depth > 3 THEN active ELSE false END",
    "name = E'it''s a \\\\ \"quoted\" {name} %s %(x)s ü'",
    "now() > '2020-01-01'::timestamptz - interval '1 day'",
    "(name, depth) = ('a', 1)",
    "active IS DISTINCT FROM false -- unless told\n",
    "current_user::text <> session_user",
]


@pytest.mark.parametrize("expression", ODD_EXPRESSIONS)
def test_an_untouched_policy_is_no_drift_however_postgres_writes_its_expression(
    expression: str, engine: Engine
) -> None:
    declared = security(
        policies=(
            Policy(name="p", command=Command.ALL, roles=(AUTHENTICATED, ANON), using=expression, check=expression),
        ),
    )
    engine.up(declared)
    assert engine.drift(declared) == {}
    engine.refresh()
    assert engine.up(declared) == "same"
    assert engine.drift(declared) == {}


def without(name: str) -> list[Any]:
    return [policy for policy in DECLARED["policies"] if policy["name"] != name]


def altered(name: str, **properties: Any) -> list[Any]:
    """The declared policies, one of them with other properties."""
    return [policy | properties if policy["name"] == name else policy for policy in DECLARED["policies"]]


UNDECLARED = {"name": "leak", "command": "select", "roles": ["public"], "using": "true", "permissive": True}

BY_HAND: dict[str, tuple[str, dict[str, Any]]] = {
    "policy dropped": (
        "DROP POLICY wells_select ON public.wells",
        {"policies": without("wells_select")},
    ),
    "expression altered": (
        "ALTER POLICY wells_select ON public.wells USING (false)",
        {"policies": altered("wells_select", using="false")},
    ),
    "check altered": (
        "ALTER POLICY wells_insert ON public.wells WITH CHECK (depth > 3)",
        {"policies": altered("wells_insert", check="(depth > (3)::numeric)")},
    ),
    "roles altered": (
        "ALTER POLICY wells_insert ON public.wells TO anon, authenticated",
        {"policies": altered("wells_insert", roles=["anon", "authenticated"])},
    ),
    "opened to PUBLIC": (
        "ALTER POLICY wells_insert ON public.wells TO PUBLIC",
        {"policies": altered("wells_insert", roles=["public"])},
    ),
    "command changed": (
        "DROP POLICY wells_delete ON public.wells;"
        "CREATE POLICY wells_delete ON public.wells FOR ALL TO authenticated USING (true)",
        {"policies": altered("wells_delete", command="all")},
    ),
    "made restrictive": (
        "DROP POLICY wells_delete ON public.wells;"
        "CREATE POLICY wells_delete ON public.wells AS RESTRICTIVE FOR DELETE TO authenticated USING (true)",
        {"policies": altered("wells_delete", permissive=False)},
    ),
    "renamed": (
        "ALTER POLICY wells_select ON public.wells RENAME TO wells_read",
        {
            "policies": [
                *without("wells_select"),
                {
                    "name": "wells_read",
                    "command": "select",
                    "roles": ["anon", "authenticated"],
                    "using": "true",
                    "permissive": True,
                },
            ]
        },
    ),
    "policy added": (
        "CREATE POLICY leak ON public.wells FOR SELECT USING (true)",
        {"policies": [*DECLARED["policies"], UNDECLARED]},
    ),
    "row level security disabled": (
        "ALTER TABLE public.wells DISABLE ROW LEVEL SECURITY",
        {"row_security": False},
    ),
    "row level security forced": (
        "ALTER TABLE public.wells FORCE ROW LEVEL SECURITY",
        {"force": True},
    ),
    "replica identity full": (
        "ALTER TABLE public.wells REPLICA IDENTITY FULL",
        {"replica_identity": "full"},
    ),
    "replica identity nothing": (
        "ALTER TABLE public.wells REPLICA IDENTITY NOTHING",
        {"replica_identity": "nothing"},
    ),
    "replica identity by an index": (
        "ALTER TABLE public.wells REPLICA IDENTITY USING INDEX wells_pkey",
        {"replica_identity": "index"},
    ),
    "TRUNCATE granted to anon": (
        "GRANT TRUNCATE ON public.wells TO anon",
        {"undeclared_privileges": {"anon": ["TRUNCATE"]}},
    ),
    "INSERT granted to anon": (
        "GRANT INSERT ON public.wells TO anon",
        {"undeclared_privileges": {"anon": ["INSERT"]}},
    ),
    "column granted to anon": (
        'ALTER TABLE public.wells ADD "odd ""column" int; GRANT UPDATE (name, "odd ""column") ON public.wells TO anon',
        {"undeclared_privileges": {"anon": ['UPDATE ("odd ""column")', "UPDATE (name)"]}},
    ),
    "SELECT granted to PUBLIC": (
        "GRANT SELECT ON public.wells TO PUBLIC",
        {"undeclared_privileges": {"public": ["SELECT"]}},
    ),
    "column granted to PUBLIC": (
        "GRANT SELECT (owner) ON public.wells TO PUBLIC",
        {"undeclared_privileges": {"public": ["SELECT (owner)"]}},
    ),
    "sequence opened to anon": (
        "GRANT USAGE, UPDATE ON SEQUENCE public.wells_id_seq TO anon",
        {
            "undeclared_privileges": {
                "anon": ["UPDATE ON SEQUENCE public.wells_id_seq", "USAGE ON SEQUENCE public.wells_id_seq"]
            }
        },
    ),
    "table and sequence opened to PUBLIC": (
        "GRANT SELECT ON public.wells, public.wells_id_seq TO PUBLIC",
        {"undeclared_privileges": {"public": ["SELECT", "SELECT ON SEQUENCE public.wells_id_seq"]}},
    ),
    "sequence closed to a role that inserts": (
        "REVOKE ALL ON SEQUENCE public.wells_id_seq FROM authenticated",
        {"missing_privileges": {"authenticated": ["USAGE ON SEQUENCE public.wells_id_seq"]}},
    ),
    "everything at once": (
        "ALTER TABLE public.wells DISABLE ROW LEVEL SECURITY;"
        "DROP POLICY wells_select ON public.wells;"
        "GRANT ALL ON public.wells TO anon;"
        "ALTER TABLE public.wells REPLICA IDENTITY FULL",
        {
            "row_security": False,
            "policies": without("wells_select"),
            "undeclared_privileges": {"anon": ["DELETE", "INSERT", "REFERENCES", "TRIGGER", "TRUNCATE", "UPDATE"]},
            "replica_identity": "full",
        },
    ),
}


@pytest.mark.parametrize("change", BY_HAND)
def test_a_change_by_hand_is_named_and_the_next_up_repairs_it(change: str, engine: Engine, admin: Connection) -> None:
    engine.up(DECLARED)
    as_made = live()
    statement, seen = BY_HAND[change]
    admin.execute(statement.encode())
    assert engine.drift(DECLARED) == seen
    assert engine.drift(DECLARED) == seen, "looking changed something"
    engine.refresh()
    assert engine.up(DECLARED) == "update"
    assert live() == as_made
    assert engine.drift(DECLARED) == {}
    assert engine.up(DECLARED) == "same"


def test_a_column_privilege_is_taken_away_and_the_declared_one_on_the_table_stays(
    engine: Engine, admin: Connection
) -> None:
    """REVOKE SELECT would take both, and the Grant resource would give it back at the next update only."""
    engine.up(DECLARED)
    admin.execute("GRANT SELECT (owner) ON public.wells TO anon")
    assert engine.drift(DECLARED) == {"undeclared_privileges": {"anon": ["SELECT (owner)"]}}
    engine.refresh()
    engine.up(DECLARED)
    assert live().privileges["anon"] == ["SELECT"]


def test_a_policy_that_somebody_added_is_let_alone_when_told(engine: Engine, admin: Connection) -> None:
    declared = DECLARED | {"exclusive": False}
    engine.up(declared)
    admin.execute("CREATE POLICY somebodys ON public.wells FOR SELECT TO postgres USING (true)")
    assert engine.drift(declared) == {}
    admin.execute("DROP POLICY wells_select ON public.wells")
    engine.refresh()
    engine.up(declared)
    assert "somebodys" in [policy["policyname"] for policy in policies(admin)]


def test_a_change_taken_back_by_hand_is_no_drift_even_when_a_refresh_saw_it(engine: Engine, admin: Connection) -> None:
    engine.up(DECLARED)
    admin.execute("ALTER POLICY wells_select ON public.wells USING (false)")
    engine.refresh()
    admin.execute("ALTER POLICY wells_select ON public.wells USING (true)")
    assert engine.drift(DECLARED) == {}


def test_the_order_of_a_policys_roles_is_no_drift(engine: Engine) -> None:
    declared = security(
        policies=(Policy(name="p", command=Command.SELECT, roles=(AUTHENTICATED, ANON), using="true"),),
    )
    engine.up(declared)
    assert engine.drift(declared) == {}


def test_a_table_dropped_by_hand_is_gone_and_secured_again_once_it_is_back(engine: Engine, admin: Connection) -> None:
    engine.up(DECLARED)
    admin.execute("DROP TABLE public.wells")
    assert engine.drift(DECLARED) == {"": "gone"}
    engine.refresh()
    admin.execute("CREATE TABLE public.wells (id int PRIMARY KEY)")
    assert engine.up(DECLARED) == "create"
    assert live().row_security
    assert held_by(admin, "anon") == {"SELECT"}


def test_a_table_dropped_and_made_again_by_hand_is_drift(engine: Engine, admin: Connection) -> None:
    engine.up(DECLARED)
    admin.execute("DROP TABLE public.wells; CREATE TABLE public.wells (id int PRIMARY KEY)")
    drift = engine.drift(DECLARED)
    assert set(drift) == {"policies", "row_security", "undeclared_privileges"}
    engine.refresh()
    engine.up(DECLARED)
    assert engine.drift(DECLARED) == {}


@pytest.mark.parametrize(
    ("property_", "value"),
    [
        ("force", True),
        ("replica_identity", "full"),
        ("policies", []),
        ("privileges", {"anon": [], "authenticated": [], "service_role": []}),
    ],
)
def test_a_change_of_the_config_is_applied(property_: str, value: object, engine: Engine) -> None:
    engine.up(DECLARED)
    changed = DECLARED | {property_: value}
    assert engine.up(changed) == "update"
    assert engine.drift(changed) == {}
    assert engine.up(changed) == "same"


def test_a_config_that_declares_less_leaves_less(engine: Engine, admin: Connection) -> None:
    engine.up(DECLARED)
    readers = security(read=[AUTHENTICATED])
    assert engine.up(readers) == "update"
    assert [policy["policyname"] for policy in policies(admin)] == ["wells_select"]
    assert held_by(admin, "anon") == set()
    assert held_by(admin, "authenticated") == {"SELECT"}


def test_another_table_is_secured_before_the_old_one_is_let_go(engine: Engine, admin: Connection) -> None:
    engine.up(DECLARED)
    admin.execute("CREATE TABLE public.pumps (id int PRIMARY KEY)")
    assert engine.up(DECLARED | {"table": "pumps"}) == "replace"
    assert live("pumps").row_security
    assert live("wells").policies == []


@pytest.fixture
def watched(admin: Connection, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[bool, int, int]]]:
    """What a second connection sees after every statement of a change: RLS on, policies, privileges of anon."""
    seen: list[tuple[bool, int, int]] = []
    statements = table_security.statements

    def look() -> None:
        row = admin.execute(
            "SELECT c.relrowsecurity, (SELECT count(*) FROM pg_policy WHERE polrelid = c.oid), "
            "(SELECT count(*) FROM aclexplode(c.relacl) WHERE grantee = 'anon'::regrole) "
            "FROM pg_class c WHERE c.oid = 'public.wells'::regclass"
        ).fetchone()
        assert row is not None
        seen.append((row[0], row[1], row[2]))

    def watching(declared: Mapping[str, Any], table: LiveTable) -> Iterator[sql.Composed]:
        for statement in statements(declared, table):
            yield statement
            # Resumed when the statement has run.
            look()

    monkeypatch.setattr(table_security, "statements", watching)
    yield seen
    look()


def test_nobody_sees_a_table_with_row_level_security_and_without_its_policies(
    engine: Engine, watched: list[tuple[bool, int, int]]
) -> None:
    engine.up(DECLARED)
    assert len(watched) > len(DECLARED["policies"])
    assert set(watched) == {(False, 0, 7)}, "a part of the change was visible before the whole"
    assert live().row_security


def test_nobody_sees_a_repair_half_done(
    engine: Engine, admin: Connection, watched: list[tuple[bool, int, int]]
) -> None:
    engine.up(DECLARED)
    admin.execute("ALTER POLICY wells_select ON public.wells USING (false); GRANT TRUNCATE ON public.wells TO anon")
    watched.clear()
    engine.refresh()
    engine.up(DECLARED)
    assert len(watched) > 2 * len(DECLARED["policies"])
    assert set(watched) == {(True, 4, 2)}
    assert live().privileges["anon"] == ["SELECT"]


def broken(expression: str) -> dict[str, Any]:
    """The declared security with a last policy that Postgres refuses."""
    refused = {"name": "broken", "command": "select", "roles": ["anon"], "using": expression, "permissive": True}
    return DECLARED | {"policies": [*DECLARED["policies"], refused], "force": True, "replica_identity": "full"}


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("colour = 'red'", 'column "colour" does not exist'),
        ("name", "argument of POLICY must be type boolean, not type text"),
        ("active AND", "syntax error"),
        ("count(*) > 3", "aggregate functions are not allowed in policy expressions"),
        ("nosuchfunction(name)", "function nosuchfunction(text) does not exist"),
    ],
)
def test_an_expression_that_postgres_refuses_changes_nothing_and_is_named(
    expression: str, fault: str, engine: Engine
) -> None:
    untouched = live()
    with pytest.raises(DatabaseError) as refused:
        engine.up(broken(expression))
    message = str(refused.value)
    assert message.startswith("table public.wells: ")
    assert fault in message
    assert expression in message
    assert "correct it in `tables`" in message
    assert live() == untouched
    assert engine.up(DECLARED) == "create"


def test_a_refused_change_leaves_the_table_as_secured_as_it_was(engine: Engine) -> None:
    engine.up(DECLARED)
    secured = live()
    with pytest.raises(DatabaseError):
        engine.up(broken("colour = 'red'"))
    assert live() == secured
    assert engine.drift(DECLARED) == {}
    assert engine.up(DECLARED) == "same"


def test_a_policy_for_a_role_that_the_server_has_not_got_is_refused_by_name(engine: Engine) -> None:
    nobody = {"name": "p", "command": "select", "roles": ["nobody_knows"], "using": "true", "permissive": True}
    with pytest.raises(DatabaseError, match=r'table public\.wells: role "nobody_knows" does not exist'):
        engine.up(DECLARED | {"policies": [nobody]})


def test_destroying_the_stack_closes_the_table(engine: Engine, admin: Connection) -> None:
    """Row level security stays on, and no API role keeps a privilege: what is left is closed, not open."""
    admin.execute("CREATE POLICY somebodys ON public.wells FOR SELECT TO postgres USING (true)")
    declared = DECLARED | {"exclusive": False}
    engine.up(declared)
    admin.execute("GRANT SELECT (name) ON public.wells TO anon; GRANT SELECT ON public.wells TO PUBLIC")
    engine.destroy()
    assert live().row_security
    assert [policy["policyname"] for policy in policies(admin)] == ["somebodys"]
    assert live().privileges == {}


def test_destroying_the_stack_of_a_dropped_table_is_no_error(engine: Engine, admin: Connection) -> None:
    engine.up(DECLARED)
    admin.execute("DROP TABLE public.wells")
    engine.destroy()


def test_destroying_one_of_two_tables_leaves_the_other(engine: Engine, admin: Connection) -> None:
    admin.execute("CREATE TABLE public.pumps (id int PRIMARY KEY)")
    other = Engine(TableSecurityProvider())
    other.up(DECLARED | {"table": "pumps"})
    engine.up(DECLARED)
    engine.destroy()
    assert other.drift(DECLARED | {"table": "pumps"}) == {}


def test_a_change_waits_for_a_reader_of_the_table_and_then_goes_through(
    engine: Engine, admin: Connection, acting_as: Callable[..., Connection]
) -> None:
    engine.up(DECLARED)
    reader = acting_as("anon")
    with ThreadPoolExecutor(1) as pool:
        with reader.transaction():
            reader.execute("SELECT count(*) FROM public.wells")
            change = pool.submit(engine.up, DECLARED | {"force": True})
            until(admin, "SELECT FROM pg_locks WHERE relation = 'public.wells'::regclass AND NOT granted")
            assert not change.done()
        assert change.result(timeout=10) == "update"
    assert live().force
