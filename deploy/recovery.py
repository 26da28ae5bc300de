"""Clearing up after an update that was cut short, so that the next one completes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, NotFound

from deploy import docker_objects, state
from deploy.docker_failures import DOCKER_ERRORS, docker_words
from deploy.docker_objects import Container, Leftovers
from deploy.engine import Engine
from deploy.errors import DeployError
from deploy.locks import held_fault, is_abandoned, read_locks, remove_cut_off_attributes
from settings import NAMESPACE

STOP_SECONDS = 60
"""How long a container may take to stop; Postgres writes a checkpoint."""
HEALTHY_SECONDS = 180
POLL_SECONDS = 0.5
GONE = "is declared and gone; `make up` makes it again, with the data of its volume"
CURES = {
    "exited": "is stopped; start it with `docker start {name}`",
    "dead": "is dead; remove it with `docker rm -f {name}`",
    "paused": "is paused; go on with `docker unpause {name}`",
    "restarting": "keeps restarting; `docker logs --tail 20 {name}` says why",
}


def say(line: str) -> None:
    """One line about what was found and done."""
    print(line, file=sys.stderr, flush=True)


def refuse_held(backend: Path | None, stack: str) -> None:
    """Raises DeployError, naming the holder, when the stack is being updated; else makes its files readable again."""
    if held := [lock for lock in read_locks(backend, stack) if not is_abandoned(lock)]:
        raise DeployError(*(held_fault(lock, stack) for lock in held))
    if remove_cut_off_attributes(backend, stack):
        say(f"removed attributes of the state of stack {stack} that were cut off while they were written")


def release_lock(engine: Engine, backend: Path | None) -> None:
    """Clear the stack's lock when whoever took it is gone. Raises DeployError, naming the holder, when not."""
    refuse_held(backend, engine.stack)
    locks = read_locks(backend, engine.stack)
    if not locks:
        return
    engine.ask("cancel", "--yes")
    for lock in locks:
        say(f"cleared the lock of process {lock.pid}, which was ended while it updated stack {engine.stack}")


def refuse_updated(engine: Engine, exported: Mapping[str, Any]) -> None:
    """Raises DeployError when somebody else updates the stack, in a backend whose locks are not files to be read here.

    Putting a state back is what such a backend refuses then: S3 and its like by their lock (pulumi/pulumi,
    pkg/backend/diy/backend.go, ImportDeployment), Pulumi Cloud because an import is an update. What is pending does not
    survive it (pkg/cmd/pulumi/stack/io.go, SaveSnapshot), so the settled state is put back. One that has changed since
    it was read is not overwritten.
    """
    if engine.export() != exported:
        raise DeployError(f"stack {engine.stack} is being updated: its state has just changed; wait for that to end")
    engine.import_state(state.settled(exported))


def settle_pending(engine: Engine, exported: Mapping[str, Any]) -> bool:
    """Take what the engine was killed over out of the state, for the next update to redo; whether there was any."""
    pending = state.pending_operations(exported)
    if not pending:
        return False
    engine.import_state(state.settled(exported))
    for operation in pending:
        name = operation["resource"]["urn"].rpartition("::")[2]
        say(f"taking up again: {name}, interrupted while {operation['type']}")
    return True


def find_leftovers(client: docker.DockerClient, stack: str, exported: Mapping[str, Any]) -> Leftovers:
    """The stack's containers and networks that its state does not know."""
    known = state.ids(exported, state.CONTAINER) | state.ids(exported, state.NETWORK)
    return docker_objects.leftovers(stack, docker_objects.containers(client), docker_objects.networks(client), known)


def another_states(exported: Mapping[str, Any], leftovers: Leftovers) -> list[Container]:
    """The left-over containers that an update of this state cannot have left: those of a second checkout or backend.

    An update records in the state what it is about to make, and it makes the network before the first container. So a
    state that knows nothing has left nothing, and a container in a network of the stack that the state does not know
    was made with another one.
    """
    if not state.resources(exported) and not state.pending_operations(exported):
        return list(leftovers.ours)
    unknown = {network.id for network in leftovers.networks}
    return [container for container in leftovers.ours if container.networks & unknown]


def refuse_another_states(stack: str, exported: Mapping[str, Any], leftovers: Leftovers) -> None:
    """Raises DeployError, naming them, for containers that may be in use under the stack's name with another state."""
    if found := another_states(exported, leftovers):
        names = " ".join(sorted(container.name for container in found))
        raise DeployError(
            f"stack {stack} is there already, made with another state than this one: {names}; go on in that checkout, "
            f"or with its PULUMI_BACKEND_URL; if that state is lost, `docker rm -f {names}`, which keeps the volumes, "
            "and run this again"
        )


def retention_fault(stack: str, exported: Mapping[str, Any], *, protected: bool) -> str | None:
    """Why `pulumi destroy` would remove a volume that postgres.protect keeps, in one line; None when it would not.

    It does not run the program, so it goes by what the last update wrote into the state.
    """
    if not protected or not (doomed := state.unretained(exported, state.VOLUME)):
        return None
    return (
        f"postgres.protect: is true, and the state does not know it yet: volume {' and '.join(doomed)} would not "
        f"be kept; `make up STACK={stack}` first, or set postgres.protect to false"
    )


def clear(client: docker.DockerClient, leftovers: Leftovers) -> bool:
    """Remove the stack's own left-over containers and networks, and move others' containers out of its names.

    Nothing is lost: the stack's containers hold no data, its volumes stay, and a container that somebody put under
    one of its names is stopped, for good, and renamed. Returns whether there was anything. Raises DeployError, with
    the command, for a network still in use.
    """
    for container in leftovers.ours:
        remove_container(client, container)
        say(f"removed container {container.name}, which is in no state")
    for container in leftovers.foreign:
        displaced = f"{container.name}-displaced-{time.strftime('%Y%m%dT%H%M%S')}"
        found = client.containers.get(container.id)
        found.update(restart_policy={"Name": "no"})  # else it takes its ports back when the Docker engine restarts
        found.stop(timeout=STOP_SECONDS)
        found.rename(displaced)
        say(f"stopped container {container.name}, which this stack did not make, and renamed it to {displaced}")
    for network in leftovers.networks:
        try:
            client.api.remove_network(network.id)
        except NotFound:
            continue
        except APIError as used:
            raise DeployError(
                f"network {network.name} is in no state and in use ({' '.join(str(used.explanation).split())}); "
                f"disconnect what uses it and remove it with `docker network rm {network.id[:12]}`"
            ) from None
        say(f"removed network {network.name}, which is in no state")
    return bool(leftovers)


def remove_container(client: docker.DockerClient, container: Container) -> None:
    """Stop a container in good order and remove it; one that is gone already is no error."""
    try:
        found = client.containers.get(container.id)
        if container.name.endswith("-postgres"):
            await_initialised(found)
        found.stop(timeout=STOP_SECONDS)
        found.remove()
    except NotFound:
        return


def await_initialised(postgres: docker.models.containers.Container) -> None:
    """Let a first start finish: a data volume that was cut off in the middle is never initialised to its end."""
    deadline = time.monotonic() + HEALTHY_SECONDS
    while time.monotonic() < deadline:
        postgres.reload()
        status = postgres.attrs["State"]
        if not status["Running"] or status.get("Health", {}).get("Status") != "starting":
            return
        time.sleep(POLL_SECONDS)


def postgres_fault(client: docker.DockerClient, stack: str, exported: Mapping[str, Any]) -> str | None:
    """Why the Postgres that the state knows cannot be asked about its objects, in one line; None when it can.

    Waits for one that is starting. One that the state does not know is no fault: the update makes it.
    """
    name = f"{NAMESPACE}-{stack}-postgres"
    identity = state.id_of(exported, state.CONTAINER, name)
    if identity is None:
        return None
    container = next((c for c in docker_objects.containers(client) if c.id == identity), None)
    if container is None:
        return f"container {name} {GONE}"
    if container.status != "running":
        cure = CURES.get(container.status, "is {status}; look with `docker inspect {name}`")
        return f"container {name} {cure.format(name=name, status=container.status)}"
    deadline = time.monotonic() + HEALTHY_SECONDS
    while time.monotonic() < deadline:
        health = client.containers.get(container.id).attrs["State"].get("Health", {}).get("Status", "healthy")
        if health == "healthy":
            return None
        time.sleep(POLL_SECONDS)
    return f"container {name} is not healthy after {HEALTHY_SECONDS} s; `docker logs --tail 20 {name}` says why"


@contextmanager
def stopped(client: docker.DockerClient, name: str) -> Iterator[None]:
    """A container is stopped until the block ends, however it ends; one that is gone or stopped stays so.

    Also an interruption while it is being stopped has it started again: the engine goes on stopping it, so it is
    restarted, for which the engine waits for the one and then does the other, whatever becomes of this process
    (moby v20.10, daemon/restart.go). Raises DeployError when it cannot be started.
    """
    try:
        container = client.containers.get(name)
    except NotFound:
        container = None
    if container is None or container.status != "running":
        yield
        return
    try:
        container.stop(timeout=STOP_SECONDS)
        yield
    except BaseException:
        try:
            start_again(container)
        except DeployError as lost:
            say(str(lost))  # beside what ended the block
        raise
    start_again(container)


def start_again(container: docker.models.containers.Container) -> None:
    """Start a container that is stopped or being stopped. Raises DeployError, with the command, when it cannot be."""
    try:
        container.restart(timeout=STOP_SECONDS)
    except DOCKER_ERRORS as failed:
        raise DeployError(
            f"container {container.name} is stopped and cannot be started again ({docker_words(failed)}); "
            f"`docker start {container.name}` does it"
        ) from None


def never_started(client: docker.DockerClient, exported: Mapping[str, Any]) -> list[Container]:
    """The containers of the state that were made and never ran."""
    known = state.ids(exported, state.CONTAINER)
    return [c for c in docker_objects.containers(client) if c.id in known and c.status == "created"]


def clear_never_started(client: docker.DockerClient, exported: Mapping[str, Any]) -> None:
    """Remove containers of the state that were made and never ran, for the update to make them again.

    A container whose port was taken is one; the provider would start it without waiting for its health.
    """
    for container in never_started(client, exported):
        remove_container(client, container)
        say(f"removed container {container.name}, which never started")


def clear_volumes(client: docker.DockerClient, stack: str, *, known: frozenset[str], protected: bool) -> None:
    """Remove the stack's volumes that outlived it: those that its state knew, unless they are protected.

    They hold the data, and one that the state did not know may be that of another state.
    """
    label = [f"{docker_objects.PROJECT_LABEL}={NAMESPACE}", f"{docker_objects.STACK_LABEL}={stack}"]
    for volume in client.api.volumes(filters={"label": label})["Volumes"] or ():
        if protected or volume["Name"] not in known:
            reason = "postgres.protect" if protected else "it was not in the state"
            say(f"kept volume {volume['Name']} ({reason}); remove it with `docker volume rm {volume['Name']}`")
        else:
            client.api.remove_volume(volume["Name"])
            say(f"removed volume {volume['Name']}")
