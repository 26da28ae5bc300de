"""Whatever restarts, the stack heals without a command: a subscriber gets events again."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import psutil
import pytest
from docker.models.containers import Container

from tests.stack.conftest import Deployment, new_deployment, removed, unique_stack
from tests.stack.healing import assert_heals
from tests.stack.images import NEWEST, require_image
from tests.stack.interruption import await_condition
from tests.stack.secret_search import leaked_by_logs

PID_FILE = Path("/var/run/docker.pid")


@pytest.fixture(scope="module", params=["pinned", "newest"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A stack that is up, with either version of Realtime."""
    if request.param == "pinned":
        yield request.getfixturevalue("live")
        return
    require_image(NEWEST, "REALTIME_IMAGE_NEWEST")
    made = new_deployment(tmp_path_factory.mktemp("restarts") / "project", stack=unique_stack("restarts"), settings={})
    made.environ["REALTIME_IMAGE"] = NEWEST
    try:
        made.up()
        yield made
    finally:
        removed(made)


def container(deployment: Deployment, part: str) -> Container:
    return docker.from_env().containers.get(deployment.container_name(part))


def main_process(deployment: Deployment, part: str) -> int:
    """Process id, on the engine's host, of what the container runs."""
    return int(container(deployment, part).attrs["State"]["Pid"])


def kill_main_process(deployment: Deployment, part: str) -> None:
    """SIGKILL from outside of Docker, as the kernel does when memory runs out.

    `docker kill` would not do: the engine takes it for a manual stop, after which `unless-stopped` restarts nothing.
    Inside the container process 1 cannot be killed; hence another container that sees the host's processes.
    """
    pid = main_process(deployment, part)
    docker.from_env().containers.run(
        container(deployment, "postgres").image,
        ["-c", f"kill -9 {pid}"],
        entrypoint="sh",
        user="0",
        pid_mode="host",
        network_mode="none",
        remove=True,
    )
    await_condition(lambda: main_process(deployment, part) not in (0, pid), f"Docker restarts {part}")


def restart_docker() -> None:
    """End the Docker engine in good order and have it started again: by its supervisor, or as it was started by hand.

    Raises psutil.AccessDenied when this user may not.
    """
    daemon = psutil.Process(int(PID_FILE.read_text()))
    command, environ, folder = daemon.cmdline(), daemon.environ(), daemon.cwd()
    log = Path(f"/proc/{daemon.pid}/fd/2").resolve()
    log = log if log.is_file() else Path(os.devnull)
    supervised = daemon.ppid() == 1 and psutil.Process(1).name() == "systemd"
    daemon.send_signal(signal.SIGTERM)
    daemon.wait(timeout=120)
    if not supervised:
        with log.open("ab") as output:
            subprocess.run(
                ["setsid", "--fork", *command], env=environ, cwd=folder, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, check=True,
            )  # fmt: skip
    await_condition(docker_answers, "the Docker engine answers again", seconds=120)


def docker_answers() -> bool:
    """Asked by the command: docker-py leaves a socket open whenever it finds no engine."""
    return subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0


def test_postgres_restarted(running: Deployment) -> None:
    container(running, "postgres").restart()
    assert_heals(running)


def test_realtime_restarted(running: Deployment) -> None:
    container(running, "realtime").restart()
    assert_heals(running)


@pytest.mark.parametrize("part", ["postgres", "realtime", "gateway"])
def test_killed(part: str, running: Deployment) -> None:
    kill_main_process(running, part)
    assert_heals(running)


def test_everything_killed_at_once(running: Deployment) -> None:
    for part in ("postgres", "realtime", "gateway"):
        kill_main_process(running, part)
    assert_heals(running)
    assert running.drift().returncode == 0
    # Crash reports hold what the crashed process knew.
    assert leaked_by_logs(running) == {}


def test_rows_outlive_a_killed_postgres(running: Deployment) -> None:
    """A row whose COMMIT was answered is on disk."""
    name = f"well {secrets.token_hex(4)}"
    with running.database() as connection:
        connection.execute("INSERT INTO public.wells (name) VALUES (%s)", [name])
    kill_main_process(running, "postgres")
    assert_heals(running)
    with running.database() as connection:
        assert connection.execute("DELETE FROM public.wells WHERE name = %s", [name]).rowcount == 1


def test_the_docker_engine_restarted(running: Deployment) -> None:
    if os.environ.get("STACK_TESTS_RESTART_DOCKER") != "1":
        pytest.skip("would restart every container of this machine: set STACK_TESTS_RESTART_DOCKER=1 to allow it")
    if not PID_FILE.exists():
        pytest.skip(f"no {PID_FILE}: the Docker engine is on another machine")
    before = {part: main_process(running, part) for part in ("postgres", "realtime", "gateway")}
    restart_docker()
    assert_heals(running)
    assert [part for part in before if main_process(running, part) == before[part]] == []
    assert running.drift().returncode == 0
