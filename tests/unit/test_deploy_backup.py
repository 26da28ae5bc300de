"""What `make backup` says where it cannot work, and where a backup goes."""

import os
import shlex
import signal
from datetime import UTC, datetime
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from deploy import commands, docker_objects
from deploy.backup import chunks, default_file, external_fault
from deploy.errors import DeployError
from settings import PostgresSettings


def test_an_external_postgres_is_one_line_with_the_command_that_dumps_it() -> None:
    postgres = PostgresSettings.model_validate(
        {"password": "the-password", "external": {"host": "db.example.com", "ca_file": "/etc/ssl/our ca.pem"}}
    )
    fault = external_fault("prod", postgres)
    program, *options, conninfo = shlex.split(fault.partition("`")[2].removesuffix("`"))
    assert program == "pg_dump"
    assert {"--format=custom", "--exclude-schema=_realtime", "--exclude-schema=realtime"} < set(options)
    assert conninfo_to_dict(conninfo) == {
        "host": "db.example.com",
        "port": "5432",
        "user": "supabase_admin",
        "dbname": "postgres",
        "sslmode": "verify-full",
        "sslrootcert": "/etc/ssl/our ca.pem",
    }
    assert "the-password" not in fault
    assert len(fault.splitlines()) == 1


def test_a_backup_is_named_after_its_stack_and_moment() -> None:
    moment = datetime(2026, 11, 23, 22, 45, tzinfo=UTC)
    assert default_file(Path("here"), "prod", moment) == Path("here/backups/prod-20261123T224500Z.dump")


def test_a_file_whose_disk_fails_is_named() -> None:
    with (
        Path("/proc/self/mem").open("rb") as failing,  # its first page cannot be read
        pytest.raises(DeployError, match=r"^/proc/self/mem cannot be read \(Input/output error\)"),
    ):
        list(chunks(failing))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_restore_that_is_interrupted_before_it_begins_says_that_nothing_was_changed(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_objects, "connect", lambda *_: None)
    monkeypatch.setattr(commands, "prepare", lambda _: os.kill(os.getpid(), number))
    with pytest.raises(DeployError, match=r"^interrupted; nothing was changed$"):
        commands.restore("staging", Path("a.dump"), replace=False)
