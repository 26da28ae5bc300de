"""Waiting for a container's server, by the container's own health check."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from providers.docker_engine import DockerProvider, docker_client

if TYPE_CHECKING:
    from docker.models.containers import Container

INPUTS = ("container", "timeout")
POLL = 0.05
CRASHES = 3
"""A server that ended so often while it was waited for does not start."""


class ContainerError(Exception):
    """Why a container's server does not answer, and where it says why."""


def _wait(props: dict[str, Any]) -> dict[str, Any]:
    """Run the health check in the container until it passes."""
    with docker_client() as client:
        container = client.containers.get(props["container"])
        command = _health_check(container)
        crashes = container.attrs["RestartCount"] + CRASHES
        deadline = time.monotonic() + props["timeout"]
        while (last := _failure(container, command)) is not None:
            container.reload()
            if container.attrs["RestartCount"] >= crashes:
                exit_code = container.attrs["State"]["ExitCode"]
                raise ContainerError(
                    f"container {container.name} ended {CRASHES} times while it was starting (exit code {exit_code}); "
                    f"`docker logs {container.name}` says why"
                )
            if time.monotonic() > deadline:
                raise ContainerError(
                    f"container {container.name} was not healthy within {props['timeout']:.0f} s "
                    f"({container.status}, its health check: {last}); `docker logs {container.name}` says why"
                )
            time.sleep(POLL)
    return {key: props[key] for key in INPUTS}


def _health_check(container: Container) -> list[str]:
    kind, *command = container.attrs["Config"]["Healthcheck"]["Test"]
    return ["/bin/sh", "-c", *command] if kind == "CMD-SHELL" else command


def _failure(container: Container, command: list[str]) -> str | None:
    """Why the health check fails right now, None when it passes."""
    import requests  # noqa: PLC0415
    from docker.errors import APIError  # noqa: PLC0415

    try:
        exit_code, output = container.exec_run(command)
    except APIError as refused:  # it is not running right now
        return str(refused.explanation)
    except requests.exceptions.RequestException:
        return "no answer"
    if exit_code == 0:
        return None
    lines: list[str] = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {exit_code}"


class ContainerReadinessProvider(DockerProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(id_=props["container"], outs=_wait(props))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """As it was: a container that is down now is for its own resource to say."""
        live = {key: props[key] for key in INPUTS}
        return ReadResult(id_=id_, outs=live, inputs=live)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        return DiffResult(changes=_olds.get("container") != _news["container"])

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(outs=_wait(_news))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """There is nothing to remove."""


class ContainerReadiness(Resource, module="index", name="ContainerReadiness"):
    """Holds back what needs a container's server until the container's own health check has passed once.

    The docker provider's ``wait`` looks once a second at what the engine finds out every two
    (resource_docker_container_funcs.go, terraform-provider-docker v4.5.0); this runs the same command in the container
    itself, twenty times a second. ``timeout`` is in seconds. Raises ContainerError when the server keeps
    ending, or does not answer in time.
    """

    def __init__(
        self,
        name: str,
        *,
        container: pulumi.Input[str],
        timeout: int,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__(ContainerReadinessProvider(), name, {"container": container, "timeout": timeout}, opts)
