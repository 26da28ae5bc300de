"""`make destroy` leaves nothing of the stack, except the volumes of a protected one."""

from __future__ import annotations

from collections.abc import Callable

import docker
import pytest

from tests.stack.conftest import Deployment
from tests.stack.interruption import Moment, killed


def engine_objects(deployment: Deployment) -> list[str]:
    """Every container, network and volume of the engine whose name is the stack's, labelled or not."""
    engine = docker.from_env()
    names = [
        *(container.name for container in engine.containers.list(all=True)),
        *(network.name for network in engine.networks.list()),
        *(volume.name for volume in engine.volumes.list()),
    ]
    return sorted(name for name in names if name is not None and name.startswith(deployment.name))


def in_docker(part: str) -> Callable[[Deployment], bool]:
    """The condition that the engine has got a container of the stack."""
    return lambda deployment: deployment.container_name(part) in engine_objects(deployment)


def volumes(deployment: Deployment) -> list[str]:
    """What remains of a protected stack: the data, and the key of what is encrypted in it."""
    return [deployment.container_name("postgres"), deployment.container_name("postgres-keys")]


def test_destroy_leaves_nothing_and_may_be_repeated(fresh: Deployment) -> None:
    fresh.up()
    assert engine_objects(fresh) != []
    fresh.destroy()
    assert engine_objects(fresh) == []
    assert fresh.state() == []
    fresh.destroy()


@pytest.mark.parametrize(
    "moment",
    [
        Moment("Postgres starts", "Container postgres creating", in_docker("postgres")),
        Moment("Realtime starts", "Container realtime creating", in_docker("realtime")),
    ],
    ids=str,
)
def test_destroy_leaves_nothing_after_an_up_was_killed_when(moment: Moment, fresh: Deployment) -> None:
    with killed(fresh, moment):
        fresh.destroy()
    assert engine_objects(fresh) == []


def test_destroy_needs_no_running_postgres(fresh: Deployment) -> None:
    fresh.up()
    docker.from_env().containers.get(fresh.container_name("postgres")).stop()
    fresh.destroy()
    assert engine_objects(fresh) == []


def test_a_protected_stack_keeps_its_data_and_comes_up_with_it_again(fresh: Deployment) -> None:
    """Also when it was protected after it was made: the state has to know of it before anything is destroyed."""
    fresh.up()
    fresh.configure({"postgres.protect": True})
    before = engine_objects(fresh)
    refused = fresh.deploy("destroy", check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("postgres.protect: is true, and the state does not know it yet: volume ")
    assert engine_objects(fresh) == before
    fresh.up()
    key = fresh.outputs()["anon_key"]
    with fresh.database() as connection:
        connection.execute("INSERT INTO public.wells (name) VALUES ('kept')")
    destroyed = fresh.destroy()
    assert engine_objects(fresh) == volumes(fresh)
    for volume in volumes(fresh):
        assert f"docker volume rm {volume}" in destroyed.stderr
    fresh.up()
    with fresh.database() as connection:
        assert connection.execute("SELECT name FROM public.wells").fetchall() == [("kept",)]
    assert fresh.outputs()["anon_key"] == key
    assert fresh.drift().returncode == 0


def test_pulumi_destroy_by_hand_leaves_nothing_either(fresh: Deployment) -> None:
    """With PULUMI_RUN_PROGRAM, as the README has it for everything by hand."""
    fresh.up()
    fresh.run("env", "PULUMI_RUN_PROGRAM=true", "pulumi", "destroy", "--yes", "--skip-preview", "--stack", fresh.stack)
    assert engine_objects(fresh) == []
