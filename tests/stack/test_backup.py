"""Backup and restore of a stack: into a fresh one with other secrets, and into one that lost its rows."""

from __future__ import annotations

import asyncio
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import pytest

from deploy.backup import chunks
from deploy.container_commands import ContainerCommands, Finished
from tests.stack.conftest import WELLS, Deployment, new_deployment, removed, unique_stack
from tests.stack.secret_search import leaked, secret_values
from tests.stack.subscriber import Event, subscribed

NOTES = "CREATE TABLE public.notes (id int PRIMARY KEY, owner uuid REFERENCES auth.users, body text);"
USER = "7f9c24e8-3b12-4fef-91e0-5bb5ecf5d7f1"
OWN_NOTES = {
    "table": "public.notes",
    "policies": [{"name": "own notes", "command": "all", "roles": ["authenticated"], "using": "owner = auth.uid()"}],
    "replica_identity": "full",
}


def with_notes(folder: Path, prefix: str) -> Deployment:
    deployment = new_deployment(folder, stack=unique_stack(prefix), settings={"tables": [WELLS, OWN_NOTES]})
    (deployment.folder / "sql/migrations/0002_notes.sql").write_text(NOTES)
    return deployment


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, Deployment]]:
    """Two stacks that are up, each with secrets of its own."""
    both = tuple(with_notes(tmp_path_factory.mktemp(name), name) for name in ("source", "target"))
    try:
        with ThreadPoolExecutor() as threads:
            list(threads.map(Deployment.up, both))
        yield both[0], both[1]
    finally:
        for deployment in both:
            removed(deployment)


@pytest.fixture(scope="module")
def source(stacks: tuple[Deployment, Deployment]) -> Deployment:
    """The one with rows."""
    with stacks[0].database() as database:
        database.execute("INSERT INTO auth.users (id, email) VALUES (%s, 'a@example.com')", [USER])
        database.execute("INSERT INTO public.notes VALUES (1, %s, 'mine'), (2, NULL, 'nobody''s')", [USER])
        database.execute(
            "INSERT INTO public.wells (name, depth_m) SELECT 'well ' || n, n FROM generate_series(1, 20000) n"
        )
    return stacks[0]


@pytest.fixture(scope="module")
def target(stacks: tuple[Deployment, Deployment]) -> Deployment:
    """The fresh one."""
    return stacks[1]


@pytest.fixture(scope="module")
def dump(source: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backups") / "source.dump"
    printed = source.deploy("backup", "--to", str(path)).stdout
    assert printed.startswith(f"{path}: {path.stat().st_size} bytes, ")
    return path


def contents(deployment: Deployment) -> list[object]:
    """Rows, security and publication, as whoever uses the stack meets them."""
    with deployment.database() as database:
        return [
            database.execute(query).fetchall()
            for query in (
                "SELECT count(*), sum(depth_m) FROM public.wells",
                "SELECT id, owner, body FROM public.notes ORDER BY id",
                "SELECT id, email FROM auth.users",
                "SELECT * FROM pg_policies ORDER BY schemaname, tablename, policyname",
                "SELECT relname, relrowsecurity, relreplident, relacl::text FROM pg_class "
                "WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1",
                "SELECT * FROM pg_publication_tables WHERE pubname = 'supabase_realtime' ORDER BY 1, 2, 3",
                "SELECT migration_id FROM public._yoyo_migration ORDER BY 1",
            )
        ]


def assert_as_declared(deployment: Deployment) -> None:
    drift = deployment.drift()
    assert drift.returncode == 0, drift.stdout + drift.stderr


def test_a_fresh_stack_with_other_secrets_takes_the_rows_over(
    source: Deployment, target: Deployment, dump: Path
) -> None:
    before = target.outputs()
    restored = target.deploy("restore", str(dump))
    assert "10 of 10 events came" in restored.stdout
    assert contents(target) == contents(source)
    assert_as_declared(target)
    assert target.outputs() == before
    with target.database() as database:
        assert database.execute("SELECT external_id FROM _realtime.tenants").fetchall() == [("supabase-realtime",)]


def test_the_backup_is_for_its_owner_alone_and_holds_no_secret_of_the_stack(source: Deployment, dump: Path) -> None:
    assert stat.S_IMODE(dump.stat().st_mode) == 0o600
    script = bytearray()
    with dump.open("rb") as file:
        ContainerCommands(docker.from_env(), source.container_name("postgres")).run(
            ["sh", "-c", 'head -c "$size" | pg_restore --file=-'],
            environment={"size": str(dump.stat().st_size)},
            stdin=chunks(file),
            output=script.extend,
        )
    assert b"well 20000" in script
    assert leaked(bytes(script), secret_values(source)) == []


def test_rows_are_not_lost_unless_told(source: Deployment, dump: Path) -> None:
    refused = source.deploy("restore", str(dump), check=False)
    assert refused.returncode == 1
    assert "the database is not replaced, since it holds rows already, in auth.users, public.notes" in refused.stderr


def test_a_stack_that_lost_its_rows_gets_them_back_and_subscribers_are_told_of_none_but_new_ones(
    source: Deployment, dump: Path
) -> None:
    """Realtime is stopped meanwhile: else every restored row would be an insert to whoever listens."""
    before = contents(source)
    realtime = docker.from_env().containers.get(source.container_name("realtime")).id
    outputs = source.outputs()
    with source.database() as database:
        database.execute("DELETE FROM public.wells; UPDATE public.notes SET body = 'overwritten'")
        database.execute("CREATE TABLE public.later (id int); DROP POLICY wells_select ON public.wells")

    async def listen_meanwhile() -> list[Event]:
        async with subscribed(outputs, "public.wells") as subscriber:
            await asyncio.to_thread(source.deploy, "restore", str(dump), "--replace")
            return list(subscriber.events)

    async def listen_afterwards() -> list[str]:
        async with subscribed(outputs, "public.wells") as subscriber:
            with source.database() as opened:
                opened.execute("INSERT INTO public.wells (name) VALUES ('after the restore')")
            await subscriber.receives(lambda event: event.record.get("name") == "after the restore")
            return [event.record["name"] for event in subscriber.events]

    assert asyncio.run(listen_meanwhile()) == []
    assert contents(source) == before
    assert_as_declared(source)
    assert docker.from_env().containers.get(source.container_name("realtime")).id == realtime
    assert asyncio.run(listen_afterwards()) == ["after the restore"]


def test_a_broken_file_or_a_wrong_password_changes_nothing_and_stops_nothing(
    target: Deployment, dump: Path, tmp_path: Path
) -> None:
    before = contents(target)
    realtime = docker.from_env().containers.get(target.container_name("realtime"))
    started = realtime.attrs["State"]["StartedAt"]
    broken = tmp_path / "broken.dump"
    broken.write_bytes(dump.read_bytes()[:-1000])
    refused = target.deploy("restore", str(broken), "--replace", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"{broken} cannot be read by pg_restore: pg_restore: error: " in refused.stderr
    file = target.folder / f"Pulumi.{target.stack}.yaml"
    original = file.read_text()
    try:
        target.pulumi("config", "set", "--secret", "postgres.password", "another-password")
        for command in (("restore", str(dump), "--replace"), ("backup", "--to", str(tmp_path / "new.dump"))):
            refused = target.deploy(*command, check=False)
            assert (refused.returncode, refused.stdout) == (1, "")
            assert "password authentication failed" in refused.stderr
            assert "another-password" not in refused.stderr
    finally:
        file.write_text(original)
    assert not (tmp_path / "new.dump").exists()
    assert contents(target) == before
    realtime.reload()
    assert realtime.attrs["State"]["StartedAt"] == started


def test_ctrl_c_while_realtime_is_being_stopped_changes_nothing_and_leaves_it_running(
    target: Deployment, dump: Path
) -> None:
    """The engine goes on stopping it, and would not start it again when the machine does."""
    before = contents(target)
    client = docker.from_env(timeout=120)
    realtime = client.containers.get(target.container_name("realtime"))
    events = client.events(decode=True, filters={"container": realtime.id, "event": "kill"})
    with subprocess.Popen(
        [sys.executable, "-m", "deploy", "restore", "--stack", target.stack, str(dump), "--replace"],
        cwd=target.folder,
        env=target.environ,
        stderr=subprocess.PIPE,
        text=True,
    ) as restoring:
        next(events)
        restoring.send_signal(signal.SIGINT)
        _, said = restoring.communicate(timeout=120)
    events.close()
    assert (restoring.returncode, said) == (1, "interrupted; nothing was changed\n")
    assert contents(target) == before
    realtime.reload()
    assert realtime.status == "running"


def test_a_command_in_a_container_that_ends_before_it_has_read_its_input_tells_why(target: Deployment) -> None:
    commands = ContainerCommands(docker.from_env(), target.container_name("postgres"))
    for _ in range(5):
        much = [bytes(1024 * 1024)] * 16
        done = commands.run(["sh", "-c", "echo enough >&2; exit 3"], environment={}, stdin=much)
        assert done == Finished(code=3, errors="enough\n")
