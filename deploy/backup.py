"""Dump of a stack's database, and its restore in one transaction: pg_dump, pg_restore and psql of its own server."""

from __future__ import annotations

import errno
import os
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import psycopg
from psycopg import sql

from deploy.archive import MAGIC, Contents, parse, selected
from deploy.container_commands import Commands, Finished
from deploy.errors import DeployError
from settings import PostgresSettings

SQL = Path(__file__).resolve().parent.parent / "sql" / "backup"
CHUNK = 256 * 1024
OLDEST = 15
"""What a restore relies on came with Postgres 15: owner and privileges of schema public, lists of columns in
publications."""
LOCK_SECONDS = 60
"""How long a dump waits for a table that somebody holds exclusively."""
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""How a file system without hard links, as of a memory stick or a Windows share, refuses one."""
KEPT = (
    "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' "
    "AND oid NOT IN (SELECT oid FROM application_schema) ORDER BY 1"
)
KEPT_EVENT_TRIGGERS = (
    "SELECT evtname FROM pg_event_trigger t JOIN pg_proc p ON p.oid = t.evtfoid "
    "WHERE p.pronamespace NOT IN (SELECT oid FROM application_schema) ORDER BY 1"
)
RESTORE = r"""
trap 'rm -f "$list"' EXIT
{
    printf '%s\n' '\o /dev/null' "$before"
    head -c "$size" | pg_restore --use-list="$list" --file=- && printf '%s\n' "$after" 'COMMIT;'
} | psql --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1
"""
"""Without its last line psql leaves the transaction open at the end of its input, and the server rolls it back: a dump
that ends too early changes nothing."""


@dataclass(frozen=True)
class Server:
    """A Postgres, and where its programs run."""

    commands: Commands
    host: str
    """Its address as the programs see it. Not loopback, on which the official images ask for no password."""
    port: int
    user: str
    database: str
    password: str = field(repr=False)
    conninfo: str = field(repr=False)
    """How this process reaches it."""

    def environment(self, session: str) -> dict[str, str]:
        """libpq's variables, with the session's name: no program's command line has the password."""
        return {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGDATABASE": self.database,
            "PGPASSWORD": self.password,
            "PGAPPNAME": session,
        }


@contextmanager
def connected(server: Server) -> Iterator[psycopg.Connection]:
    """A connection that knows which schemas are the application's, autocommit. Raises DeployError."""
    try:
        connection = psycopg.connect(server.conninfo, autocommit=True)
    except psycopg.OperationalError as refused:
        reason = str(refused).strip().splitlines()[-1]
        cure = "`make doctor` says what is wrong with it"
        if "password authentication failed" in reason:
            cure = "set postgres.password to the one that the database has (`make doctor` says more)"
        raise DeployError(f"Postgres does not let {server.user} in ({reason}); {cure}") from None
    with connection:
        connection.execute((SQL / "application_schemas.sql").read_bytes())
        yield connection


def external_fault(stack: str, postgres: PostgresSettings) -> str:
    """One line about a stack on an external Postgres, with the command that dumps it. Without a password."""
    external = postgres.external
    assert external is not None, "only an external Postgres is at fault"
    where = {"sslmode": external.sslmode.value}
    if external.ca_file is not None:
        where["sslrootcert"] = external.ca_file
    conninfo = psycopg.conninfo.make_conninfo(
        host=external.host, port=external.port, user=postgres.user, dbname=postgres.database, **where
    )
    command = [
        *("pg_dump", "--format=custom", "--no-publications", "--no-subscriptions"),
        *("--exclude-schema=_realtime", "--exclude-schema=realtime", f"--file={stack}.dump", conninfo),
    ]
    return (
        f"stack {stack} runs no Postgres of its own, in whose container backup and restore run; back up its external "
        f"one by the means of whoever runs it, or with `{shlex.join(command)}`"
    )


def default_file(folder: Path, stack: str, now: datetime) -> Path:
    """Where a backup goes unless told: backups/<stack>-<moment>.dump."""
    return folder / "backups" / f"{stack}-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}.dump"


def back_up(server: Server, path: Path) -> Contents:
    """Dump the application's schemas into a new file that only its owner may read; its contents.

    The file appears under its name when it is whole: on disk, and read through by pg_restore. Raises DeployError,
    with no file left, when it exists already, cannot be written, or pg_dump fails.
    """
    if path.exists():
        raise DeployError(f"{path} exists already; name another file, or move it away")
    with connected(server) as connection:
        kept = [name for (name,) in connection.execute(KEPT)]
    command = [
        "pg_dump",
        "--format=custom",
        "--no-publications",
        "--no-subscriptions",
        f"--lock-wait-timeout={LOCK_SECONDS}s",
        "--exclude-table-data=realtime.*",
        *(f'--exclude-schema="{name.replace(chr(34), chr(34) * 2)}"' for name in kept if name != "realtime"),
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as refused:
        raise DeployError(f"{path.parent} cannot be written to ({refused.strerror}); name another file") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            environment = server.environment("supabase-realtime backup")
            done = server.commands.run(command, environment=environment, output=file.write)
            if done.code:
                raise DeployError(f"pg_dump failed: {first_error(done)}; no backup was made")
            file.flush()
            os.fsync(file.fileno())
        contents = read_contents(server, partial)
        _name(partial, path)
        _sync_folder(path.parent)
    except FileExistsError:
        raise DeployError(f"{path} was made meanwhile by somebody else; name another file") from None
    except OSError as failed:
        raise DeployError(f"{path} cannot be written ({failed.strerror}); no backup was made") from None
    finally:
        partial.unlink(missing_ok=True)
    return contents


def _name(whole: Path, path: Path) -> None:
    """Give a file its name. Raises FileExistsError when another has it: two backups at once never overwrite."""
    try:
        path.hardlink_to(whole)
    except OSError as refused:
        if refused.errno not in NO_LINKS:
            raise
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        whole.rename(path)


def _sync_folder(folder: Path) -> None:
    """A new name is on disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_contents(server: Server, path: Path) -> Contents:
    """The contents of a dump that pg_restore of this server reads to its end.

    Raises DeployError when it is no dump, is cut off or damaged, or is one of a newer pg_dump.
    """
    try:
        with path.open("rb") as file:
            begins = file.read(len(MAGIC))
    except OSError as failed:
        raise DeployError(f"{path} cannot be read ({failed.strerror}); name a file that `make backup` wrote") from None
    if begins != MAGIC:
        raise DeployError(f"{path} is not a dump in pg_dump's custom format; name a file that `make backup` wrote")
    listing = bytearray()
    for arguments, output in ((["--list"], listing.extend), (["--file=/dev/null"], None)):
        with path.open("rb") as file:
            done = server.commands.run(
                ["sh", "-c", 'head -c "$size" | pg_restore "$@"', "sh", *arguments],
                environment={"size": str(path.stat().st_size)},
                stdin=chunks(file),
                output=output,
            )
        if done.code:
            cure = "take another backup"
            if "unsupported version" in done.errors:
                cure = "it was made by a newer Postgres; restore it into a stack with that version or a newer one"
            raise DeployError(f"{path} cannot be read by pg_restore: {first_error(done)}; {cure}")
    try:
        return parse(listing.decode())
    except ValueError as strange:
        raise DeployError(f"{path}: {strange}; take another backup") from None


def chunks(file: BinaryIO) -> Iterator[bytes]:
    """A file in pieces. Raises DeployError when it cannot be read to its end."""
    try:
        while piece := file.read(CHUNK):
            yield piece
    except OSError as failed:
        raise DeployError(f"{file.name} cannot be read ({failed.strerror}); copy it to another disk") from None


def check_restorable(server: Server, path: Path, contents: Contents, *, replace: bool) -> str:
    """The list of the entries to restore, for pg_restore --use-list. Changes nothing.

    Raises DeployError when the server is older than the dump, and, unless ``replace``, when it holds rows.
    """
    with connected(server) as connection:
        major = connection.info.server_version // 10_000
        if major < OLDEST:
            raise DeployError(
                f"the stack runs Postgres {major}, and a restore needs {OLDEST} or newer; raise its image"
            )
        if contents.server_major > major:
            raise DeployError(
                f"{path} is a dump of Postgres {contents.server_major}, and the stack runs {major}, which may not "
                "understand it; restore it into a stack with that version or a newer one"
            )
        kept = {name for (name,) in connection.execute(KEPT)}
        event_triggers = {name for (name,) in connection.execute(KEPT_EVENT_TRIGGERS)}
        try:
            with connection.transaction(force_rollback=True):
                connection.execute("SET LOCAL lock_timeout = '10s'")
                connection.execute("SELECT set_config('backup.replace', %s, true)", [str(replace).lower()])
                connection.execute((SQL / "restore_check.sql").read_bytes())
        except psycopg.errors.ObjectNotInPrerequisiteState as filled:
            raise DeployError(
                f"the database is not replaced, since {filled.diag.message_primary}; to lose what it holds now, add "
                "REPLACE=yes to `make restore` (--replace to `python -m deploy restore`)"
            ) from None
        except psycopg.errors.LockNotAvailable as locked:
            raise DeployError(
                f"{locked.diag.message_primary}: somebody holds a table (pg_stat_activity names them); end that session"
            ) from None
    return "".join(f"{entry.line}\n" for entry in selected(contents, kept=kept, event_triggers=event_triggers))


def replace_database(server: Server, path: Path, listing: str, *, replace: bool) -> None:
    """Put the entries of a dump in the place of the application's schemas, in one transaction.

    Raises DeployError when it fails, which says whether anything was changed: the server itself is asked. An
    interruption ends the session, and with it the transaction, and is a DeployError, too.
    """
    session = f"supabase-realtime restore {secrets.token_hex(8)}"
    begin = b"".join((SQL / name).read_bytes() for name in ("restore_check.sql", "restore_begin.sql"))
    before = "\n".join(
        [
            "BEGIN; SET LOCAL client_min_messages = warning; SET LOCAL lock_timeout = '10s';",
            r"\o",
            "SELECT pg_current_xact_id();",
            r"\o /dev/null",
            (SQL / "application_schemas.sql").read_text(),
            sql.SQL("SELECT set_config('backup.replace', {}, true);").format(str(replace).lower()).as_string(),
            begin.decode(),
        ]
    )
    list_file = f"/tmp/restore-{secrets.token_hex(8)}.list"  # noqa: S108 - in the container, a name nobody can foresee
    _place(server.commands, listing.encode(), list_file)
    printed = bytearray()
    variables = {
        "list": list_file,
        "size": str(path.stat().st_size),
        "before": before,
        "after": (SQL / "restore_end.sql").read_text(),
    }
    try:
        with path.open("rb") as file:
            done = server.commands.run(
                ["sh", "-c", RESTORE],
                environment=server.environment(session) | variables,
                stdin=chunks(file),
                output=printed.extend,
            )
        with connected(server) as connection:
            restored = _committed(connection, bytes(printed))
    except BaseException as interrupted:
        state = _settled(server, session, bytes(printed))
        reason = str(interrupted) or type(interrupted).__name__
        raise DeployError(f"the restore was interrupted ({reason}); {state}") from interrupted
    if not restored:
        raise DeployError(f"{path} was not restored: {first_error(done)}; nothing was changed")


def _place(commands: Commands, content: bytes, path: str) -> None:
    done = commands.run(
        ["sh", "-c", 'umask 077; head -c "$size" > "$path"'],
        environment={"size": str(len(content)), "path": path},
        stdin=[content],
    )
    if done.code:
        raise DeployError(f"the list of what to restore cannot be written in the container: {first_error(done)}")


def _settled(server: Server, session: str, printed: bytes) -> str:
    """End the session of an interrupted restore; what became of its transaction, in words."""
    try:
        with connected(server) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = %s "
                "AND datname = current_database()",
                [session],
            )
            committed = _committed(connection, printed)
    except (DeployError, psycopg.OperationalError, KeyboardInterrupt) as unasked:
        reason = " ".join(str(unasked).split()) or type(unasked).__name__
        return (
            f"whether the database had been restored by then could not be asked ({reason}): it was wholly or not at "
            "all; look, and end the session that pg_stat_activity shows as "
            f"{session!r}, if there is one"
        )
    return "the database had been restored by then" if committed else "nothing was changed"


def _committed(connection: psycopg.Connection, printed: bytes) -> bool:
    """Whether the transaction, whose number psql printed first, was committed."""
    words = printed.decode(errors="replace").split()
    if not words:
        return False
    row = connection.execute("SELECT pg_xact_status(%s::xid8)", [words[0]]).fetchone()
    return row is not None and row[0] == "committed"


def first_error(done: Finished) -> str:
    """The line of a program's standard error that says what went wrong first."""
    lines = [line.strip() for line in done.errors.splitlines() if line.strip()]
    found = next((line for line in lines if "error:" in line.lower() or "fatal:" in line.lower()), None)
    return found or (lines[0] if lines else f"exit code {done.code} without a message")
