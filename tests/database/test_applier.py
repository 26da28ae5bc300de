"""The applier makes what the engine and the real postgresql provider make."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from plan import program
from plan.program import Program, Resource
from providers.connection import DatabaseError
from rehearsal.applier import UnknownResourceError, apply, connected_to, statements
from rehearsal.server import binaries, embedded_postgres
from settings import NAMESPACE, secret_keys

PROJECT = Path(__file__).parents[2]
STACKS = ("dev", "staging", "prod")
AS_SUPABASE_MAKES_IT = """
CREATE ROLE anon NOLOGIN NOINHERIT;
CREATE ROLE authenticated NOLOGIN NOINHERIT;
CREATE ROLE service_role NOLOGIN NOINHERIT BYPASSRLS;
CREATE ROLE postgres LOGIN CREATEDB CREATEROLE BYPASSRLS;
CREATE SCHEMA realtime AUTHORIZATION postgres;
GRANT ALL ON SCHEMA public TO anon;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO anon, authenticated, service_role;
CREATE PUBLICATION supabase_realtime;
"""
"""What supabase/postgres has before the first `up`, as far as the applier could meet it."""
DATABASE_ONLY = '''"""The database part of the stack alone, on a server that is there."""
import os

import pulumi
from pulumi.runtime import config

import settings
from components.database import RealtimeDatabase

loaded = settings.load(
    {**config.get_config_env(), **config.CONFIG.get()}, stack=pulumi.get_stack(), environ=os.environ
)
volume = pulumi.ComponentResource("test:index:Volume", "volume")
RealtimeDatabase(
    "database",
    settings=loaded.postgres,
    tables=loaded.tables,
    migrations=loaded.migrations,
    server=volume,
    data=volume,
)
'''


def planned(stack: str) -> Program:
    return program.run(program.stack_config(stack))


def applied(stack: str, conninfo: str) -> None:
    declared = planned(stack)
    with connected_to(conninfo):
        apply(declared.resources, declared.config.project)


def schema_dump(conninfo: str) -> str:
    """Everything in a database but rows, as SQL in a fixed order."""
    where = psycopg.conninfo.conninfo_to_dict(conninfo)
    done = subprocess.run(
        [
            binaries() / "pg_dump",
            "--schema-only",
            "--restrict-key=samekey",
            f"--host={where['host']}",
            f"--port={where['port']}",
            f"--username={where['user']}",
            str(where["dbname"]),
        ],
        env={"PGPASSWORD": str(where["password"])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def execute(conninfo: str, statements: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(statements.encode())


@pytest.fixture
def servers() -> Iterator[Callable[[], str]]:
    """Servers of the test's own, since roles belong to a server and not to a database."""
    with_blocks = []

    def start() -> str:
        block = embedded_postgres()
        conninfo = block.__enter__()
        with_blocks.append(block)
        return conninfo

    yield start
    for block in with_blocks:
        block.__exit__(None, None, None)


def test_the_dev_stack_is_made_as_declared(database: str) -> None:
    applied("dev", database)
    with psycopg.connect(database) as connection:
        published = connection.execute("SELECT schemaname, tablename FROM pg_publication_tables").fetchall()
        secured = connection.execute("SELECT relrowsecurity FROM pg_class WHERE relname = 'wells'").fetchall()
        policies = connection.execute("SELECT policyname FROM pg_policies ORDER BY 1").fetchall()
        held = connection.execute(
            "SELECT string_agg(privilege_type, ' ' ORDER BY privilege_type) FROM information_schema.table_privileges "
            "WHERE table_name = 'wells' AND grantee = 'anon'"
        ).fetchall()
    assert published == [("public", "wells")]
    assert secured == [(True,)]
    assert policies == [("wells_delete",), ("wells_insert",), ("wells_select",), ("wells_update",)]
    assert held == [("DELETE INSERT SELECT UPDATE",)]


@pytest.mark.parametrize("stack", STACKS)
def test_applying_twice_changes_nothing(stack: str, database: str) -> None:
    applied(stack, database)
    once = schema_dump(database)
    applied(stack, database)
    assert schema_dump(database) == once


def test_what_the_plan_says_is_what_is_made(database: str, servers: Callable[[], str]) -> None:
    """The statements that `make plan` prints, run by hand, against what the providers make by themselves."""
    applied("prod", database)
    by_hand = servers()
    declared = planned("prod")
    for resource in declared.resources:
        for statement in statements(resource, declared.config.project):
            execute(by_hand, statement.as_string(None))
    bookkeeping = "DROP TABLE _yoyo_log, _yoyo_migration, _yoyo_version, yoyo_lock"
    execute(database, bookkeeping)
    assert schema_dump(by_hand) == schema_dump(database)


def test_a_declared_table_that_no_migration_makes_is_named(database: str) -> None:
    declared = planned("dev")
    without = [resource for resource in declared.resources if resource.kind != "ApplicationMigrations"]
    with (
        connected_to(database),
        pytest.raises(DatabaseError, match=r"public\.wells is declared in `tables` and does not exist"),
    ):
        apply(without, declared.config.project)


def test_a_grant_of_an_unknown_kind_is_an_error(database: str) -> None:
    grant = Resource(
        urn="urn",
        type="postgresql:index/grant:Grant",
        name="sequences",
        custom=True,
        parent="",
        inputs={"role": "anon", "schema": "public", "objectType": "sequence", "privileges": ["USAGE"]},
        dependencies=frozenset(),
    )
    with connected_to(database), pytest.raises(UnknownResourceError, match="a Grant on sequence is not known"):
        apply([grant], PROJECT)


def missing_part() -> str | None:
    """What this machine lacks to run the real provider, None when it has all."""
    if shutil.which("pulumi") is None:
        return "no pulumi command on PATH: install the Pulumi CLI"
    listed = subprocess.run(["pulumi", "plugin", "ls", "--json"], check=True, capture_output=True, text=True)
    if "postgresql" not in {plugin["name"] for plugin in json.loads(listed.stdout)}:
        return "no Pulumi plugin postgresql: run `pulumi install`"
    return None


MISSING = missing_part()


def up_on(conninfo: str, stack: str, folder: Path) -> None:
    """`pulumi up` of the stack's database part on a server, with the real postgresql provider."""
    where: dict[str, Any] = psycopg.conninfo.conninfo_to_dict(conninfo)
    for source in ("components", "providers", "sql"):
        shutil.copytree(PROJECT / source, folder / source, ignore=shutil.ignore_patterns("__pycache__"))
    for source in ("realtime_versions.py", "settings.py", "tokens.py", "Pulumi.yaml"):
        shutil.copy(PROJECT / source, folder / source)
    (folder / "__main__.py").write_text(DATABASE_ONLY)
    (folder / ".venv").symlink_to(Path(sys.prefix), target_is_directory=True)
    state = folder / "state"
    state.mkdir()
    config = yaml.safe_load((PROJECT / f"Pulumi.{stack}.yaml").read_text())["config"]
    plain = {key: value for key, value in config.items() if not (isinstance(value, dict) and "secure" in value)}
    plain |= {
        f"{NAMESPACE}:postgres.host_port": int(where["port"]),
        f"{NAMESPACE}:postgres.database": str(where["dbname"]),
    }
    (folder / f"Pulumi.{stack}.yaml").write_text(yaml.safe_dump({"config": plain}))
    secrets = {key: program.placeholder(key) for key in secret_keys()} | {"postgres.password": where["password"]}
    environ = os.environ | {
        "PULUMI_BACKEND_URL": state.as_uri(),
        "PULUMI_CONFIG_PASSPHRASE": "only for this test",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
    }

    def pulumi(*command: str) -> None:
        done = subprocess.run(
            ["pulumi", *command, "--non-interactive"],
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"pulumi {command[0]}\n{done.stdout}\n{done.stderr}"

    pulumi("stack", "init", stack)
    pulumi("config", "set-all", *(f"--secret={NAMESPACE}:{key}={value}" for key, value in secrets.items()))
    pulumi("up", "--yes", "--skip-preview", "--stack", stack)


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
@pytest.mark.parametrize(
    ("stack", "before"),
    [("dev", ""), *((stack, AS_SUPABASE_MAKES_IT) for stack in STACKS)],
    ids=["dev on an empty server", *(f"{stack} on a server as Supabase makes it" for stack in STACKS)],
)
def test_the_catalog_is_the_one_that_the_real_provider_makes(
    stack: str, before: str, servers: Callable[[], str], tmp_path: Path
) -> None:
    ours, real = servers(), servers()
    for conninfo in (ours, real):
        execute(conninfo, before)
    applied(stack, ours)
    up_on(real, stack, tmp_path)
    assert schema_dump(ours) == schema_dump(real)
