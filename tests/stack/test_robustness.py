"""`make up` killed at any moment, or failed for any reason, is mended by `make up`."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import psycopg
import pytest
from docker.errors import NotFound
from docker.models.containers import Container

from tests.stack.conftest import (
    Deployment,
    free_port,
    image,
    new_deployment,
    removed,
    unique_stack,
)
from tests.stack.interruption import Moment, at, killed

SLOW_MIGRATION = "CREATE TABLE public.pumps (id integer PRIMARY KEY);\nSELECT pg_sleep(5);\n"


def container(deployment: Deployment, part: str) -> Container:
    """One of the stack's containers. Raises NotFound."""
    return docker.from_env().containers.get(deployment.container_name(part))


def exists(part: str, *statuses: str) -> Callable[[Deployment], bool]:
    """The condition that the stack's container is there, with one of the statuses if any are named."""

    def holds(deployment: Deployment) -> bool:
        try:
            found = container(deployment, part)
        except NotFound:
            return False
        return not statuses or found.status in statuses

    return holds


def postgres_initialises(deployment: Deployment) -> bool:
    """In the middle of its first start: initdb is done, the init scripts run."""
    ready = b"database system is ready to accept connections"
    return exists("postgres", "running")(deployment) and ready in container(deployment, "postgres").logs()


def migration_runs(deployment: Deployment) -> bool:
    """Postgres is executing the slow migration."""
    with superuser(deployment) as connection:
        sleeping = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'").fetchone()
    return sleeping == (1,)


def setting(deployment: Deployment, key: str) -> str:
    """A config value of the stack, decrypted."""
    return deployment.pulumi("config", "get", key).stdout.strip()


def superuser(deployment: Deployment) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection by the stack's config, for when there are no outputs yet."""
    return psycopg.connect(
        host="127.0.0.1",
        port=int(setting(deployment, "postgres.host_port")),
        dbname="postgres",
        user="supabase_admin",
        password=setting(deployment, "postgres.password"),
        autocommit=True,
    )


def insert_well(deployment: Deployment) -> str:
    """Insert a row that must not be lost; its name."""
    name = f"well {secrets.token_hex(4)}"
    with superuser(deployment) as connection:
        connection.execute("INSERT INTO public.wells (name) VALUES (%s)", [name])
    return name


def has_well(deployment: Deployment, name: str) -> bool:
    with superuser(deployment) as connection:
        return connection.execute("SELECT 1 FROM public.wells WHERE name = %s", [name]).fetchone() is not None


def declared_objects(deployment: Deployment) -> list[str]:
    """Names of the Docker objects that a whole stack has: three containers, a network, two volumes."""
    containers_and_volumes = ("gateway", "postgres", "realtime", "postgres", "postgres-keys")
    return sorted([deployment.name, *(deployment.container_name(part) for part in containers_and_volumes)])


def assert_whole(deployment: Deployment) -> None:
    """Everything that is declared is there, once, and as declared."""
    assert deployment.docker_objects() == declared_objects(deployment)
    names = [resource["urn"] for resource in deployment.state()]
    assert len(names) == len(set(names))
    drift = deployment.drift()
    assert drift.returncode == 0, drift.stdout + drift.stderr
    with superuser(deployment) as connection:
        tenants = connection.execute("SELECT external_id FROM _realtime.tenants").fetchall()
    assert tenants == [("supabase-realtime",)]


def assert_failed(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """The command failed and says why, in these words, without a traceback."""
    output = done.stdout + done.stderr
    assert done.returncode != 0, output
    for word in words:
        assert word in output
    assert "Traceback" not in output
    assert 'File "' not in output


# --- killed


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A project of which every test here makes the stack from nothing."""
    made = new_deployment(tmp_path_factory.mktemp("killed") / "project", stack=unique_stack("killed"), settings={})
    try:
        yield made
    finally:
        removed(made)


@pytest.fixture
def nothing(project: Deployment) -> Deployment:
    """The project with its settings and nothing else: no state, no container, no volume."""
    removed(project)
    state = project.folder / ".pulumi" / "state"
    shutil.rmtree(state)
    state.mkdir()
    return project


BEFORE_THE_TABLE = [
    Moment("the network is being made", "Network network creating"),
    Moment("the container of Postgres is made", "Container postgres creating", exists("postgres")),
    Moment("the schemas are being made", "Schema realtime creating"),
]
WHILE_MIGRATING = Moment("a migration runs", "ApplicationMigrations migrations creating", migration_runs)
AFTER_THE_TABLE = [
    Moment("the table is being secured", "TableSecurity public.wells creating"),
    Moment("the publication is being made", "Publication publication creating"),
    Moment("Realtime starts", "Container realtime creating", exists("realtime", "running")),
    Moment("the tenant is being made", "RealtimeTenant tenant creating"),
    Moment("the gateway starts", "Container gateway creating", exists("gateway", "running")),
]


@pytest.mark.parametrize("moment", BEFORE_THE_TABLE, ids=str)
def test_up_completes_after_it_was_killed_when(moment: Moment, nothing: Deployment) -> None:
    with killed(nothing, moment):
        nothing.up()
    assert_whole(nothing)


def test_up_completes_after_it_was_killed_when_postgres_initialised_its_data(nothing: Deployment) -> None:
    """Stopped in the middle, the server would come up with half of its roles and never be initialised again."""
    script = nothing.folder / "sql" / "bootstrap.sql"
    original = script.read_text()
    script.write_text(f"SELECT pg_sleep(20);\n{original}\nCREATE SCHEMA initialised;\n")
    try:
        with killed(nothing, Moment("Postgres initialises", "Container postgres creating", postgres_initialises)):
            nothing.up()
        assert_whole(nothing)
        with superuser(nothing) as connection:
            assert connection.execute("SELECT to_regnamespace('initialised') IS NOT NULL").fetchone() == (True,)
    finally:
        script.write_text(original)


@pytest.mark.parametrize("plugins_too", [False, True], ids=["plugins live on", "plugins die too"])
def test_up_completes_after_it_was_killed_when_a_migration_ran(plugins_too: bool, nothing: Deployment) -> None:
    migration = nothing.folder / "sql" / "migrations" / "0002_pumps.sql"
    migration.write_text(SLOW_MIGRATION)
    try:
        with killed(nothing, WHILE_MIGRATING, plugins_too=plugins_too):
            nothing.up()
        assert_whole(nothing)
        with superuser(nothing) as connection:
            ran = connection.execute("SELECT migration_id FROM _yoyo_migration ORDER BY 1").fetchall()
        assert ran == [("0001_wells",), ("0002_pumps",)]
    finally:
        migration.unlink()


@pytest.mark.parametrize("moment", AFTER_THE_TABLE, ids=str)
def test_up_completes_and_keeps_rows_after_it_was_killed_when(moment: Moment, nothing: Deployment) -> None:
    with killed(nothing, moment):
        well = insert_well(nothing)
        nothing.up()
    assert_whole(nothing)
    assert has_well(nothing, well)


def test_up_completes_and_keeps_rows_after_it_was_killed_while_it_replaced_postgres(nothing: Deployment) -> None:
    nothing.up()
    well = insert_well(nothing)
    nothing.configure({"postgres.host_port": free_port()})
    with killed(nothing, Moment("the new Postgres starts", "Container postgres creating", exists("postgres"))):
        nothing.up()
    assert_whole(nothing)
    assert has_well(nothing, well)


def test_up_completes_after_ctrl_c(nothing: Deployment) -> None:
    moment = Moment("Realtime starts", "Container realtime creating", exists("realtime", "running"))
    with at(nothing, moment) as update:
        os.killpg(update.pid, signal.SIGINT)
        assert update.wait(timeout=120) != 0
    again = nothing.up()
    assert "cleared the lock" not in again.stderr
    assert_whole(nothing)


def test_a_second_up_refuses_while_the_first_one_runs(nothing: Deployment) -> None:
    with at(nothing, Moment("Postgres starts", "Container postgres creating")) as first:
        second = nothing.up(check=False)
        assert_failed(second, f"stack {nothing.stack} is being updated by", "wait for it to end")
        assert first.wait(timeout=240) == 0
    assert_whole(nothing)


# --- failed


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A stack that is up; every test here leaves it up."""
    made = new_deployment(tmp_path_factory.mktemp("failed") / "project", stack=unique_stack("failed"), settings={})
    try:
        made.up()
        yield made
    finally:
        removed(made)


def containers(deployment: Deployment) -> dict[str, str | None]:
    """Ids of the stack's containers."""
    return {part: container(deployment, part).id for part in ("gateway", "postgres", "realtime")}


def test_a_wrong_password_is_named_and_harms_nothing(standing: Deployment) -> None:
    before, well, password = containers(standing), insert_well(standing), setting(standing, "postgres.password")
    standing.pulumi("config", "set", "--secret", "postgres.password", "another-password-than-it-was")
    failed = standing.up(check=False)
    standing.pulumi("config", "set", "--secret", "postgres.password", password)
    assert_failed(failed, "refuses the password of supabase_admin", "set postgres.password back")
    assert containers(standing) == before
    standing.up()
    assert has_well(standing, well)
    assert_whole(standing)


def test_a_stopped_postgres_is_named_with_the_command_that_starts_it(standing: Deployment) -> None:
    before, well = containers(standing), insert_well(standing)
    name = standing.container_name("postgres")
    container(standing, "postgres").stop()
    assert_failed(standing.up(check=False), f"container {name} is stopped; start it with `docker start {name}`")
    container(standing, "postgres").start()
    standing.up()
    assert containers(standing) == before
    assert has_well(standing, well)


def test_a_broken_migration_is_named_and_leaves_nothing_behind(standing: Deployment) -> None:
    before, well = containers(standing), insert_well(standing)
    file = standing.folder / "sql" / "migrations" / "0002_valves.sql"
    file.write_text("CREATE TABLE public.valves (id integer PRIMARY KEY);\nINSERT INTO public.vlaves VALUES (1);\n")
    failed = standing.up(check=False)
    assert_failed(failed, "migration 0002_valves.sql failed and was rolled back", 'relation "public.vlaves"')
    with superuser(standing) as connection:
        assert connection.execute("SELECT to_regclass('public.valves')").fetchone() == (None,)
    assert containers(standing) == before
    standing.probe()
    file.write_text("CREATE TABLE public.valves (id integer PRIMARY KEY);\nINSERT INTO public.valves VALUES (1);\n")
    standing.up()
    assert has_well(standing, well)
    with superuser(standing) as connection:
        assert connection.execute("SELECT id FROM public.valves").fetchall() == [(1,)]


def test_a_migration_that_has_run_may_not_change(standing: Deployment) -> None:
    file = standing.folder / "sql" / "migrations" / "0001_wells.sql"
    text = file.read_text()
    file.write_text(text.replace("numeric(8, 2)", "numeric(9, 2)"))
    failed = standing.up(check=False)
    file.write_text(text)
    assert_failed(failed, "0001_wells.sql has already run and has changed since", "put the change into a new file")
    standing.up()
    assert_whole(standing)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("postgres", {"postgres.host_port": 0}),
        ("realtime", {"realtime.rlimit_nofile": 12_000}),
        ("gateway", {"gateway.workers": 2}),
    ],
)
def test_rows_survive_the_replacement_of(part: str, change: dict[str, int], standing: Deployment) -> None:
    before, well = containers(standing), insert_well(standing)
    standing.configure({key: value or free_port() for key, value in change.items()})
    standing.up()
    after = containers(standing)
    assert {name for name in after if after[name] != before[name]} == {part}
    assert has_well(standing, well)
    assert_whole(standing)


def test_more_memory_keeps_the_rows(standing: Deployment) -> None:
    well = insert_well(standing)
    standing.configure({"postgres.memory": 768, "realtime.memory": 640, "gateway.memory": 320})
    standing.up()
    limits = {part: container(standing, part).attrs["HostConfig"]["Memory"] // 2**20 for part in containers(standing)}
    assert limits == {"gateway": 320, "postgres": 768, "realtime": 640}
    assert has_well(standing, well)
    assert_whole(standing)


def test_rows_survive_the_loss_of_every_container(standing: Deployment) -> None:
    well = insert_well(standing)
    for part in containers(standing):
        container(standing, part).remove(force=True)
    standing.up()
    assert has_well(standing, well)
    assert_whole(standing)


# --- left over


def idle_container(name: str, labels: dict[str, str]) -> Container:
    """A running container that does nothing."""
    return docker.from_env().containers.run(
        image("POSTGRES_IMAGE"), ["-c", "exec sleep 3600"], entrypoint="sh", name=name, labels=labels, detach=True
    )


def test_a_container_and_a_network_that_no_state_knows_are_removed(standing: Deployment) -> None:
    before = containers(standing)
    labels = {"com.pulumi.project": "supabase-realtime", "com.pulumi.stack": standing.stack}
    left = idle_container(f"{standing.name}-left-over", labels)
    network = docker.from_env().networks.create(f"{standing.name}-left-over", labels=labels)
    again = standing.up()
    assert f"removed container {left.name}, which is in no state" in again.stderr
    assert f"removed network {network.name}, which is in no state" in again.stderr
    assert standing.docker_objects() == declared_objects(standing)
    assert containers(standing) == before


# --- refused before anything is touched


@pytest.fixture
def refused(project: Deployment) -> Iterator[Deployment]:
    """A project of which nothing may have been made when the test ends."""
    removed(project)
    yield project
    assert project.docker_objects() == []


def up_of(deployment: Deployment) -> tuple[str, ...]:
    """The command that `make up` runs."""
    return (sys.executable, "-m", "deploy", "up", "--stack", deployment.stack)


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """The command failed with one line that holds these words."""
    assert_failed(done, *words)
    assert [line for line in done.stderr.splitlines() if not line.startswith(("pulling ", "no pulumi"))] == [
        line for line in done.stderr.splitlines() if words[0] in line
    ]
    assert done.stdout == ""


def test_a_port_that_another_container_holds_is_named_with_the_container(refused: Deployment) -> None:
    port = int(setting(refused, "gateway.port"))
    holder = docker.from_env().containers.run(
        image("POSTGRES_IMAGE"),
        ["-c", "exec sleep 3600"],
        entrypoint="sh",
        name=unique_stack("holder"),
        ports={"8000/tcp": ("127.0.0.1", port)},
        detach=True,
    )
    try:
        failed = refused.up(check=False)
    finally:
        holder.remove(force=True)
    assert_one_line(failed, f"gateway.port: port {port} is held by container {holder.name}", "docker stop")


def test_a_missing_docker_is_named(refused: Deployment, tmp_path: Path) -> None:
    nowhere = f"unix://{tmp_path}/docker.sock"
    done = refused.run("env", f"DOCKER_HOST={nowhere}", *up_of(refused), check=False)
    assert_one_line(done, f"the Docker engine does not answer on {nowhere}", "start Docker")
