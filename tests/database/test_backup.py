"""Backup and restore of a database, by Postgres's own programs: what comes back, what stays, and what is refused."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from deploy.archive import parse
from deploy.backup import Server, back_up, check_restorable, read_contents, replace_database
from deploy.container_commands import Commands, Finished
from deploy.errors import DeployError
from providers import connection
from providers.table_security import TableSecurityProvider
from rehearsal.server import binaries
from settings import Table
from tests.database.conftest import Connection, until
from tests.database.engine import Engine, security_of

WELLS = Table.model_validate(
    {"table": "public.wells", "read": ["anon"], "write": ["authenticated"], "replica_identity": "full"}
)
SCHEMA = """
CREATE SCHEMA _realtime;
CREATE SCHEMA realtime;
CREATE TABLE _realtime.tenants (external_id text);
CREATE TABLE realtime.messages (topic text, inserted_at timestamptz);
ALTER TABLE realtime.messages ENABLE ROW LEVEL SECURITY;
CREATE SCHEMA auth;
CREATE TABLE auth.users (id uuid PRIMARY KEY, email text);
CREATE TABLE public.wells (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, owner uuid REFERENCES auth.users
);
CREATE TABLE public.plans (id bigint PRIMARY KEY, name text, secret text);
CREATE FUNCTION public.named() RETURNS bigint LANGUAGE sql AS 'SELECT count(name) FROM public.wells';
CREATE PUBLICATION supabase_realtime FOR TABLE public.wells;
CREATE PUBLICATION other FOR TABLE public.plans (id, name) WHERE (id > 5);
CREATE PUBLICATION of_realtime FOR TABLE realtime.messages;
"""
USER = "7f9c24e8-3b12-4fef-91e0-5bb5ecf5d7f1"
ROWS = sql.SQL(
    "INSERT INTO auth.users VALUES ({user}, 'a@example.com');"
    "INSERT INTO public.wells (name, owner) VALUES ('first', {user}), ('second; DROP TABLE', NULL);"
    "INSERT INTO _realtime.tenants VALUES ('source');"
    "INSERT INTO realtime.messages VALUES ('of the source', now());"
).format(user=USER)
numbers = itertools.count(1)


class LocalCommands:
    """The programs of the embedded Postgres."""

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        stdin: Iterable[bytes] | None = None,
        output: Callable[[bytes], object] | None = None,
    ) -> Finished:
        path = f"{binaries()}:{os.environ['PATH']}"
        with subprocess.Popen(
            command,
            env={"PATH": path, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            fed = threading.Thread(target=self._feed, args=(process.stdin, stdin or ()))
            errors: list[bytes] = []
            heard = threading.Thread(target=self._hear, args=(process.stderr, errors))
            fed.start()
            heard.start()
            for chunk in iter(partial(process.stdout.read, 65536), b""):
                if output is not None:
                    output(chunk)
            fed.join()
            heard.join()
        return Finished(code=process.returncode, errors=errors[0].decode())

    @staticmethod
    def _hear(pipe: Any, errors: list[bytes]) -> None:
        errors.append(pipe.read())

    @staticmethod
    def _feed(pipe: Any, chunks: Iterable[bytes]) -> None:
        try:
            for chunk in chunks:
                pipe.write(chunk)
            pipe.flush()
        except BrokenPipeError:
            return
        # Left open, as the Docker engine leaves it: a command must not wait for the end.


@pytest.fixture
def new_server(database: str, superuser: Connection) -> Iterator[Callable[[], Server]]:
    """Makes a database of its own with the application's tables, empty."""
    with ExitStack() as made:

        def make() -> Server:
            name = f"backup_{next(numbers)}"
            superuser.execute(sql.SQL("CREATE DATABASE {} STRATEGY file_copy").format(sql.Identifier(name)))
            made.callback(superuser.execute, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
            where = psycopg.conninfo.conninfo_to_dict(database)
            server = Server(
                commands=LocalCommands(),
                host=str(where["host"]),
                port=int(str(where["port"])),
                user=str(where["user"]),
                database=name,
                password=str(where["password"]),
                conninfo=psycopg.conninfo.make_conninfo(database, dbname=name),
            )
            ask(server, SCHEMA)
            connection.connect_to(server.conninfo)
            Engine(TableSecurityProvider()).up(security_of(WELLS))
            return server

        yield make


@pytest.fixture
def source(new_server: Callable[[], Server]) -> Server:
    """A database with rows."""
    server = new_server()
    ask(server, ROWS)
    return server


@pytest.fixture
def target(new_server: Callable[[], Server]) -> Server:
    """Another, as `make up` leaves it."""
    server = new_server()
    ask(server, "INSERT INTO _realtime.tenants VALUES ('target')")
    return server


@pytest.fixture
def dump(source: Server, tmp_path: Path) -> Path:
    path = tmp_path / "backups" / "source.dump"
    back_up(source, path)
    return path


def ask(server: Server, query: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(server.conninfo, autocommit=True) as opened:
        cursor = opened.execute(query)
        return cursor.fetchall() if cursor.description else []


def restore(server: Server, path: Path, *, replace: bool = False) -> None:
    listing = check_restorable(server, path, read_contents(server, path), replace=replace)
    replace_database(server, path, listing, replace=replace)


def everything(server: Server) -> list[Any]:
    """Rows, security and publications: what a failed restore must leave alone."""
    connection.connect_to(server.conninfo)
    return [
        ask(server, "SELECT * FROM public.wells ORDER BY id"),
        ask(server, "SELECT * FROM auth.users"),
        ask(server, "SELECT external_id FROM _realtime.tenants"),
        ask(server, "SELECT oid, relname, relacl::text FROM pg_class WHERE relname IN ('wells', 'messages')"),
        ask(server, "SELECT * FROM pg_publication_tables ORDER BY pubname"),
        ask(server, "SELECT schemaname, tablename, policyname, qual FROM pg_policies ORDER BY 1, 2, 3"),
    ]


def test_the_rows_and_what_protects_them_come_back_in_an_empty_database(
    source: Server, target: Server, dump: Path
) -> None:
    ask(target, "ALTER TABLE public.wells DISABLE ROW LEVEL SECURITY")
    restore(target, dump)
    assert ask(target, "SELECT id, name, owner::text FROM public.wells ORDER BY id") == [
        (1, "first", USER),
        (2, "second; DROP TABLE", None),
    ]
    assert ask(target, "SELECT email, public.named() FROM auth.users") == [("a@example.com", 2)]
    connection.connect_to(target.conninfo)
    security = Engine(TableSecurityProvider())
    security.up(security_of(WELLS))
    connection.connect_to(source.conninfo)
    assert security.drift(security_of(WELLS)) == {}
    assert ask(target, "INSERT INTO public.wells (name) VALUES ('third') RETURNING id") == [(3,)]


def test_what_restores_finds_the_declared_policies_and_privileges_in_place(target: Server, dump: Path) -> None:
    """The state of a stack that was up before: a refresh after the restore sees no difference."""
    connection.connect_to(target.conninfo)
    security = Engine(TableSecurityProvider())
    security.up(security_of(WELLS))
    restore(target, dump)
    assert security.drift(security_of(WELLS)) == {}


def test_publications_are_the_targets_and_publish_the_restored_tables(target: Server, dump: Path) -> None:
    query = "SELECT pubname, schemaname, tablename, attnames, rowfilter FROM pg_publication_tables ORDER BY 1"
    before = ask(target, query)
    restore(target, dump)
    assert [publication for publication, *_ in before] == ["of_realtime", "other", "supabase_realtime"]
    assert ask(target, query) == before


def test_realtimes_own_schemas_are_neither_in_the_backup_nor_touched(target: Server, dump: Path) -> None:
    assert not [table for table in read_contents(target, dump).tables if "realtime" in table]
    restore(target, dump)
    assert ask(target, "SELECT external_id FROM _realtime.tenants") == [("target",)]
    assert ask(target, "SELECT * FROM realtime.messages") == []


def test_policies_of_private_channels_come_back(source: Server, target: Server, tmp_path: Path) -> None:
    for server, name in ((source, "owners of a well listen"), (target, "nobody listens")):
        ask(
            server,
            sql.SQL(
                "CREATE POLICY {} ON realtime.messages FOR SELECT TO authenticated "
                "USING (EXISTS (SELECT FROM public.wells w WHERE w.name = topic))"
            ).format(sql.Identifier(name)),
        )
    back_up(source, tmp_path / "dump")
    restore(target, tmp_path / "dump")
    query = "SELECT policyname, qual FROM pg_policies WHERE schemaname = 'realtime'"
    assert ask(target, query) == ask(source, query) != []


def test_a_database_goes_back_to_what_it_was(source: Server, dump: Path) -> None:
    """Also what is younger than the backup goes, so that migrations run again from where they stood."""
    before = everything(source)
    ask(
        source,
        "CREATE SCHEMA later; CREATE TABLE later.well_log (well bigint REFERENCES public.wells);"
        "CREATE VIEW public.names AS SELECT name FROM public.wells;"
        "ALTER TABLE public.wells ADD COLUMN depth int; DELETE FROM public.wells; SELECT lo_create(4711);",
    )
    restore(source, dump, replace=True)
    after = everything(source)
    oids = 3
    assert [part for number, part in enumerate(after) if number != oids] == [
        part for number, part in enumerate(before) if number != oids
    ]
    assert ask(source, "SELECT to_regnamespace('later') IS NULL, to_regclass('public.names') IS NULL") == [(True, True)]
    restore(source, dump, replace=True)


def test_large_objects_servers_and_event_triggers_come_back(source: Server, target: Server, tmp_path: Path) -> None:
    ask(
        source,
        "SELECT lo_from_bytea(4711, 'photo');"
        "CREATE FOREIGN DATA WRAPPER dummy; CREATE SERVER far FOREIGN DATA WRAPPER dummy;"
        "CREATE FUNCTION public.noted() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';"
        "CREATE EVENT TRIGGER noting ON ddl_command_end EXECUTE FUNCTION public.noted();",
    )
    back_up(source, tmp_path / "dump")
    for server in (target, source):
        restore(server, tmp_path / "dump", replace=server is source)
        assert ask(server, "SELECT lo_get(4711)") == [(b"photo",)]
        assert ask(server, "SELECT srvname FROM pg_foreign_server") == [("far",)]
        assert ask(server, "SELECT evtname FROM pg_event_trigger") == [("noting",)]


def test_nobody_but_its_owner_may_read_the_file(dump: Path) -> None:
    assert stat.S_IMODE(dump.stat().st_mode) == 0o600
    assert [path.name for path in dump.parent.iterdir()] == ["source.dump"]


def test_the_rows_of_a_database_are_not_lost_unless_told(source: Server, dump: Path) -> None:
    before = everything(source)
    with pytest.raises(DeployError, match=r"it holds rows already, in auth\.users, public\.wells; .*REPLACE=yes"):
        restore(source, dump)
    assert everything(source) == before


def test_rows_that_come_while_the_restore_begins_are_not_lost_either(target: Server, dump: Path) -> None:
    listing = check_restorable(target, dump, read_contents(target, dump), replace=False)
    ask(target, "INSERT INTO public.wells (name) VALUES ('just now')")
    with pytest.raises(DeployError, match=r"it holds rows already, in public\.wells; nothing was changed"):
        replace_database(target, dump, listing, replace=False)
    assert ask(target, "SELECT name FROM public.wells") == [("just now",)]


@pytest.mark.parametrize(
    ("kept", "fault"),
    [(0.0, "not a dump in pg_dump's custom format"), (0.6, "cannot be read by pg_restore"), (0.95, "cannot be read")],
)
def test_a_broken_file_changes_nothing(kept: float, fault: str, target: Server, dump: Path, tmp_path: Path) -> None:
    whole = dump.read_bytes()
    broken = tmp_path / "broken.dump"
    broken.write_bytes(whole[: int(len(whole) * kept)])
    before = everything(target)
    with pytest.raises(DeployError, match=fault):
        restore(target, broken)
    assert everything(target) == before


def test_a_file_that_breaks_off_while_it_is_restored_changes_nothing(
    target: Server, dump: Path, tmp_path: Path
) -> None:
    """As when the disk or the connection fails after the file was looked through."""
    whole = dump.read_bytes()
    listing = check_restorable(target, dump, read_contents(target, dump), replace=False)
    before = everything(target)
    for kept in range(50, 100, 10):
        broken = tmp_path / f"broken-{kept}.dump"
        broken.write_bytes(whole[: len(whole) * kept // 100])
        with pytest.raises(DeployError, match=r"pg_restore: error: .*; nothing was changed"):
            replace_database(target, broken, listing, replace=False)
        assert everything(target) == before


def test_a_statement_that_fails_changes_nothing(source: Server, target: Server, tmp_path: Path) -> None:
    ask(source, "CREATE ROLE only_in_the_source; GRANT SELECT ON public.wells TO only_in_the_source")
    try:
        back_up(source, tmp_path / "dump")
        ask(source, "REVOKE ALL ON public.wells FROM only_in_the_source")
    finally:
        ask(source, "DROP ROLE only_in_the_source")
    before = everything(target)
    with pytest.raises(DeployError, match='role "only_in_the_source" does not exist; nothing was changed'):
        restore(target, tmp_path / "dump")
    assert everything(target) == before


class LeftRunning(LocalCommands):
    """Ctrl-C while psql waits, which is left running, as in a container."""

    def __init__(self) -> None:
        self.left: list[subprocess.Popen[bytes]] = []

    def run(self, command: Sequence[str], **arguments: Any) -> Finished:
        if "psql" not in " ".join(command):
            return super().run(command, **arguments)
        environment = arguments["environment"]
        left = subprocess.Popen(
            command,
            env={"PATH": f"{binaries()}:{os.environ['PATH']}", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.left.append(left)
        conninfo = psycopg.conninfo.make_conninfo(
            host=environment["PGHOST"],
            port=environment["PGPORT"],
            user=environment["PGUSER"],
            password=environment["PGPASSWORD"],
            dbname=environment["PGDATABASE"],
        )
        with psycopg.connect(conninfo, autocommit=True) as watcher:
            until(
                watcher,
                "SELECT FROM pg_stat_activity WHERE application_name LIKE 'supabase-realtime restore %' "
                "AND (state = 'idle in transaction' OR wait_event_type = 'Lock')",
            )
        raise KeyboardInterrupt

    def end(self) -> None:
        """Close what nobody closed."""
        for left in self.left:
            assert left.stdin is not None
            left.stdin.close()
            left.wait(timeout=20)


@pytest.fixture
def left_running() -> Iterator[LeftRunning]:
    commands = LeftRunning()
    yield commands
    commands.end()


def with_commands(server: Server, commands: Commands) -> Server:
    return Server(**{**vars(server), "commands": commands})


def test_an_interrupted_restore_changes_nothing(target: Server, dump: Path, left_running: LeftRunning) -> None:
    listing = check_restorable(target, dump, read_contents(target, dump), replace=False)
    before = everything(target)
    with pytest.raises(DeployError, match=r"interrupted \(KeyboardInterrupt\); nothing was changed"):
        replace_database(with_commands(target, left_running), dump, listing, replace=False)
    left_running.end()
    assert everything(target) == before


def test_a_restore_that_is_interrupted_while_a_backup_runs_leaves_the_backup_alone(
    target: Server, dump: Path, tmp_path: Path, left_running: LeftRunning
) -> None:
    """The restore waits for the tables that the backup reads."""
    listing = check_restorable(target, dump, read_contents(target, dump), replace=False)
    with (
        ThreadPoolExecutor() as threads,
        psycopg.connect(target.conninfo) as holder,
        psycopg.connect(target.conninfo, autocommit=True) as watcher,
    ):
        holder.execute("LOCK TABLE public.plans IN ACCESS EXCLUSIVE MODE")
        backup = threads.submit(back_up, target, tmp_path / "meanwhile.dump")
        until(
            watcher,
            "SELECT FROM pg_stat_activity WHERE application_name = 'supabase-realtime backup' "
            "AND wait_event_type = 'Lock'",
        )
        with pytest.raises(DeployError, match=r"interrupted \(KeyboardInterrupt\); nothing was changed"):
            replace_database(with_commands(target, left_running), dump, listing, replace=False)
        holder.rollback()
        assert "public.wells" in backup.result(timeout=60).tables


def test_a_restore_is_interrupted_and_its_server_cannot_be_asked_what_became_of_it(target: Server, dump: Path) -> None:
    """Ctrl-C twice, or an engine that has taken Postgres down as well: nothing is claimed that is not known."""

    class Interrupted(LocalCommands):
        def run(self, command: Sequence[str], **arguments: Any) -> Finished:
            done = super().run(command, **arguments)
            if "psql" in " ".join(command):
                raise KeyboardInterrupt
            return done

    listing = check_restorable(target, dump, read_contents(target, dump), replace=False)
    gone = Server(
        **{
            **vars(with_commands(target, Interrupted())),
            "conninfo": psycopg.conninfo.make_conninfo(target.conninfo, port=1),
        }
    )
    with pytest.raises(DeployError, match=r"whether the database had been restored by then could not be asked \(.+\)"):
        replace_database(gone, dump, listing, replace=False)


def test_a_dump_of_a_newer_postgres_is_refused(target: Server, dump: Path) -> None:
    newer = parse("; Dumped from database version: 99.1\n")
    with pytest.raises(DeployError, match=r"is a dump of Postgres 99, and the stack runs 16, .*or a newer one"):
        check_restorable(target, dump, newer, replace=False)


def test_a_wrong_password_is_named_before_anything_is_touched(source: Server, dump: Path, tmp_path: Path) -> None:
    wrong = Server(
        **{**vars(source), "conninfo": psycopg.conninfo.make_conninfo(source.conninfo, password="not this one")}
    )
    for attempt in (
        lambda: back_up(wrong, tmp_path / "new.dump"),
        lambda: restore(wrong, dump, replace=True),
    ):
        with pytest.raises(DeployError, match=r"password authentication failed .*set postgres\.password") as refused:
            attempt()
        assert "not this one" not in str(refused.value)
    assert not (tmp_path / "new.dump").exists()


def test_a_password_that_changes_while_it_runs_fails_the_backup_and_leaves_no_file(
    source: Server, tmp_path: Path
) -> None:
    wrong = Server(**{**vars(source), "password": "not this one"})
    with pytest.raises(DeployError, match=r"pg_dump failed: .*password authentication failed.*no backup was made"):
        back_up(wrong, tmp_path / "new.dump")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_backup_leaves_no_file(source: Server, tmp_path: Path) -> None:
    class Interrupted(LocalCommands):
        def run(self, command: Sequence[str], **arguments: Any) -> Finished:
            super().run(command, **arguments)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(Server(**{**vars(source), "commands": Interrupted()}), tmp_path / "new.dump")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_backup_is_never_written_over(source: Server, dump: Path) -> None:
    before = dump.read_bytes()
    with pytest.raises(DeployError, match="exists already"):
        back_up(source, dump)
    assert dump.read_bytes() == before


class DoneMeanwhile(LocalCommands):
    """While pg_dump runs, another backup into the same file comes to its end."""

    def __init__(self, server: Server, path: Path) -> None:
        self.server, self.path = server, path

    def run(self, command: Sequence[str], **arguments: Any) -> Finished:
        done = super().run(command, **arguments)
        if command[0] == "pg_dump":
            back_up(self.server, self.path)
        return done


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_of_two_backups_at_once_into_one_file_the_first_to_end_is_kept(
    links: bool, source: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refused)
    path = tmp_path / "new.dump"
    with pytest.raises(DeployError, match=r"new\.dump was made meanwhile by somebody else; name another file"):
        back_up(with_commands(source, DoneMeanwhile(source, path)), path)
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "public.wells" in read_contents(source, path).tables
