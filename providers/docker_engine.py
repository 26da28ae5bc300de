"""The Docker engine that the docker provider of the stack talks to, for the dynamic providers of Docker objects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pulumi.dynamic import ConfigureRequest, ResourceProvider

if TYPE_CHECKING:
    import docker

ANSWER_SECONDS = 10
"""For one answer of the engine, and for one run of a health check in a container."""

_host: str | None = None


class DockerProvider(ResourceProvider):
    """A dynamic provider of what the docker provider has no resource for; it asks the same engine."""

    def configure(self, req: ConfigureRequest) -> None:
        global _host  # noqa: PLW0603 - the docker provider's own config, the same for every resource of the process
        _host = req.config.get("docker:host")


@contextmanager
def docker_client(timeout: float = ANSWER_SECONDS) -> Iterator[docker.DockerClient]:
    """A client of the engine, which gives it ``timeout`` seconds for an answer; closed at the end."""
    import docker  # noqa: PLC0415 - only the process that talks to the engine pays for the import

    client = docker.DockerClient(base_url=_host, timeout=timeout) if _host else docker.from_env(timeout=timeout)
    try:
        yield client
    finally:
        client.close()
