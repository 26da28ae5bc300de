"""A container's alias in a network, which the docker provider sets at creation and never looks at again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, UpdateResult

from providers.docker_engine import DockerProvider, docker_client

if TYPE_CHECKING:
    import docker

INPUTS = ("container", "network", "alias")


def _attachments(client: docker.DockerClient, container: str) -> dict[str, Any]:
    """The container's endpoints by network id."""
    networks = client.containers.get(container).attrs["NetworkSettings"]["Networks"]
    return {endpoint["NetworkID"]: endpoint for endpoint in networks.values()}


def _ensure(props: dict[str, Any]) -> dict[str, Any]:
    with docker_client() as client:
        endpoint = _attachments(client, props["container"]).get(props["network"])
        if endpoint is None or props["alias"] not in (endpoint["Aliases"] or ()):
            network = client.networks.get(props["network"])
            if endpoint is not None:
                network.disconnect(props["container"])
            network.connect(props["container"], aliases=[props["alias"]])
    return {key: props[key] for key in INPUTS}


class NetworkAliasProvider(DockerProvider):
    def create(self, props: dict[str, Any]) -> CreateResult:
        return CreateResult(id_=props["alias"], outs=_ensure(props))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        from docker.errors import NotFound  # noqa: PLC0415

        try:
            with docker_client() as client:
                endpoint = _attachments(client, props["container"]).get(props["network"])
        except NotFound:
            return ReadResult(id_="", outs={})
        present = endpoint is not None and props["alias"] in (endpoint["Aliases"] or ())
        live = {**{key: props[key] for key in INPUTS}, "alias": props["alias"] if present else ""}
        return ReadResult(id_=id_, outs=live, inputs=live)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        return DiffResult(changes=any(_olds.get(key) != _news[key] for key in INPUTS))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        return UpdateResult(outs=_ensure(_news))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """The alias goes with the container."""


class NetworkAlias(Resource, module="index", name="NetworkAlias"):
    """The name under which other containers of a network find a container; put back when it was lost.

    The docker provider does not read ``networks_advanceds`` on refresh (resource_docker_container_funcs.go,
    terraform-provider-docker v4.5.0), so that a container attached again by hand, without its alias, would look
    as declared while the gateway no longer finds it.
    """

    def __init__(
        self,
        name: str,
        *,
        container: pulumi.Input[str],
        network: pulumi.Input[str],
        alias: str,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__(
            NetworkAliasProvider(), name, {"container": container, "network": network, "alias": alias}, opts
        )
