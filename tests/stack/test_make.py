"""What `make` adds around `pulumi up`: refusing in time, clearing up after a killed update, and leaving nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import docker
import psutil
import psycopg
import pytest

from components.network import labels
from deploy import state
from deploy.commands import Prepared, clear_left_over
from deploy.engine import Engine
from deploy.errors import DeployError
from tests.stack.conftest import PROJECT, Deployment, new_deployment, removed, unique_stack
from tests.stack.engine_output import changed_resources
from tests.stack.interruption import end

PARTS = ("postgres", "realtime", "gateway")


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A stack that is up; each test leaves it so."""
    made = new_deployment(tmp_path_factory.mktemp("make") / "project", stack=unique_stack("make"), settings={})
    for source in ("Makefile", "requirements.txt"):
        shutil.copy(PROJECT / source, made.folder / source)
    try:
        made.up()
        yield made
    finally:
        removed(made)


def make(deployment: Deployment, target: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A target of the Makefile; the environment is that of this test run, so that nothing is installed."""
    return deployment.run("make", "--old-file=.venv/.requirements", target, f"STACK={deployment.stack}", check=check)


def one_line(refused: subprocess.CompletedProcess[str]) -> str:
    """The only line that a refused command printed."""
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert refused.stdout == ""
    (line,) = refused.stderr.splitlines()
    return line


def engine_objects(deployment: Deployment) -> list[str]:
    """Names of the stack's containers that the Docker engine has, by name, whoever made them."""
    found = docker.from_env().containers.list(all=True, filters={"name": f"^/{deployment.name}-"})
    return sorted(container.name for container in found)


def urns(deployment: Deployment) -> list[str]:
    return sorted(resource["urn"] for resource in deployment.state())


# --- a stack that is up


def test_make_up_again_changes_nothing_and_says_how_to_connect(standing: Deployment) -> None:
    again = make(standing, "up")
    assert changed_resources(again.stdout) == []
    outputs = standing.outputs()
    lines = dict(line.split(maxsplit=1) for line in again.stdout.splitlines()[-4:])
    assert lines["supabase-js"] == f"createClient('{outputs['url']}', anon_key)"
    assert lines["websocket"] == outputs["realtime_url"]
    assert "pulumi stack output anon_key" in again.stdout
    assert 0 < int(lines["took"].removesuffix(" s")) < 600


def test_make_drift_is_content_with_a_fresh_stack(standing: Deployment) -> None:
    assert make(standing, "drift", check=False).returncode == 0


def test_make_probe_passes(standing: Deployment) -> None:
    make(standing, "probe")


def test_make_secrets_never_touches_a_secret_that_is_set(standing: Deployment) -> None:
    file = standing.folder / f"Pulumi.{standing.stack}.yaml"
    before = file.read_text()
    assert "has all its secrets; nothing was changed" in make(standing, "secrets").stdout
    assert file.read_text() == before


def test_the_printed_environment_shows_the_stack_to_pulumi_by_hand(standing: Deployment) -> None:
    """With the state inside the project and no login, `pulumi` by hand needs to be told where it is."""
    shown = standing.deploy("env").stdout
    by_hand = {k: v for k, v in standing.environ.items() if k == "PATH" or k.startswith("PULUMI_CONFIG")}
    home = {"HOME": str(standing.folder), "PULUMI_BACKEND_URL": standing.environ["PULUMI_BACKEND_URL"]}
    script = f"{shown}\npulumi stack output url --stack {standing.stack}"
    url = subprocess.run(
        ["/bin/sh", "-c", script],
        cwd=standing.folder,
        env={**by_hand, **home},
        capture_output=True,
        text=True,
        check=True,
    )
    assert url.stdout.strip() == standing.outputs()["url"]


# --- refused before anything is touched


def test_a_port_in_use_is_one_line_and_nothing_is_made(fresh: Deployment) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        fresh.configure({"gateway.port": port})
        assert one_line(fresh.up(check=False)) == (
            f"gateway.port: port {port} cannot be had on 127.0.0.1 (Address already in use); "
            f"`ss -ltnp 'sport = :{port}'` shows who holds it; end that, "
            f"or choose another with `pulumi config set gateway.port <port> --stack {fresh.stack}`"
        )
    assert fresh.docker_objects() == []


def test_an_image_that_cannot_be_pulled_is_one_line_and_nothing_is_made(fresh: Deployment) -> None:
    fresh.environ["KONG_IMAGE"] = "127.0.0.1:9/nobody/kong:2.8.1"
    refused = fresh.up(check=False)
    pulling, line = refused.stderr.splitlines()
    assert refused.returncode == 1
    assert pulling == "pulling 127.0.0.1:9/nobody/kong:2.8.1"
    assert line.startswith(
        "gateway.image: image 127.0.0.1:9/nobody/kong:2.8.1 is not on this engine and cannot be pulled ("
    )
    assert line.endswith("or name another with KONG_IMAGE=… or `pulumi config set gateway.image …`")
    assert fresh.docker_objects() == []


def test_faulty_settings_are_lines_and_nothing_is_made(fresh: Deployment) -> None:
    fresh.configure({"gateway.port": 0, "realtime.tenant": "Not A Label"})
    refused = fresh.up(check=False)
    assert refused.returncode == 1
    assert [line.split(": ")[0] for line in refused.stderr.splitlines()] == [
        "supabase-realtime:realtime.tenant",
        "supabase-realtime:gateway.port",
    ]
    assert fresh.docker_objects() == []


def test_without_cli_and_network_one_line_says_what_to_do(fresh: Deployment) -> None:
    fresh.environ.update({"PATH": "/bin", "https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"})
    if shutil.which("pulumi", path="/bin"):
        pytest.skip("this machine has the Pulumi CLI in /bin itself")
    refused = fresh.up(check=False)
    *_, line = refused.stderr.splitlines()
    assert refused.returncode == 1
    assert "cannot be installed: " in line
    assert "Traceback" not in refused.stderr


def test_a_wrong_passphrase_is_one_line(standing: Deployment) -> None:
    right = standing.environ["PULUMI_CONFIG_PASSPHRASE"]
    standing.environ["PULUMI_CONFIG_PASSPHRASE"] = "another"
    try:
        assert "incorrect passphrase" in one_line(standing.up(check=False))
    finally:
        standing.environ["PULUMI_CONFIG_PASSPHRASE"] = right


def test_a_stack_that_is_being_updated_is_left_alone(standing: Deployment) -> None:
    backend = Path(standing.environ["PULUMI_BACKEND_URL"].removeprefix("file://"))
    lock = backend / ".pulumi/locks/organization/supabase-realtime" / standing.stack / "another.json"
    lock.parent.mkdir(parents=True, exist_ok=True)
    since = datetime.now(UTC).isoformat()
    holder = {"pid": os.getpid(), "hostname": socket.gethostname(), "username": "somebody", "timestamp": since}
    lock.write_text(json.dumps(holder))
    try:
        for command in ("up", "destroy"):
            line = one_line(standing.deploy(command, check=False))
            assert f"is being updated by somebody@{socket.gethostname()}, process {os.getpid()}" in line
            assert f"`pulumi cancel --stack {standing.stack}`" in line
        assert lock.exists()
    finally:
        lock.unlink()


def test_a_stack_that_is_being_updated_is_left_alone_where_its_locks_cannot_be_read(standing: Deployment) -> None:
    """As on S3: the backend itself is asked, before the containers of the update in progress are removed."""
    engine = docker.from_env()
    image = engine.containers.get(standing.container_name("gateway")).image
    name = f"{standing.name}-made-meanwhile"
    made = engine.containers.run(
        image, ["sleep", "600"], name=name, labels=labels(standing.stack), entrypoint="", detach=True
    )
    pulumi = Engine(command="pulumi", project=standing.folder, stack=standing.stack, environ=standing.environ)
    prepared = Prepared(engine=pulumi, backend=None, added={})
    backend = Path(standing.environ["PULUMI_BACKEND_URL"].removeprefix("file://"))
    lock = backend / ".pulumi/locks/organization/supabase-realtime" / standing.stack / "another.json"
    lock.parent.mkdir(parents=True, exist_ok=True)
    since = datetime.now(UTC).isoformat()
    lock.write_text(json.dumps({"pid": 1, "hostname": "elsewhere", "username": "somebody", "timestamp": since}))
    try:
        exported = pulumi.export()
        with pytest.raises(DeployError, match=r"currently locked by 1 lock.* created by somebody@elsewhere"):
            clear_left_over(prepared, engine, exported)
        made.reload()
        assert made.status == "running"
        lock.unlink()
        with pytest.raises(DeployError, match="its state has just changed"):
            clear_left_over(
                prepared, engine, {**exported, "deployment": {**exported["deployment"], "metadata": {"x": 1}}}
            )
        assert clear_left_over(prepared, engine, exported)
        assert engine_objects(standing) == sorted(standing.container_name(part) for part in PARTS)
        assert urns(standing) == sorted(resource["urn"] for resource in state.resources(exported))
    finally:
        lock.unlink(missing_ok=True)
        for left in engine.containers.list(all=True, filters={"name": name}):
            left.remove(force=True)


def test_a_running_stack_is_left_alone_by_another_state(standing: Deployment, tmp_path: Path) -> None:
    """A second checkout, or a `pulumi login` elsewhere: its state is empty, and the containers are not its own."""
    other = replace(standing, environ=standing.environ | {"PULUMI_BACKEND_URL": tmp_path.as_uri()})
    before = standing.docker_objects()
    running = docker.from_env().containers.get(standing.container_name("postgres")).id
    other.deploy("preview")
    for command in ("up", "destroy"):
        line = one_line(other.deploy(command, check=False))
        assert line.startswith(f"stack {standing.stack} is there already, made with another state than this one: ")
        assert f"`docker rm -f {' '.join(sorted(standing.container_name(part) for part in PARTS))}`" in line
    assert standing.docker_objects() == before
    assert docker.from_env().containers.get(standing.container_name("postgres")).id == running


def test_a_volume_that_the_state_does_not_know_outlives_destroy(fresh: Deployment) -> None:
    volume = docker.from_env().volumes.create(fresh.container_name("postgres"), labels=labels(fresh.stack))
    destroyed = fresh.destroy()
    assert f"kept volume {volume.name} (it was not in the state)" in destroyed.stderr
    assert f"`docker volume rm {volume.name}`" in destroyed.stderr
    assert fresh.docker_objects() == [volume.name]


def test_a_state_whose_attributes_were_cut_off_by_a_kill_is_readable_again(standing: Deployment) -> None:
    """The engine writes them beside the state, not atomically, and then refuses the whole stack."""
    state = Path(standing.environ["PULUMI_BACKEND_URL"].removeprefix("file://")) / ".pulumi/stacks/supabase-realtime"
    (state / f"{standing.stack}.json.attrs").write_text("")
    assert "EOF" in standing.pulumi("stack", "export", check=False).stderr
    repaired = standing.up()
    assert "attributes of the state" in repaired.stderr
    assert changed_resources(repaired.stdout) == []


# --- containers that somebody touched by hand


def test_a_container_put_in_place_of_ours_is_moved_away_and_kept(standing: Deployment) -> None:
    engine = docker.from_env()
    name = standing.container_name("gateway")
    ours = engine.containers.get(name)
    image = ours.image
    ours.remove(force=True)
    placed = engine.containers.run(image, ["sleep", "600"], name=name, entrypoint="", detach=True)
    try:
        repaired = standing.up()
        placed.reload()
        assert placed.name.startswith(f"{name}-displaced-")
        assert placed.status == "exited"
        assert f"and renamed it to {placed.name}" in repaired.stderr
    finally:
        placed.remove(force=True)
    assert standing.drift().returncode == 0


def test_a_removed_postgres_is_drift_and_is_made_again_with_its_rows(standing: Deployment) -> None:
    with standing.database() as connection:
        connection.execute("INSERT INTO public.wells (name) VALUES ('survivor')")
    docker.from_env().containers.get(standing.container_name("postgres")).remove(force=True)
    drifted = standing.drift()
    assert drifted.returncode == 7
    assert drifted.stderr.startswith(f"container {standing.container_name('postgres')} is declared and gone")
    repaired = standing.up()
    assert changed_resources(repaired.stdout) == ["postgres", "postgres-ready"]
    assert standing.drift().returncode == 0
    with standing.database() as connection:
        assert connection.execute("SELECT count(*) FROM public.wells WHERE name = 'survivor'").fetchone() == (1,)


def test_a_network_in_use_that_the_state_does_not_know_is_named_with_the_command(standing: Deployment) -> None:
    engine = docker.from_env()
    network = engine.networks.create(f"{standing.name}-left", labels=labels(standing.stack))
    image = engine.containers.get(standing.container_name("gateway")).image
    user = engine.containers.run(image, ["sleep", "600"], entrypoint="", detach=True, network=network.name)
    try:
        assert f"`docker network rm {network.id[:12]}`" in one_line(standing.up(check=False))
        user.remove(force=True)
        assert f"removed network {network.name}" in standing.up().stderr
    finally:
        for left in engine.containers.list(all=True, filters={"id": user.id}):
            left.remove(force=True)
        for left in engine.networks.list(filters={"id": network.id}):
            left.remove()


# --- a table that is not the one it was


def recreating(deployment: Deployment) -> str:
    """SQL that drops the table and makes one of the same name: without policies, privileges and publication."""
    return "DROP TABLE public.wells CASCADE;\n" + (deployment.folder / "sql/migrations/0001_wells.sql").read_text()


def test_a_table_that_a_migration_made_again_is_secured_and_published_by_the_same_up(standing: Deployment) -> None:
    """The update compares the table before the migration runs."""
    (standing.folder / "sql/migrations/0002_wells_again.sql").write_text(recreating(standing))
    standing.up()
    drifted = standing.drift()
    assert drifted.returncode == 0, drifted.stdout
    standing.probe("--count", "1")


def test_pulumi_up_by_hand_as_the_readme_shows_it_secures_a_table_made_again(standing: Deployment) -> None:
    with standing.database() as connection:
        connection.execute(recreating(standing).encode())
    by_hand = ("pulumi", "up", "--refresh", "--yes", "--skip-preview", "--stack", standing.stack)
    standing.run("env", "PULUMI_RUN_PROGRAM=true", *by_hand)
    drifted = standing.drift()
    assert drifted.returncode == 0, drifted.stdout


# --- killed


MOMENTS = (
    "Network network creating",
    "Volume postgres-data creating",
    "Container postgres creating",
    "DatabaseRoles roles creating",
    "ApplicationMigrations migrations creating",
    "TableSecurity public.wells creating",
    "Grant anon-usage-public creating",
    "Publication publication creating",
    "Container realtime creating",
    "RealtimeTenant tenant creating",
    "Container gateway creating",
)
"""What the engine says when it begins a step, in the order in which the stack comes up."""


def killed_at(deployment: Deployment, moment: str, *, everything: bool) -> list[psutil.Process]:
    """Run `up` and kill it with SIGKILL when the engine begins a step; the providers that outlive it.

    The engine alone, as the kernel kills what takes too much memory; or everything, its providers too, as at the
    loss of power.
    """
    command = [sys.executable, "-m", "deploy", "up", "--stack", deployment.stack]
    printed = ""
    with subprocess.Popen(
        command,
        cwd=deployment.folder,
        env=deployment.environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            printed += line
            if moment in line:
                break
        else:
            pytest.fail(f"the engine never said {moment!r}:\n{printed}")
        running = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        victims = running if everything else [p for p in running if p.name() == "pulumi"]
        for victim in victims:
            victim.kill()
        printed += process.stdout.read()
        code = process.wait()
    assert code == (-9 if everything else 137), printed
    return [p for p in running if p not in victims]


@pytest.fixture
def outliving() -> Iterator[list[psutil.Process]]:
    """The providers that outlive a killed engine: ended after the test, not before it has seen what they do."""
    processes: list[psutil.Process] = []
    yield processes
    end(processes)


@pytest.mark.skipif(os.environ.get("STACK_TESTS") != "all", reason="thirteen updates in a row: set STACK_TESTS=all")
def test_up_killed_at_every_step_completes_with_nothing_doubled_and_nothing_lost(
    fresh: Deployment, standing: Deployment, outliving: list[psutil.Process]
) -> None:
    """Each `up` gets past the step at which the one before it was killed, and is killed at the next."""
    keys = {"port": "postgres.host_port", "dbname": "postgres.database", "user": "postgres.user"}
    database = {
        parameter: fresh.pulumi("config", "get", key).stdout.strip()
        for parameter, key in {**keys, "password": "postgres.password"}.items()
    }
    for number, moment in enumerate(MOMENTS):
        outliving += killed_at(fresh, moment, everything=number % 2 == 1)
        if moment.startswith("Container realtime"):
            reached = psycopg.conninfo.make_conninfo(host="127.0.0.1", **database)
            with psycopg.connect(reached, autocommit=True) as connection:
                connection.execute("INSERT INTO public.wells (name) VALUES ('survivor')")
    completed = fresh.up()
    assert "cleared the lock of process" in completed.stderr
    stack, other = fresh.stack, standing.stack
    assert urns(fresh) == [urn.replace(other, stack) for urn in urns(standing)]
    assert engine_objects(fresh) == sorted(fresh.container_name(part) for part in PARTS)
    assert len(fresh.docker_objects()) == len(standing.docker_objects())
    with fresh.database() as connection:
        assert connection.execute("SELECT name FROM public.wells").fetchall() == [("survivor",)]
    assert fresh.drift().returncode == 0
    assert changed_resources(fresh.up().stdout) == []


def test_a_killed_destroy_is_completed_by_the_next(fresh: Deployment) -> None:
    fresh.up()
    with subprocess.Popen(
        [sys.executable, "-m", "deploy", "destroy", "--stack", fresh.stack],
        cwd=fresh.folder, env=fresh.environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert any("Container realtime deleting" in line for line in process.stdout)
        for victim in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            victim.kill()
    fresh.destroy()
    assert fresh.docker_objects() == []
