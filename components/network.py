"""The Docker network of the stack, and what every Docker object of the stack has in common."""

from __future__ import annotations

from typing import Any

import pulumi
import pulumi_docker as docker

PROJECT_LABEL = "com.pulumi.project"
STACK_LABEL = "com.pulumi.stack"
IMAGE_LABEL = "supabase-realtime.image"
"""The image as the settings name it: a container of a local image says its id only."""
LOOPBACK = "127.0.0.1"


def labels(stack: str) -> dict[str, str]:
    """Labels by which the objects of a stack are found again, also those that an interrupted update left behind."""
    return {PROJECT_LABEL: "supabase-realtime", STACK_LABEL: stack}


def container_defaults(stack: str, *, image: str, memory: int) -> dict[str, Any]:
    """Arguments that every container of the stack gets.

    A restart unless somebody stopped it; 30 MB of log; no more memory than told (MiB) and no swap beyond it; no way
    to gain privileges. ContainerReadiness holds back what depends on the container's server.
    """
    return {
        "labels": [
            docker.ContainerLabelArgs(label=k, value=v) for k, v in {**labels(stack), IMAGE_LABEL: image}.items()
        ],
        "restart": "unless-stopped",
        "memory": memory,
        "memory_swap": memory,
        "log_driver": "json-file",
        "log_opts": {"max-size": "10m", "max-file": "3"},
        "security_opts": ["no-new-privileges:true"],
        "must_run": True,
    }


def health_check(*command: str) -> docker.ContainerHealthcheckArgs:
    """A health check that runs every two seconds and forgives failures while the server starts.

    Without start_interval: the docker provider refuses it on an engine before Docker 25 (`requires API version 1.44`).
    """
    # Durations as Go writes them: another spelling of the same would be a diff at every refresh.
    return docker.ContainerHealthcheckArgs(
        tests=["CMD", *command], interval="2s", timeout="5s", retries=5, start_period="1m0s", start_interval="0s"
    )


class StackNetwork(pulumi.ComponentResource):
    """The bridge network that the stack's containers share, and no others.

    Resources: docker.Network ``<name>``.
    """

    network: docker.Network

    def __init__(self, name: str, *, stack: str, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("supabase-realtime:index:StackNetwork", name, None, opts)
        self.network = docker.Network(
            "network",
            name=name,
            driver="bridge",
            labels=[docker.NetworkLabelArgs(label=k, value=v) for k, v in labels(stack).items()],
            opts=pulumi.ResourceOptions(parent=self, delete_before_replace=True),
        )
        self.register_outputs({"network_id": self.network.id})
