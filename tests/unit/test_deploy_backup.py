"""What `make backup` says where it cannot work, and where a backup goes."""

import shlex
from datetime import UTC, datetime
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from deploy.backup import default_file, external_fault
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
