"""ApplicationMigrations: each file once, in order, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from providers import connection
from providers.connection import DatabaseError
from providers.migrations import BOOKKEEPING, ApplicationMigrationsProvider, applied_migrations, checksums
from tests.database.conftest import Connection, until
from tests.database.engine import CheckFailedError, Engine

WELLS = "CREATE TABLE public.wells (id int PRIMARY KEY);"
PUMPS = "CREATE TABLE public.pumps (id int PRIMARY KEY, well int REFERENCES public.wells);"
BROKEN = "CREATE TABLE public.half (id int);\nINSERT INTO public.half VALUES (1);\nSELECT * FROM public.nowhere;"

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def engine() -> Engine:
    return Engine(ApplicationMigrationsProvider())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "migrations"
    made.mkdir()
    return made


def written(folder: Path, **files: str) -> dict[str, Any]:
    """The inputs for a folder that holds these files, and nothing else."""
    for old in folder.iterdir():
        old.unlink()
    for name, text in files.items():
        (folder / f"{name.lstrip('_')}.sql").write_text(text)
    return inputs(folder)


def inputs(folder: Path) -> dict[str, Any]:
    return {"folder": str(folder), "files": checksums(folder)}


def tables(admin: Connection) -> list[str]:
    """The application's tables."""
    cursor = admin.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename")
    return [name for (name,) in cursor if name not in BOOKKEEPING]


def test_files_run_in_the_order_of_their_names(engine: Engine, folder: Path, admin: Connection) -> None:
    assert engine.up(written(folder, _0010_pumps=PUMPS, _0002_wells=WELLS)) == "create"
    assert tables(admin) == ["pumps", "wells"]
    ran = admin.execute("SELECT migration_id FROM _yoyo_migration ORDER BY applied_at_utc").fetchall()
    assert ran == [("0002_wells",), ("0010_pumps",)]


def test_the_database_knows_what_it_ran(engine: Engine, folder: Path) -> None:
    engine.up(written(folder, _1=WELLS))
    assert applied_migrations() == {"1": hashlib.sha256(WELLS.encode()).hexdigest()}


def test_a_file_runs_once(engine: Engine, folder: Path, admin: Connection) -> None:
    once = "CREATE TABLE IF NOT EXISTS public.runs (at timestamptz); INSERT INTO public.runs VALUES (now());"
    declared = written(folder, _1=once)
    engine.up(declared)
    assert engine.up(declared) == "same"
    assert engine.drift(declared) == {}
    assert engine.up(written(folder, _1=once, _2=WELLS)) == "update"
    assert Engine(ApplicationMigrationsProvider()).up(inputs(folder)) == "create", "a state that was lost"
    assert admin.execute("SELECT count(*) FROM public.runs").fetchone() == (1,)


def test_a_new_file_runs_alone(engine: Engine, folder: Path, admin: Connection) -> None:
    engine.up(written(folder, _1=WELLS))
    assert engine.up(written(folder, _1=WELLS, _2=PUMPS)) == "update"
    assert tables(admin) == ["pumps", "wells"]
    assert engine.drift(inputs(folder)) == {}


@pytest.mark.parametrize(
    ("now", "fault"),
    [
        ({"_1": WELLS + " -- corrected", "_2": PUMPS}, "1.sql has already run and has changed since"),
        ({"_2": PUMPS}, "1.sql has already run and is gone"),
    ],
)
class TestAFileThatHasRunMustStayAsItIs:
    def test_says_the_preview(self, now: Mapping[str, str], fault: str, engine: Engine, folder: Path) -> None:
        engine.up(written(folder, _1=WELLS))
        with pytest.raises(CheckFailedError) as refused:
            engine.up(written(folder, **now))
        assert str(refused.value) == f"{fault}; restore it, and put the change into a new file"

    def test_says_the_update_of_a_stack_whose_state_was_lost(
        self, now: Mapping[str, str], fault: str, engine: Engine, folder: Path, admin: Connection
    ) -> None:
        engine.up(written(folder, _1=WELLS))
        with pytest.raises(DatabaseError) as refused:
            Engine(ApplicationMigrationsProvider()).up(written(folder, **now))
        assert str(refused.value) == f"{fault}; restore it, and put the change into a new file"
        assert tables(admin) == ["wells"]


def test_a_file_that_changes_while_the_update_runs_is_not_run(engine: Engine, folder: Path, admin: Connection) -> None:
    declared = written(folder, _1=WELLS)
    written(folder, _1=PUMPS)
    with pytest.raises(DatabaseError, match="changed while the update ran"):
        engine.up(declared)
    assert tables(admin) == []


def test_a_failing_file_is_rolled_back_whole_and_the_ones_before_it_stay(
    engine: Engine, folder: Path, admin: Connection
) -> None:
    with pytest.raises(DatabaseError) as failed:
        engine.up(written(folder, _1=WELLS, _2_half=BROKEN, _3=PUMPS))
    message = str(failed.value)
    assert message.startswith("migration 2_half.sql failed and was rolled back: ")
    assert 'relation "public.nowhere" does not exist' in message
    assert "LINE 3" in message
    assert tables(admin) == ["wells"]
    assert list(applied_migrations()) == ["1"]


def test_the_next_up_completes_what_a_failing_file_stopped(engine: Engine, folder: Path, admin: Connection) -> None:
    with pytest.raises(DatabaseError):
        engine.up(written(folder, _1=WELLS, _2=BROKEN, _3=PUMPS))
    corrected = written(folder, _1=WELLS, _2="CREATE TABLE public.half (id int);", _3=PUMPS)
    assert engine.up(corrected) == "create"
    assert tables(admin) == ["half", "pumps", "wells"]
    assert engine.drift(corrected) == {}


def test_a_failing_update_leaves_the_state_of_the_one_before(engine: Engine, folder: Path) -> None:
    engine.up(written(folder, _1=WELLS))
    with pytest.raises(DatabaseError):
        engine.up(written(folder, _1=WELLS, _2=PUMPS, _3=BROKEN))
    assert engine.up(written(folder, _1=WELLS, _2=PUMPS)) == "update"
    assert engine.drift(inputs(folder)) == {}


PLPGSQL = """
CREATE FUNCTION public.twice(n int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    result int;  -- a comment; with a semicolon
BEGIN
    IF n IS NULL THEN RETURN NULL; END IF;
    FOR i IN 1..2 LOOP result := coalesce(result, 0) + n; END LOOP;
    EXECUTE $q$SELECT ';'$q$;
    RETURN result;
END;
$$;
INSERT INTO public.results SELECT public.twice(21);
"""
ATOMIC = """
CREATE FUNCTION public.twice(n int) RETURNS int LANGUAGE sql
BEGIN ATOMIC
    SELECT 1;
    SELECT CASE WHEN n IS NULL THEN 0 ELSE 2 * n END;
END;
INSERT INTO public.results SELECT public.twice(21);
"""
TRIGGER = """
CREATE TABLE public.wells (id int PRIMARY KEY);
CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    INSERT INTO public.results VALUES (NEW.id); RETURN NEW;
END $body$;
CREATE TRIGGER note AFTER INSERT ON public.wells FOR EACH ROW EXECUTE FUNCTION public.note();
INSERT INTO public.wells VALUES (42);
"""
RULE = """
CREATE TABLE public.wells (id int PRIMARY KEY);
CREATE RULE noted AS ON INSERT TO public.wells DO ALSO (SELECT 1; INSERT INTO public.results VALUES (NEW.id););
INSERT INTO public.wells VALUES (42);
"""
DO_BLOCK = """
DO $do$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'anon') THEN INSERT INTO public.results VALUES (42); END IF;
END $do$
"""
TEXTS = """
-- 100 % of :these {are} not %(parameters)s; nor is this a statement
/* nor; /* is; */ this; */
INSERT INTO public.results SELECT 42 WHERE 'a%b' LIKE 'a\\%%' AND ';' = U&'\\003B' AND E'\\'' = '''' AND ':x' = ':x';
"""
DUMP = """
SELECT pg_catalog.set_config('search_path', '', false);
SET ROLE postgres;
RESET ROLE;
SET check_function_bodies = false;
INSERT INTO public.results VALUES (42);
SET ROLE anon;
"""
OWN_TRANSACTION = """
BEGIN;
INSERT INTO public.results VALUES (42);
COMMIT;
"""
NO_TRANSACTION = """-- transactional: false
INSERT INTO public.results VALUES (42);
CREATE INDEX CONCURRENTLY ON public.results (result);
"""


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(PLPGSQL, id="plpgsql"),
        pytest.param(ATOMIC, id="begin atomic"),
        pytest.param(TRIGGER, id="trigger"),
        pytest.param(RULE, id="rule"),
        pytest.param(DO_BLOCK, id="do block"),
        pytest.param(TEXTS, id="texts and comments"),
        pytest.param(DUMP, id="dump"),
        pytest.param(OWN_TRANSACTION, id="a transaction of its own"),
        pytest.param(NO_TRANSACTION, id="no transaction"),
        pytest.param(TEXTS.replace("\n", "\r\n"), id="lines as on Windows"),
        pytest.param("\n\n;;INSERT INTO public.results VALUES (42)", id="no last semicolon"),
    ],
)
def test_a_file_may_hold_whatever_postgres_understands(
    text: str, engine: Engine, folder: Path, admin: Connection, capfd: pytest.CaptureFixture[str]
) -> None:
    made = "CREATE TABLE public.results (result int);"
    declared = written(folder, _1=made, _2=text, _3="CREATE TABLE public.last ();")
    assert engine.up(declared) == "create"
    assert admin.execute("SELECT result FROM public.results").fetchall() == [(42,)]
    assert list(applied_migrations()) == ["1", "2", "3"]
    assert "last" in tables(admin)
    assert engine.drift(declared) == {}
    # The engine shows what a provider prints.
    assert capfd.readouterr() == ("", "")


def test_a_failing_file_without_a_transaction_says_that_a_part_of_it_stays(
    engine: Engine, folder: Path, admin: Connection
) -> None:
    text = f"-- transactional: false\n{WELLS}\nSELECT * FROM public.nowhere;"
    with pytest.raises(DatabaseError) as failed:
        engine.up(written(folder, _1=text))
    assert str(failed.value).startswith("migration 1.sql failed, and what it did before stays: ")
    assert tables(admin) == ["wells"]


def test_a_failing_file_with_a_transaction_of_its_own_says_what_that_means(
    engine: Engine, folder: Path, admin: Connection
) -> None:
    with pytest.raises(DatabaseError) as failed:
        engine.up(written(folder, _1=f"BEGIN;\n{WELLS}\nCOMMIT;\n{BROKEN}"))
    assert str(failed.value).startswith(
        "migration 1.sql failed and was rolled back, except what a transaction of its own committed "
        '(BEGIN in line 1, COMMIT in line 3): relation "public.nowhere" does not exist'
    )
    assert tables(admin) == ["wells"]


def test_a_file_sees_nothing_of_what_the_one_before_set_for_itself(
    engine: Engine, folder: Path, admin: Connection
) -> None:
    engine.up(written(folder, _1="SET search_path = ''; SET ROLE anon;", _2=WELLS))
    assert tables(admin) == ["wells"]


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["1.sql", "1.rollback.sql"], "1.rollback.sql"),
        (["1.sql", "post-apply.sql"], "post-apply.sql"),
        (["1.sql", "2.py"], "2.py"),
    ],
)
def test_a_file_that_is_not_run_once_is_refused_by_name(names: list[str], fault: str, folder: Path) -> None:
    """yoyo runs them at other times, or as programs."""
    for name in names:
        (folder / name).write_text(f"-- {name}")
    with pytest.raises(DatabaseError) as refused:
        checksums(folder)
    assert f"which holds {fault}" in str(refused.value)
    assert "only .sql files that run once" in str(refused.value)


def test_two_files_with_the_same_content_are_refused_by_name(folder: Path) -> None:
    """The content's checksum is the key under which yoyo records a file: it would take the second for the first."""
    with pytest.raises(DatabaseError, match=r"1\.sql and 2\.sql .* are the same; remove one, or change a comment"):
        written(folder, _1=WELLS, _2=WELLS)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda folder: folder / "nowhere", "which is not a folder; create it, or remove the setting"),
        (lambda folder: folder, "which holds no .sql file; add one, or remove the setting"),
    ],
)
def test_a_folder_without_files_is_refused(make: Any, fault: str, folder: Path) -> None:
    with pytest.raises(DatabaseError) as refused:
        checksums(make(folder))
    assert fault in str(refused.value)


def test_other_files_of_the_folder_are_let_alone(folder: Path) -> None:
    (folder / "README.md").write_text("read me")
    (folder / "1.sql").write_text(WELLS)
    (folder / "old").mkdir()
    assert list(checksums(folder)) == ["1"]


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
def test_the_bookkeeping_is_closed_to_the_api(role: str, engine: Engine, folder: Path, admin: Connection) -> None:
    """In schema public, which Supabase's default privileges open to these roles."""
    admin.execute(
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated, service_role;"
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO PUBLIC"
    )
    engine.up(written(folder, _1=WELLS))
    admin.execute("GRANT USAGE ON SCHEMA public TO anon, authenticated, service_role")
    held = admin.execute(
        "SELECT t, p FROM unnest(%s::text[]) t, unnest(%s::text[]) p WHERE has_table_privilege(%s, t, p)",
        [list(BOOKKEEPING), ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"], role],
    ).fetchall()
    assert held == []
    made = admin.execute("SELECT tablename FROM pg_tables WHERE tablename = ANY(%s)", [list(BOOKKEEPING)]).fetchall()
    assert len(made) == len(BOOKKEEPING), "the names of yoyo's tables are others now"


def test_a_database_made_anew_runs_the_files_again(engine: Engine, folder: Path, admin: Connection) -> None:
    declared = written(folder, _1=WELLS)
    engine.up(declared)
    admin.execute("DROP TABLE public.wells, _yoyo_migration, _yoyo_log, _yoyo_version, yoyo_lock")
    assert engine.drift(declared) == {"files": {}}
    engine.refresh()
    assert engine.up(declared) == "update"
    assert tables(admin) == ["wells"]


def test_destroying_the_stack_leaves_the_tables_and_their_rows(engine: Engine, folder: Path, admin: Connection) -> None:
    engine.up(written(folder, _1=f"{WELLS} INSERT INTO public.wells VALUES (1);"))
    engine.destroy()
    assert admin.execute("SELECT id FROM public.wells").fetchall() == [(1,)]


def test_a_file_and_its_record_are_made_both_or_neither(engine: Engine, folder: Path, admin: Connection) -> None:
    """Else a process killed between the two would leave a file that the next update runs again."""
    engine.up(written(folder, _1=WELLS))
    admin.execute(
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'disk full'; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON _yoyo_migration FOR EACH ROW EXECUTE FUNCTION public.refuse()"
    )
    declared = written(folder, _1=WELLS, _2=PUMPS)
    with pytest.raises(DatabaseError, match=r"migration 2\.sql failed and was rolled back: disk full"):
        engine.up(declared)
    assert tables(admin) == ["wells"]
    admin.execute("DROP TRIGGER refuse ON _yoyo_migration")
    assert engine.up(declared) == "update"
    assert tables(admin) == ["pumps", "wells"]


def test_a_lock_that_a_killed_run_left_behind_is_in_nobodys_way(
    engine: Engine, folder: Path, admin: Connection
) -> None:
    """yoyo's lock is a row, held while it makes its own tables."""
    admin.execute(
        "CREATE TABLE yoyo_lock (locked int DEFAULT 1, ctime timestamp, pid int NOT NULL, PRIMARY KEY (locked));"
        "INSERT INTO yoyo_lock VALUES (1, now(), 999999)"
    )
    assert engine.up(written(folder, _1=WELLS)) == "create"
    assert tables(admin) == ["wells"]


UP = """
import sys
from pathlib import Path
from providers import connection
from providers.migrations import ApplicationMigrationsProvider, checksums
connection.connect_to(sys.stdin.read())
folder = Path(sys.argv[1])
ApplicationMigrationsProvider().create({"folder": str(folder), "files": checksums(folder)})
"""


def up_in_another_process(folder: Path, conninfo: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", UP, str(folder)], stdin=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(conninfo)
    process.stdin.close()
    return process


def test_an_up_killed_in_the_middle_of_a_file_leaves_nothing_in_the_way(
    engine: Engine, folder: Path, admin: Connection, database: str
) -> None:
    gate = "SELECT pg_advisory_xact_lock(4711);"
    declared = written(folder, _1=WELLS, _2=f"CREATE TABLE public.half (id int); {gate}", _3=PUMPS)
    with admin.transaction():
        admin.execute(gate.encode())
        process = up_in_another_process(folder, database)
        with psycopg.connect(database, autocommit=True) as watch:
            until(watch, "SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted")
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
        assert tables(admin) == ["wells"]
    assert engine.up(declared) == "create"
    assert tables(admin) == ["half", "pumps", "wells"]


def test_two_ups_at_once_run_each_file_once(engine: Engine, folder: Path, admin: Connection, database: str) -> None:
    gate = "SELECT pg_advisory_xact_lock(4711);"
    declared = written(folder, _1=f"{WELLS} {gate}", _2=PUMPS)
    with admin.transaction():
        admin.execute(gate.encode())
        first = up_in_another_process(folder, database)
        with psycopg.connect(database, autocommit=True) as watch:
            waiting = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            until(watch, waiting + " AND objid = 4711")
            second = up_in_another_process(folder, database)
            until(watch, waiting + " AND objid <> 4711")
    assert (first.wait(20), second.wait(20)) == (0, 0)
    assert tables(admin) == ["pumps", "wells"]
    assert engine.up(declared) == "create"


def test_a_server_that_is_gone_is_named_without_its_password(engine: Engine, folder: Path, database: str) -> None:
    gone = psycopg.conninfo.make_conninfo(database, port=1, password="do-not-tell")
    connection.connect_to(gone)
    with pytest.raises(DatabaseError) as unreachable:
        engine.up(written(folder, _1=WELLS))
    assert "Postgres on 127.0.0.1:1 does not answer" in str(unreachable.value)
    assert "do-not-tell" not in str(unreachable.value)
