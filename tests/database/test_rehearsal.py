"""The rehearsal says who may do what, and why: on the embedded server, with tables of many kinds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import yaml
from psycopg.rows import dict_row

from plan import program
from providers.connection import Cursor, DatabaseError
from rehearsal.advice import warnings
from rehearsal.applier import apply, connected_to
from rehearsal.case_trials import try_cases
from rehearsal.cases import CaseFileError, read_cases
from rehearsal.matrix import Extent, Matrix, Row, try_tables
from rehearsal.one_transaction import undone
from rehearsal.server import embedded_postgres
from rehearsal.stage import AUTH, staged, staged_in_transaction
from rehearsal.trials import FUNCTION, SUB
from settings import ApiRole, Command, Event
from tests.database.test_applier import schema_dump

PROJECT = Path(__file__).parents[2]
PUBLICATION = "supabase_realtime"
OPEN = {"name": "all", "command": "all", "roles": ["anon"], "using": "true", "check": "true"}


@pytest.fixture
def stage(database: str) -> Iterator[Cursor]:
    """A transaction with what a rehearsal brings along, and the publication."""
    with psycopg.connect(database, autocommit=True, row_factory=dict_row) as connection:
        connection.execute(AUTH.read_bytes())
        with connection.transaction(force_rollback=True), connection.cursor() as cursor:
            cursor.execute(FUNCTION.read_bytes())
            cursor.execute(f"CREATE PUBLICATION {PUBLICATION}".encode())
            yield cursor


Tried = Callable[..., Matrix]


@pytest.fixture
def tried(stage: Cursor) -> Tried:
    """The matrix of table ``t`` after some SQL, in which the table is published if not told otherwise."""

    def try_table(sql: str, *, published: bool = True) -> Matrix:
        stage.execute(sql.encode())
        stage.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
        if published:
            stage.execute(f"ALTER PUBLICATION {PUBLICATION} ADD TABLE t".encode())
        return try_tables(stage, [("public", "t")], PUBLICATION)

    return try_table


def row_of(matrix: Matrix, role: str) -> Row:
    (row,) = (row for row in matrix.rows if row.role == role)
    return row


def access(matrix: Matrix, role: str) -> list[str]:
    return [one.extent.value for one in row_of(matrix, role).access.values()]


def kinds(matrix: Matrix) -> set[str]:
    return {warning.kind for warning in warnings(matrix)}


OWNED = """
CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, owner uuid NOT NULL, title text);
ALTER TABLE t ENABLE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, UPDATE, DELETE ON t TO authenticated;
GRANT ALL ON t TO service_role;
CREATE POLICY own ON t TO authenticated USING (owner = auth.uid());
"""


def test_a_role_may_do_with_its_own_rows_what_the_policy_says(tried: Tried) -> None:
    matrix = tried(OWNED)
    assert access(matrix, "anon") == ["no"] * 4
    assert access(matrix, "authenticated") == ["own rows"] * 4
    assert access(matrix, "service_role") == ["yes"] * 4
    received = row_of(matrix, "authenticated").received
    assert [received[event].extent.value for event in Event] == ["own rows", "own rows", "yes"]
    assert received[Event.DELETE].old_record == ("id",)


def test_the_reason_is_in_the_servers_words_or_names_what_lacks(tried: Tried) -> None:
    matrix = tried(OWNED)
    assert row_of(matrix, "anon").access[Command.SELECT].reason == "permission denied for table t"
    assert "violates row-level security" in row_of(matrix, "authenticated").access[Command.INSERT].reason
    assert row_of(matrix, "authenticated").access[Command.SELECT].reason == "the policies for select leave the row out"
    assert row_of(matrix, "anon").received[Event.INSERT].error == "Error 401: Unauthorized"


def test_rows_differ_in_what_the_policies_look_at(tried: Tried) -> None:
    matrix = tried(
        """
        CREATE TYPE state AS ENUM ('draft', 'public');
        CREATE TABLE t (id uuid PRIMARY KEY, state state NOT NULL DEFAULT 'draft', title text);
        ALTER TABLE t ENABLE ROW LEVEL SECURITY;
        GRANT SELECT ON t TO anon;
        CREATE POLICY published ON t FOR SELECT TO anon USING (state = 'public');
        """
    )
    assert access(matrix, "anon")[0] == "some rows"


def test_columns_are_named_where_a_role_has_some(tried: Tried) -> None:
    matrix = tried(
        """
        CREATE TABLE t (id uuid PRIMARY KEY, title text, phone text);
        ALTER TABLE t ENABLE ROW LEVEL SECURITY;
        GRANT SELECT (id, title), INSERT (id, title) ON t TO anon;
        CREATE POLICY everything ON t USING (true);
        """
    )
    anon = row_of(matrix, "anon")
    assert anon.access[Command.SELECT].columns == ("id", "title")
    assert anon.access[Command.INSERT].columns == ("id", "title")
    assert anon.received[Event.INSERT].record == ("id", "title")
    assert not anon.received[Event.INSERT].complete


@pytest.mark.parametrize(
    "columns",
    [
        "id serial PRIMARY KEY",
        "id uuid PRIMARY KEY, n numeric(4, 1) NOT NULL CHECK (n BETWEEN 500 AND 600)",
        "id uuid PRIMARY KEY, low int NOT NULL, high int NOT NULL, CHECK (low < high)",
        "id uuid PRIMARY KEY, kind text NOT NULL CHECK (kind IN ('pump', 'valve'))",
        "id uuid PRIMARY KEY, at tstzrange NOT NULL, tags text[] NOT NULL, doc jsonb NOT NULL, ip inet NOT NULL",
        "id uuid PRIMARY KEY, code short NOT NULL",
        "id uuid PRIMARY KEY, parent uuid NOT NULL REFERENCES t (id), person uuid NOT NULL REFERENCES auth.users (id)",
        "id uuid, part int, PRIMARY KEY (id, part)",
        "id uuid PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) STORED",
    ],
)
def test_a_sample_row_fits_the_table(columns: str, tried: Tried) -> None:
    matrix = tried(
        f"""
        CREATE DOMAIN short AS text CHECK (length(VALUE) = 2 AND VALUE <> 'xx' OR VALUE = 'ab');
        CREATE TABLE t ({columns});
        GRANT ALL ON t TO anon; GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO anon;
        ALTER TABLE t ENABLE ROW LEVEL SECURITY;
        CREATE POLICY everything ON t USING (true);
        """
    )
    assert not matrix.untried
    assert access(matrix, "anon") == ["yes"] * 4
    assert row_of(matrix, "anon").truncate


def test_a_table_that_refuses_every_row_is_told_and_the_others_are_tried(tried: Tried, stage: Cursor) -> None:
    matrix = tried(
        """
        CREATE TABLE t (id uuid PRIMARY KEY);
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'closed for good'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION refuse();
        """
    )
    assert "closed for good" in matrix.untried["public.t"]
    assert kinds(matrix) >= {"untried"}
    assert stage.execute("SELECT 1 AS alive").fetchone() == {"alive": 1}


def test_trying_leaves_no_row_and_no_role_behind(tried: Tried, stage: Cursor) -> None:
    tried(OWNED)
    assert stage.execute("SELECT count(*) AS rows, current_user AS me FROM t").fetchone() == {
        "rows": 0,
        "me": "supabase_admin",
    }


SECURED = "CREATE TABLE t (id uuid PRIMARY KEY, title text); ALTER TABLE t ENABLE ROW LEVEL SECURITY;"


@pytest.mark.parametrize(
    ("kind", "sql", "published"),
    [
        ("published-but-unreadable", SECURED, True),
        (
            "readable-but-unpublished",
            f"{SECURED} GRANT SELECT ON t TO anon; CREATE POLICY p ON t FOR SELECT USING (true);",
            False,
        ),
        (
            "write-without-read",
            f"{SECURED} GRANT INSERT ON t TO anon; CREATE POLICY p ON t FOR INSERT WITH CHECK (true);",
            True,
        ),
        (
            "write-without-read",
            f"{SECURED} GRANT SELECT, DELETE ON t TO authenticated; "
            "CREATE POLICY p ON t FOR DELETE TO authenticated USING (title IS NOT NULL);",
            True,
        ),
        ("truncate-open", f"{SECURED} GRANT TRUNCATE ON t TO anon;", True),
        ("no-primary-key", "CREATE TABLE t (id uuid); ALTER TABLE t ENABLE ROW LEVEL SECURITY;", True),
        ("old-record-has-key-only", SECURED, True),
        ("row-level-security-off", "CREATE TABLE t (id uuid PRIMARY KEY);", True),
        (
            "anon-writes-all",
            f"{SECURED} GRANT UPDATE ON t TO anon; CREATE POLICY p ON t FOR UPDATE TO anon USING (true);",
            True,
        ),
        (
            "events-without-columns",
            f"{SECURED} GRANT SELECT (title) ON t TO anon; CREATE POLICY p ON t FOR SELECT USING (true);",
            True,
        ),
        (
            "policy-fails",
            f"{SECURED} GRANT SELECT ON t TO anon; "
            "CREATE POLICY p ON t FOR SELECT TO anon USING (1 / (length(title) - length(title)) = 1);",
            True,
        ),
    ],
)
def test_what_is_probably_not_meant_is_warned_of(kind: str, sql: str, published: bool, tried: Tried) -> None:
    found = [warning for warning in warnings(tried(sql, published=published)) if warning.kind == kind]
    assert found
    assert all(warning.tables == ("public.t",) and warning.cause and warning.cure for warning in found)


def test_a_table_as_it_should_be_is_not_warned_of(tried: Tried) -> None:
    assert kinds(tried(f"{OWNED} ALTER TABLE t REPLICA IDENTITY FULL;")) == set()


def test_rows_that_nobody_can_name_and_that_can_be_changed_all_the_same(tried: Tried) -> None:
    """DELETE without a condition asks for no SELECT policy."""
    matrix = tried(
        f"{SECURED} GRANT SELECT, DELETE ON t TO anon; CREATE POLICY p ON t FOR DELETE TO anon USING (title <> '');"
    )
    anon = row_of(matrix, "anon")
    assert anon.access[Command.DELETE].extent is Extent.NONE
    assert anon.blind == {Command.DELETE}


CASES_TABLE = f"""
{OWNED}
CREATE POLICY everybody ON t FOR SELECT TO authenticated USING (title = 'public');
CREATE POLICY awake ON t AS RESTRICTIVE TO authenticated USING (title <> 'locked');
CREATE TABLE members (person uuid, org text);
CREATE POLICY org ON t FOR SELECT TO anon USING (EXISTS (SELECT FROM members WHERE org = auth.jwt() ->> 'org'));
GRANT SELECT ON members, t TO anon;
"""
SOMEBODY_ELSE = "00000000-0000-4000-8000-000000000009"


def verdict(stage: Cursor, tmp_path: Path, case: Mapping[str, Any]) -> tuple[str, ...]:
    """The faults of a case on the table of CASES_TABLE."""
    path = tmp_path / "access.yaml"
    path.write_text(yaml.safe_dump([{"as": "authenticated", "claims": {"sub": SUB}, "table": "public.t", **case}]))
    (one,) = try_cases(stage, read_cases(path), PUBLICATION, path)
    return one.faults


@pytest.mark.parametrize(
    "case",
    [
        {"row": {"owner": SUB}, "change": "insert", "expect": {"allowed": True, "receives": True}},
        {"row": {"owner": SOMEBODY_ELSE}, "change": "insert", "expect": {"allowed": False, "receives": False}},
        {"row": {"owner": SUB}, "change": "select", "expect": {"allowed": True}},
        {"row": {"owner": SOMEBODY_ELSE, "title": "public"}, "change": "select", "expect": {"allowed": True}},
        {"row": {"owner": SUB, "title": "locked"}, "change": "delete", "expect": {"allowed": False}},
        {
            "row": {"owner": SUB},
            "change": {"update": {"owner": SOMEBODY_ELSE}},
            "expect": {"allowed": False, "receives": False},
        },
        {"row": {"owner": SOMEBODY_ELSE}, "change": "delete", "expect": {"allowed": False, "receives": ["id"]}},
        {"row": {"owner": SUB}, "change": "truncate", "expect": {"allowed": False}},
        {
            "as": "anon",
            "claims": {"org": "north"},
            "given": [{"table": "public.members", "row": {"person": SUB, "org": "north"}}],
            "row": {"owner": SUB},
            "change": "insert",
            "expect": {"allowed": False, "receives": ["id", "owner", "title"]},
        },
        {
            "as": "anon",
            "claims": {"org": "north"},
            "row": {"owner": SUB},
            "change": "insert",
            "expect": {"receives": False},
        },
        {
            "as": "service_role",
            "claims": {},
            "row": {},
            "change": "insert",
            "expect": {"allowed": True, "receives": True},
        },
    ],
)
def test_a_case_that_holds_passes(case: Mapping[str, Any], tried: Tried, stage: Cursor, tmp_path: Path) -> None:
    tried(CASES_TABLE)
    assert verdict(stage, tmp_path, case) == ()


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        (
            {"row": {"owner": SUB}, "change": "insert", "expect": {"allowed": False}},
            "should not be allowed and is: policy “own” for all to authenticated USING ((owner = auth.uid())) lets it",
        ),
        (
            {"row": {"owner": SOMEBODY_ELSE}, "change": "insert", "expect": {"allowed": True}},
            "should be allowed and is not: policy “own” for all to authenticated USING ((owner = auth.uid())) does not",
        ),
        (
            {"row": {"owner": SUB, "title": "locked"}, "change": "insert", "expect": {"allowed": True}},
            "should be allowed and is not: restrictive policy “awake”",
        ),
        (
            {"row": {"owner": SUB, "title": "locked"}, "change": "insert", "expect": {"receives": True}},
            "should receive the event and does not: restrictive policy “awake”",
        ),
        (
            {"row": {"owner": SOMEBODY_ELSE, "title": "public"}, "change": "insert", "expect": {"receives": False}},
            "should not receive the event and does: policy “everybody”",
        ),
        (
            {"row": {"owner": SOMEBODY_ELSE}, "change": "delete", "expect": {"receives": False}},
            "should not receive the event and does: deletions go to everybody",
        ),
        (
            {"as": "anon", "claims": {}, "row": {"owner": SUB}, "change": "delete", "expect": {"allowed": True}},
            "should be allowed and is not: permission denied for table t",
        ),
        (
            {"row": {"owner": SUB}, "change": "insert", "expect": {"receives": ["id"]}},
            "should receive id and receives id, owner, title",
        ),
    ],
)
def test_a_case_that_fails_names_what_decided(
    case: Mapping[str, Any], fault: str, tried: Tried, stage: Cursor, tmp_path: Path
) -> None:
    tried(CASES_TABLE)
    (told,) = verdict(stage, tmp_path, case)
    assert told.startswith(fault)


SWALLOWING = """
CREATE TABLE t (id int PRIMARY KEY, title text NOT NULL);
ALTER TABLE t ENABLE ROW LEVEL SECURITY;
GRANT ALL ON t TO anon;
CREATE POLICY everything ON t USING (true);
CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER swallow BEFORE {event} ON t FOR EACH ROW {condition} EXECUTE FUNCTION swallow();
"""


def test_a_table_whose_trigger_swallows_every_row_is_told_and_the_others_are_tried(tried: Tried) -> None:
    """As where a trigger sends the rows to other tables."""
    matrix = tried(SWALLOWING.format(event="INSERT", condition=""))
    assert "public.t: a trigger or rule swallows the row" in matrix.untried["public.t"]
    assert kinds(matrix) >= {"untried"}


def test_a_row_that_a_trigger_swallows_leaves_the_others_of_its_table_to_be_tried(tried: Tried) -> None:
    matrix = tried(
        f"""
        {SWALLOWING.format(event="INSERT", condition="WHEN (NEW.title = 'twice')")}
        CREATE POLICY once ON t AS RESTRICTIVE FOR DELETE USING (title <> 'twice');
        """
    )
    assert not matrix.untried
    assert access(matrix, "anon") == ["yes"] * 4


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        (
            {"change": "insert", "expect": {"allowed": True}},
            "should be allowed and is not: a trigger or rule swallows the insert",
        ),
        (
            {"change": {"update": {"title": "other"}}, "expect": {"allowed": True}},
            "should be allowed and is not: a trigger or rule swallows the update",
        ),
        (
            {"change": {"update": {"title": "other"}}, "expect": {"receives": True}},
            "should receive the event and does not: a trigger or rule swallows the update",
        ),
    ],
)
def test_a_case_whose_change_a_trigger_swallows_says_so(
    case: Mapping[str, Any], fault: str, tried: Tried, stage: Cursor, tmp_path: Path
) -> None:
    tried(SWALLOWING.format(event="INSERT" if case["change"] == "insert" else "UPDATE", condition=""))
    assert verdict(stage, tmp_path, {"as": "anon", "row": {"id": 1, "title": "one"}, **case}) == (fault,)


def test_a_case_whose_row_a_trigger_swallows_is_an_error_with_its_line(
    tried: Tried, stage: Cursor, tmp_path: Path
) -> None:
    tried(SWALLOWING.format(event="INSERT", condition=""))
    with pytest.raises(CaseFileError, match=r"access\.yaml:1: public\.t: a trigger or rule swallows the row"):
        verdict(stage, tmp_path, {"as": "anon", "change": "delete", "expect": {"allowed": True}})


@pytest.mark.parametrize(
    ("policy", "received"),
    [("true", True), ("id = 6", True), ("id = 5", False)],
)
@pytest.mark.parametrize("change", [{"id": 6}, {"title": "six"}], ids=["by the statement", "by a trigger"])
def test_a_row_whose_key_changes_is_looked_for_under_its_new_key(  # noqa: PLR0917 - two of them make the case
    change: Mapping[str, Any], policy: str, received: bool, tried: Tried, stage: Cursor, tmp_path: Path
) -> None:
    """Realtime asks for the key that the change's new record holds."""
    tried(
        f"""
        CREATE TABLE t (id int PRIMARY KEY, title text);
        ALTER TABLE t ENABLE ROW LEVEL SECURITY;
        GRANT ALL ON t TO anon;
        CREATE POLICY p ON t TO anon USING ({policy}) WITH CHECK (true);
        CREATE FUNCTION renumber() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.id := 6; RETURN NEW; END $$;
        CREATE TRIGGER renumber BEFORE UPDATE OF title ON t FOR EACH ROW EXECUTE FUNCTION renumber();
        """
    )
    case = {"as": "anon", "row": {"id": 5, "title": "one"}, "change": {"update": change}}
    assert verdict(stage, tmp_path, {**case, "expect": {"receives": received}}) == ()
    (fault,) = verdict(stage, tmp_path, {**case, "expect": {"receives": not received}})
    assert "policy “p”" in fault


CASE = "- {as: anon, table: public.t, change: insert, expect: {allowed: true}}\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("- [", "access.yaml:1: is not YAML"),
        (
            f"{CASE}- {{as: anon, table: t, change: insert, expect: {{allowed: true}}}}",
            "access.yaml:2: table: 't' has no",
        ),
        (f"{CASE}- {{as: root, table: public.t, change: insert, expect: {{allowed: true}}}}", "access.yaml:2: as: "),
        (f"{CASE}\n- as: anon\n  table: public.t\n  change: upsert\n  expect: {{}}", "access.yaml:5: change: "),
        (f"{CASE}- {{as: anon, table: public.t, change: insert}}", "access.yaml:2: expect: Field required"),
        (f"{CASE}- {{as: anon, table: public.t, change: insert, expect: {{}}}}", "access.yaml:2: expects nothing"),
        (
            f"{CASE}- as: anon\n  table: public.t\n  change: insert\n  expect: {{alowed: true}}",
            "access.yaml:5: expect.alowed",
        ),
        (
            "- {as: anon, table: public.t, change: truncate, expect: {receives: true}}",
            "access.yaml:1: expects to receive",
        ),
        ("given: []\ncase: []", "access.yaml:2: 'case' is not known here"),
        ("cases: all", "access.yaml:1: is not a list of cases"),
    ],
)
def test_a_broken_file_of_cases_is_an_error_with_its_line(text: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "access.yaml"
    path.write_text(text)
    with pytest.raises(CaseFileError) as broken:
        read_cases(path)
    assert fault in str(broken.value)


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        (
            {"table": "public.absent", "change": "insert", "expect": {"allowed": True}},
            "access.yaml:1: there is no table",
        ),
        (
            {"row": {"nam": 1}, "change": "insert", "expect": {"allowed": True}},
            "access.yaml:1: public.t has no column nam",
        ),
        (
            {"row": {"owner": "nobody"}, "change": "insert", "expect": {"allowed": True}},
            "access.yaml:1: Postgres refuses the case's row: invalid input syntax for type uuid",
        ),
    ],
)
def test_a_case_that_the_database_does_not_know_is_an_error_with_its_line(
    case: Mapping[str, Any], fault: str, tried: Tried, stage: Cursor, tmp_path: Path
) -> None:
    tried(CASES_TABLE)
    with pytest.raises(CaseFileError) as broken:
        verdict(stage, tmp_path, case)
    assert fault in str(broken.value)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, with a stack of the test's own."""
    for source in ("components", "doctor", "plan", "providers", "rehearsal", "sql"):
        shutil.copytree(PROJECT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
    for source in ("__main__.py", "realtime_versions.py", "settings.py", "tokens.py", "Pulumi.yaml", "Pulumi.dev.yaml"):
        shutil.copy(PROJECT / source, tmp_path / source)
    (tmp_path / "tests").mkdir()
    shutil.copy(PROJECT / "tests" / "access.yaml", tmp_path / "tests")
    return tmp_path


def command(project: Path, *options: str, dsn: str | None = None) -> tuple[list[str], dict[str, Any]]:
    """`make rehearse` as a process, with its temporary files in the project."""
    temporary = project / "tmp"
    temporary.mkdir(exist_ok=True)
    temporary.chmod(0o1777)
    # The account that the server runs as for root has to reach it.
    for folder in temporary.parents[:3]:
        folder.chmod(folder.stat().st_mode | 0o011)
    environ = os.environ | {"PYTHONPATH": str(project), "TMPDIR": str(temporary), "PATH": "/usr/bin:/bin"}
    environ |= {} if dsn is None else {"REHEARSAL_DSN": dsn}
    return [sys.executable, "-m", "rehearsal", *options], {"cwd": project, "env": environ}


def rehearse(project: Path, *options: str, dsn: str | None = None) -> subprocess.CompletedProcess[str]:
    arguments, where = command(project, *options, dsn=dsn)
    return subprocess.run(arguments, **where, capture_output=True, text=True, check=False, timeout=120)


def test_the_dev_stack_is_rehearsed_from_nothing(project: Path) -> None:
    done = rehearse(project, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    anon = document["matrix"][0]
    assert (anon["table"], anon["role"]) == ("public.wells", "anon")
    assert anon["receives"]["insert"]["record"] == ["id", "name", "depth_m", "active", "created_at"]
    assert {warning["kind"] for warning in document["warnings"]} == {"old-record-has-key-only", "anon-writes-all"}
    assert [case["faults"] for case in document["cases"]] == [[], []]
    assert "Container realtime" in document["not_made"]


def test_markdown_and_the_table_say_the_same(project: Path) -> None:
    told = rehearse(project, "--markdown").stdout
    assert "| public.wells | anon | yes | yes | yes | yes | no | yes | yes | yes: id |" in told
    printed = rehearse(project).stdout
    assert "│ public.wells │ anon          │ yes" in printed
    assert "Cases: 2 passed, 0 failed, 6 of other stacks left out" in printed


def test_a_failed_case_exits_1_and_a_broken_file_2(project: Path) -> None:
    cases = project / "cases.yaml"
    cases.write_text("- {as: anon, table: public.wells, change: insert, expect: {allowed: false}}")
    failed = rehearse(project, "--cases", "cases.yaml")
    assert failed.returncode == 1, failed.stderr
    assert "line 1, insert on public.wells as anon" in failed.stdout
    assert "should not be allowed and is: policy “wells_insert”" in failed.stdout
    cases.write_text("- {as: anon}")
    broken = rehearse(project, "--cases", "cases.yaml")
    assert broken.returncode == 2
    assert broken.stderr.startswith("cases.yaml:1: ")


def test_a_migration_that_fails_is_told_without_a_traceback(project: Path) -> None:
    (project / "sql" / "migrations" / "0002_broken.sql").write_text("CREATE TABLE public.wells (id int)")
    done = rehearse(project)
    assert done.returncode == 2
    assert "migration 0002_broken.sql failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_existing_database_is_left_as_it_was(project: Path, empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE notes (id bigint PRIMARY KEY)")
        connection.execute("INSERT INTO notes VALUES (1)")
    before = schema_dump(empty_database)
    done = rehearse(project, "--json", dsn=empty_database)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["matrix"][0]["table"] == "public.wells"
    assert schema_dump(empty_database) == before
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT count(*) FROM notes").fetchone() == (1,)


def test_an_existing_database_is_rehearsed_as_it_is(project: Path, empty_database: str) -> None:
    """Migrations that have run are not run again, and a policy made by hand is the stack's to remove."""
    assert rehearse(project, dsn=empty_database).returncode == 0
    declared = program.run(program.stack_config("dev"))
    with connected_to(empty_database):
        apply(declared.resources, declared.config.project)
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("CREATE POLICY by_hand ON wells FOR SELECT USING (false)")
    done = rehearse(project, "--json", dsn=empty_database)
    assert done.returncode == 0, done.stderr
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT count(*) FROM pg_policies WHERE policyname = 'by_hand'").fetchone() == (1,)


def test_a_user_who_cannot_assume_roles_is_told_so(project: Path, empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS weak; CREATE ROLE weak LOGIN PASSWORD 'weak'")
    done = rehearse(project, dsn=psycopg.conninfo.make_conninfo(empty_database, user="weak", password="weak"))
    assert done.returncode == 2
    assert "weak is no superuser; name a user in the DSN that is" in done.stderr


def left_behind(conninfo: str) -> tuple[str, list[tuple[str]]]:
    """What a rehearsal could leave in a database and on its server."""
    with psycopg.connect(conninfo) as connection:
        roles = connection.execute("SELECT rolname FROM pg_roles ORDER BY rolname").fetchall()
    return schema_dump(conninfo), roles


def test_a_migration_that_would_commit_is_refused_before_anything_runs(project: Path, empty_database: str) -> None:
    """What Postgres commits, no transaction around it takes back."""
    migrations = project / "sql" / "migrations"
    (migrations / "0002_first.sql").write_text("CREATE TABLE before (id int PRIMARY KEY);")
    (migrations / "0003_stays.sql").write_text(
        "-- a file as psql takes it\nBEGIN;\nCREATE TABLE stays (id int);\nCOMMIT;\nCREATE TABLE stays2 (id int);\n"
    )
    before = left_behind(empty_database)
    done = rehearse(project, dsn=empty_database)
    assert left_behind(empty_database) == before
    assert done.returncode == 2
    assert done.stderr == (
        "sql/migrations/0003_stays.sql:2: has a transaction of its own (BEGIN in line 2, COMMIT in line 4), which "
        "would end the one that a rehearsal with --dsn rolls back, so that what was made by then would stay in the "
        "database; remove them, since `up` runs each file in a transaction anyway, or rehearse without --dsn, where "
        "each file runs as in `up`\n"
    )
    assert rehearse(project).returncode == 0, "on a server of its own it runs as in `up`"


def test_a_migration_without_a_transaction_that_would_commit_is_refused_with_the_cure_that_it_has(
    project: Path, empty_database: str
) -> None:
    (project / "sql" / "migrations" / "0002_stays.sql").write_text(
        "-- transactional: false\nCREATE TABLE stays (id int);\nCOMMIT AND CHAIN"
    )
    before = left_behind(empty_database)
    done = rehearse(project, dsn=empty_database)
    assert left_behind(empty_database) == before
    assert done.stderr.startswith("sql/migrations/0002_stays.sql:3: has a transaction of its own (COMMIT in line 3)")
    assert "stay in the database; rehearse without --dsn" in done.stderr


@pytest.mark.parametrize(
    ("sql", "left"),
    [
        ("CREATE TABLE stays (); COMMIT; CREATE TABLE stays2 ();", "rehearsal_is_rolled_back"),
        ("CREATE TABLE stays (); COMMIT AND CHAIN; CREATE TABLE stays2 (); COMMIT;", "rehearsal_is_rolled_back"),
        ("CREATE TABLE stays (); PREPARE TRANSACTION 'stays'", "rehearsal_is_rolled_back"),
        ("CREATE TABLE stays (); RESET ALL; ROLLBACK; CREATE TABLE stays2 ();", "read-only transaction"),
    ],
)
def test_a_transaction_to_be_undone_is_undone_by_the_server_itself(sql: str, left: str, empty_database: str) -> None:
    """Also if somebody found a way past the reading of the files."""
    before = left_behind(empty_database)
    with psycopg.connect(empty_database, autocommit=True, row_factory=dict_row) as connection:
        with pytest.raises(psycopg.Error, match=left), undone(connection) as cursor:
            cursor.execute(sql.encode())
        assert connection.execute("SELECT count(*) AS prepared FROM pg_prepared_xacts").fetchone() == {"prepared": 0}
    assert left_behind(empty_database) == before


@pytest.mark.parametrize("ends", ["COMMIT", "ROLLBACK", "ROLLBACK; BEGIN"])
def test_a_migration_that_ended_the_transaction_all_the_same_is_named(
    ends: str, project: Path, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "sql" / "migrations" / "0002_ends.sql").write_text(f"CREATE TABLE stays (id int); {ends};")
    monkeypatch.setattr("rehearsal.migrations.transaction_statements", lambda _: [])
    before = left_behind(empty_database)
    declared = program.run(program.stack_config("dev", project))
    with (
        pytest.raises(DatabaseError, match=r"migration 0002_ends\.sql ended the transaction .* nothing of it was kept"),
        staged_in_transaction(declared, empty_database),
    ):
        raise AssertionError("it was rehearsed")
    assert left_behind(empty_database) == before


def test_a_migration_that_has_committed_already_is_in_nobodys_way(project: Path, empty_database: str) -> None:
    (project / "sql" / "migrations" / "0002_own.sql").write_text("BEGIN; CREATE TABLE own (id int); COMMIT;")
    declared = program.run(program.stack_config("dev", project))
    with connected_to(empty_database):
        apply(declared.resources, project)
    done = rehearse(project, dsn=empty_database)
    assert done.returncode == 0, done.stderr


FILES_THAT_RUN = {
    "0002_dump": "SELECT pg_catalog.set_config('search_path', '', false); SET row_security = off; SET ROLE anon;",
    "0003_after_a_dump": "CREATE TEMPORARY TABLE ids AS SELECT 1 AS id; CREATE TABLE parents (id int PRIMARY KEY);"
    "CREATE TABLE children (parent int REFERENCES parents DEFERRABLE INITIALLY DEFERRED);"
    "INSERT INTO children VALUES (1); INSERT INTO parents VALUES (1);",
    "0004_another_session": "CREATE TEMPORARY TABLE ids AS SELECT 2 AS id; ALTER TABLE children ADD name text;"
    "SET CONSTRAINTS ALL IMMEDIATE;",
    "0005_only_postgres_splits": "/* one /* two; */ three; */ SELECT 'c:\\', ';';"
    "CREATE FUNCTION one() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 0; SELECT 1; END;"
    "CREATE RULE r AS ON INSERT TO parents DO ALSO (SELECT 1; INSERT INTO children VALUES (NEW.id););"
    "INSERT INTO children VALUES (2); INSERT INTO parents VALUES (2);",
    "0006_without": "-- transactional: false\nCREATE TYPE mood AS ENUM ('ok');\nALTER TYPE mood ADD VALUE 'sad';",
    "0007_savepoint": "SAVEPOINT a; CREATE TABLE gone (); ROLLBACK TO a; DO $$ BEGIN PERFORM 1; END $$;",
}
"""Files that one connection and one transaction for all of them would not take."""


def test_migrations_that_up_runs_are_rehearsed_on_an_existing_database(project: Path, empty_database: str) -> None:
    for name, text in FILES_THAT_RUN.items():
        (project / "sql" / "migrations" / f"{name}.sql").write_text(text)
    alone = rehearse(project, "--json")
    assert alone.returncode == 0, alone.stderr
    before = left_behind(empty_database)
    there = rehearse(project, "--json", dsn=empty_database)
    assert there.returncode == 0, there.stderr
    assert json.loads(there.stdout) == json.loads(alone.stdout)
    assert left_behind(empty_database) == before


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("SELECT * FROM nowhere", 'migration 0002_broken.sql failed: relation "nowhere" does not exist'),
        (
            "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (p int REFERENCES p DEFERRABLE INITIALLY DEFERRED);"
            "INSERT INTO c VALUES (1);",
            'migration 0002_broken.sql failed: insert or update on table "c" violates foreign key constraint',
        ),
        (
            "-- transactional: false\nCREATE INDEX CONCURRENTLY ON wells (name);",
            "migration 0002_broken.sql cannot be rehearsed with --dsn: CREATE INDEX CONCURRENTLY cannot run inside a "
            "transaction block; rehearse without --dsn",
        ),
    ],
)
def test_a_migration_that_fails_on_an_existing_database_is_named(
    text: str, fault: str, project: Path, empty_database: str
) -> None:
    (project / "sql" / "migrations" / "0002_broken.sql").write_text(text)
    before = left_behind(empty_database)
    done = rehearse(project, dsn=empty_database)
    assert done.returncode == 2
    assert done.stderr.startswith(fault)
    assert left_behind(empty_database) == before


@pytest.mark.parametrize(
    "dsn",
    [
        "host=127.0.0.1 password=hush secret user=x",
        "postgresql://x:hush@127.0.0.1/postgres",
        "host=127.0.0.1 password='hush secret'",
    ],
)
def test_a_password_in_the_arguments_is_refused_and_not_repeated(dsn: str, project: Path) -> None:
    done = rehearse(project, "--dsn", dsn)
    assert done.returncode == 2
    assert done.stderr.startswith("--dsn: ")
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
    assert "hush" not in done.stderr


def test_the_password_may_be_in_the_environment(project: Path, empty_database: str) -> None:
    where = psycopg.conninfo.conninfo_to_dict(empty_database)
    password = where.pop("password")
    arguments, how = command(project, "--dsn", psycopg.conninfo.make_conninfo("", **where))
    how["env"] |= {"PGPASSWORD": password}
    done = subprocess.run(arguments, **how, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_database_that_cannot_be_reached_is_told_without_a_traceback(project: Path) -> None:
    for dsn in ("postgresql://x:hush@127.0.0.1:1/postgres", "host=127.0.0.1 port=1 connect_timeout=soon"):
        done = rehearse(project, dsn=dsn)
        assert done.returncode == 2
        assert done.stderr.startswith("the database")
        assert "Traceback" not in done.stderr
        assert "hush" not in done.stderr


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_nothing_is_left_behind_when_it_is_interrupted(project: Path, number: signal.Signals, code: int) -> None:
    """No process, no port and no folder, whenever Ctrl-C comes, and even when it is killed."""
    (project / "sql" / "migrations" / "0002_slow.sql").write_text("SELECT pg_sleep(60)")
    arguments, where = command(project)
    started = subprocess.Popen(arguments, **where, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    server: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while not any("SELECT" in " ".join(_commandline(process)) for process in server):
        assert started.poll() is None, started.communicate()[1]
        assert time.monotonic() < deadline, "the migration never ran"
        server = psutil.Process(started.pid).children(recursive=True)
        time.sleep(0.05)
    started.send_signal(number)
    _, said = started.communicate(timeout=60)
    assert started.returncode == code
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(server, timeout=30)
    assert not alive
    assert list((project / "tmp").iterdir()) == []


def _commandline(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_two_hundred_tables_take_less_than_half_a_minute(project: Path) -> None:
    """In processor time of this process and of the server, which take turns: as on a machine that is otherwise idle."""
    tables = [f"t{number}" for number in range(200)]
    (project / "sql" / "migrations" / "0002_many.sql").write_text(
        "\n".join(
            f"CREATE TABLE public.{table} (id uuid PRIMARY KEY, title text NOT NULL, owner uuid NOT NULL, "
            "active boolean NOT NULL, depth numeric(8, 2) CHECK (depth > 0), made timestamptz NOT NULL);"
            for table in tables
        )
    )
    own = {"using": "owner = auth.uid()", "roles": ["authenticated"]}
    policies = [
        {"name": "read active", "command": "select", "roles": ["anon", "authenticated"], "using": "active"},
        {"name": "read own", "command": "select", **own},
        {"name": "write own", "command": "insert", "roles": ["authenticated"], "check": "owner = auth.uid()"},
        {"name": "change own", "command": "update", **own},
        {"name": "delete own", "command": "delete", **own},
    ]
    declared = [{"table": f"public.{table}", "policies": policies} for table in tables]
    config = {"supabase-realtime:migrations": "sql/migrations", "supabase-realtime:tables": declared}
    (project / "Pulumi.many.yaml").write_text(yaml.safe_dump({"config": config}))
    with embedded_postgres() as conninfo:
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        before = sum(_processor_seconds(process) for process in processes)
        many = program.run(program.stack_config("many", project))
        with staged(many, conninfo) as cursor:
            matrix = try_tables(cursor, [("public", table) for table in tables], PUBLICATION)
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            took = sum(_processor_seconds(process) for process in processes) - before
    assert len(matrix.rows) == len(tables) * len(ApiRole)
    assert access(Matrix(rows=matrix.rows[:3], tables=[]), "authenticated") == ["some rows", *["own rows"] * 3]
    assert took < 30, took


def _processor_seconds(process: psutil.Process) -> float:
    """Of the process and of those that it has waited for, to which one that has just ended belongs."""
    try:
        used = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(used.user + used.system + used.children_user + used.children_system)
