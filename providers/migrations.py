"""The application's own SQL, run in order and once by yoyo-migrations."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pulumi
from psycopg import sql
from pulumi.dynamic import CheckFailure, CheckResult, CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from providers.connection import DatabaseError, DatabaseProvider, connection_parameters, transaction
from providers.transaction_statements import told, transaction_statements

if TYPE_CHECKING:
    from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
    from yoyo.migrations import Migration

MIGRATION_TABLE = "_yoyo_migration"
BOOKKEEPING = (MIGRATION_TABLE, "_yoyo_log", "_yoyo_version", "yoyo_lock")
"""yoyo's own tables. They are in schema public, where Supabase's default privileges would open them to anon."""

OTHER_RUN_TIMEOUT = "60s"


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every .sql file of a folder, by the file's name without its ending.

    Raises DatabaseError if there are none, and for files that yoyo would not run once: those that it would run as
    programs, after every update or to undo another, and those that it would take for one another, since the
    checksum is the key under which it records a file.
    """
    if not folder.is_dir():
        raise DatabaseError(f"`migrations` names {folder}, which is not a folder; create it, or remove the setting")
    files = {p.stem: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.sql"))}
    if not files:
        raise DatabaseError(f"`migrations` names {folder}, which holds no .sql file; add one, or remove the setting")
    if special := sorted(p.name for p in folder.iterdir() if p.is_file() and _is_special(p.name)):
        raise DatabaseError(
            f"`migrations` names {folder}, which holds {', '.join(special)}; keep only .sql files that run once there"
        )
    first: dict[str, str] = {}
    for name, checksum in files.items():
        if (other := first.setdefault(checksum, name)) != name:
            raise DatabaseError(
                f"{other}.sql and {name}.sql in {folder} are the same; remove one, or change a comment in it"
            )
    return files


def _is_special(name: str) -> bool:
    return name.endswith((".py", ".rollback.sql")) or name.startswith("post-apply")


def applied_migrations() -> dict[str, str]:
    """Checksum of every migration that the database has run, by its name."""
    with transaction() as cursor:
        cursor.execute("SELECT to_regclass(%s) AS bookkeeping", [MIGRATION_TABLE])
        row = cursor.fetchone()
        if row is None or row["bookkeeping"] is None:
            return {}
        cursor.execute(
            sql.SQL("SELECT migration_id, migration_hash FROM {} ORDER BY migration_id").format(
                sql.Identifier(MIGRATION_TABLE)
            )
        )
        return {row["migration_id"]: row["migration_hash"] for row in cursor}


def changed_files(files: dict[str, str], applied: dict[str, str]) -> list[str]:
    """The faults of files that ran already and are different, or gone, now."""
    return [
        f"{name}.sql has already run and {'has changed since' if name in files else 'is gone'}; "
        "restore it, and put the change into a new file"
        for name, checksum in applied.items()
        if files.get(name) != checksum
    ]


def _migrate(folder: str, files: dict[str, str]) -> dict[str, Any]:
    from yoyo import read_migrations  # noqa: PLC0415 - only the process that migrates pays for the import
    from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend  # noqa: PLC0415
    from yoyo.connections import DatabaseURI  # noqa: PLC0415

    if checksums(Path(folder)) != files:
        raise DatabaseError(f"files in {folder} changed while the update ran; run `make up` again")
    if faults := changed_files(files, applied_migrations()):
        raise DatabaseError("; ".join(faults))
    where = connection_parameters()
    backend = PostgresqlPsycopgBackend(
        DatabaseURI(
            scheme="postgresql+psycopg",
            username=where.pop("user"),
            password=where.pop("password", None),
            hostname=where.pop("host"),
            port=int(where.pop("port", 5432)),
            database=where.pop("dbname"),
            args=where,
        ),
        MIGRATION_TABLE,
    )
    try:
        _exclude_others(backend.connection)
        backend.init_database()
        # yoyo's lock is a row that outlives a killed process; the advisory lock says that nobody needs it.
        backend.break_lock()
        backend.ensure_internal_schema_updated()
        _close_bookkeeping()
        migrations = read_migrations(folder)
        for migration in migrations:
            # yoyo's own hash is of the name alone; with the content's, the database knows what it ran.
            migration.hash = files[migration.id]
        for migration in backend.to_apply(migrations):
            try:
                with backend.copy() as own:
                    _apply(own, migration)
            except psycopg.Error as error:
                raise DatabaseError(
                    f"migration {migration.id}.sql failed{_left(migration)}: {str(error).strip()}; "
                    "correct the file and run `make up` again"
                ) from error
    finally:
        backend.connection.close()
    return {"folder": folder, "files": files}


def _exclude_others(connection: psycopg.Connection[Any]) -> None:
    """Wait for the run that an interrupted update may have left at work. The lock ends with the connection."""
    try:
        connection.execute(sql.SQL("SET lock_timeout = {}").format(OTHER_RUN_TIMEOUT))
        connection.execute("SELECT pg_advisory_lock(hashtext(%s))", [MIGRATION_TABLE])
        connection.execute("RESET lock_timeout")
    except psycopg.errors.LockNotAvailable:
        raise DatabaseError(
            f"another run has been applying migrations for {OTHER_RUN_TIMEOUT} and more; pg_stat_activity shows it: "
            "wait for it, or end it with pg_terminate_backend(pid), and run `make up` again"
        ) from None


def _apply(backend: PostgresqlPsycopgBackend, migration: Migration) -> None:
    """Run a migration and record it, both or neither.

    yoyo's own apply_one records in a second transaction, so that a process killed between the two would run the
    migration twice; it also splits the file into statements, which only Postgres does right, and prints what a SELECT
    answers. A file with ``-- transactional: false`` has no transaction that could hold both, and must be split, since
    Postgres runs several statements in one.
    """
    migration.load()
    if not migration.use_transactions:
        backend.apply_one(migration)
        return
    with backend.transaction():
        backend.connection.execute(Path(migration.path).read_bytes())
        # What the file set for itself: dumps empty search_path.
        backend.execute("RESET ROLE")
        backend.execute("RESET search_path")
        backend.log_migration(migration, "apply")
        backend.mark_one(migration, log=False)


def _left(migration: Migration) -> str:
    """What a file that failed leaves behind."""
    if not migration.use_transactions:
        return ", and what it did before stays"
    own = transaction_statements(Path(migration.path).read_text())
    return f" and was rolled back{f', except what a transaction of its own committed ({told(own)})' if own else ''}"


def _close_bookkeeping() -> None:
    with transaction() as cursor:
        cursor.execute(
            "SELECT rolname FROM pg_roles WHERE rolname IN ('anon', 'authenticated', 'service_role') ORDER BY 1"
        )
        grantees = [sql.SQL("PUBLIC"), *(sql.Identifier(row["rolname"]) for row in cursor)]
        cursor.execute(
            sql.SQL("REVOKE ALL ON TABLE {} FROM {}").format(
                sql.SQL(", ").join(sql.Identifier(table) for table in BOOKKEEPING), sql.SQL(", ").join(grantees)
            )
        )


class ApplicationMigrationsProvider(DatabaseProvider):
    def check(self, _olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        applied = _olds.get("files", {}) if _olds.get("folder") == news["folder"] else {}
        return CheckResult(
            inputs=news, failures=[CheckFailure("files", fault) for fault in changed_files(news["files"], applied)]
        )

    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(id_=props["folder"], outs=_migrate(props["folder"], props["files"]))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        applied = applied_migrations()
        live = {"folder": props["folder"], "files": {n: applied[n] for n in props["files"] if n in applied}}
        return ReadResult(id_=id_, outs=live, inputs=live)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        return DiffResult(changes=any(_olds.get(key) != _news[key] for key in ("folder", "files")))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(outs=_migrate(_news["folder"], _news["files"]))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Leaves the application's tables and their rows."""


class ApplicationMigrations(Resource, module="index", name="ApplicationMigrations"):
    """The .sql files of a folder, each run once, in the order of their names, each in a transaction of its own.

    A file that has run and is different or gone since is an error, at preview already.
    """

    files: pulumi.Output[dict[str, str]]

    def __init__(self, name: str, *, folder: str, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(
            ApplicationMigrationsProvider(), name, {"folder": folder, "files": checksums(Path(folder))}, opts
        )
