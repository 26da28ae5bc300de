"""Containers and networks as the Docker engine lists them, and which of them the stack's state does not know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import docker
import requests
from docker.errors import DockerException

from deploy.errors import DeployError
from settings import NAMESPACE

PROJECT_LABEL = "com.pulumi.project"
STACK_LABEL = "com.pulumi.stack"
IMAGE_LABEL = "supabase-realtime.image"


@dataclass(frozen=True)
class Published:
    """A port of this machine on which a container is reached."""

    ip: str
    port: int


@dataclass(frozen=True)
class Container:
    """A container, running or not."""

    id: str
    name: str
    labels: Mapping[str, str]
    status: str
    published: frozenset[Published] = frozenset()
    networks: frozenset[str] = frozenset()
    """Ids of the networks that it is in."""


@dataclass(frozen=True)
class Network:
    """A Docker network."""

    id: str
    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Leftovers:
    """What runs under the stack's name or label without being in its state."""

    ours: tuple[Container, ...]
    foreign: tuple[Container, ...]
    networks: tuple[Network, ...]

    def __bool__(self) -> bool:
        return bool(self.ours or self.foreign or self.networks)


def connect(environ: Mapping[str, str], host: str | None = None) -> docker.DockerClient:
    """A client of the Docker engine: that of ``host``, which is the stack's docker:host, else that of DOCKER_HOST.

    Raises DeployError when it does not answer. Precedence as in pulumi-docker's provider.
    """
    address = host or environ.get("DOCKER_HOST") or "its usual socket"
    setting = "correct docker:host" if host else "set DOCKER_HOST to the engine's address"
    try:
        client = docker.from_env(environment={**environ, **({"DOCKER_HOST": host} if host else {})})
        client.ping()
    except (DockerException, requests.RequestException) as unreachable:
        reason = innermost(unreachable)
        cure = f"start Docker, or {setting}"
        if isinstance(reason, PermissionError):
            cure = "let this user use it (`sudo usermod -aG docker $USER`, then log in again)"
        raise DeployError(f"the Docker engine does not answer on {address} ({reason}); {cure}") from None
    return client


def innermost(error: BaseException) -> BaseException:
    """The first cause of an error: the operating system's own, where there is one."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def containers(client: docker.DockerClient) -> list[Container]:
    """Every container of the engine."""
    return [container(summary) for summary in client.api.containers(all=True)]


def container(summary: Mapping[str, Any]) -> Container:
    """One entry of the engine's GET /containers/json."""
    names = [name.removeprefix("/") for name in summary["Names"] or ()]
    return Container(
        id=summary["Id"],
        name=next((name for name in names if "/" not in name), ""),  # the others are links: /other/alias
        labels=summary["Labels"] or {},
        status=summary["State"],
        published=frozenset(
            Published(port.get("IP", "0.0.0.0"), port["PublicPort"])  # noqa: S104 - read, not bound
            for port in summary["Ports"] or ()
            if "PublicPort" in port
        ),
        networks=frozenset(
            network["NetworkID"] for network in ((summary.get("NetworkSettings") or {}).get("Networks") or {}).values()
        ),
    )


def networks(client: docker.DockerClient) -> list[Network]:
    """Every network of the engine."""
    return [Network(n["Id"], n["Name"], n["Labels"] or {}) for n in client.api.networks()]


def container_names(stack: str) -> frozenset[str]:
    """The names that the stack gives to its containers."""
    return frozenset(f"{NAMESPACE}-{stack}-{part}" for part in ("postgres", "realtime", "gateway"))


def is_labelled(labels: Mapping[str, str], stack: str) -> bool:
    """Whether an object says that it belongs to this stack."""
    return labels.get(PROJECT_LABEL) == NAMESPACE and labels.get(STACK_LABEL) == stack


def leftovers(
    stack: str, all_containers: Iterable[Container], all_networks: Iterable[Network], known: frozenset[str]
) -> Leftovers:
    """What is the stack's by label or by name and not by state; ``known`` are the ids in the state."""
    unknown = [c for c in all_containers if c.id not in known]
    return Leftovers(
        ours=tuple(c for c in unknown if is_labelled(c.labels, stack)),
        foreign=tuple(c for c in unknown if c.name in container_names(stack) and not is_labelled(c.labels, stack)),
        networks=tuple(n for n in all_networks if n.id not in known and is_labelled(n.labels, stack)),
    )
