"""What `up` waits for: a server that answers, and a first subscription that is served."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import docker
import pytest
from docker.models.containers import Container
from docker.types import Healthcheck

from providers.container_readiness import ContainerError, ContainerReadinessProvider
from providers.first_subscription import SubscriptionError, subscribe
from tests.stack.conftest import Deployment, image, unique_stack

HOUR_NS = 3_600_000_000_000
"""Of the engine's own health checks: none of them runs while a test does."""
Started = Callable[..., Container]


@pytest.fixture
def started() -> Iterator[Started]:
    """Runs a shell command as a container's server, with a health check."""
    containers = []

    def run(command: str, *, healthy: list[str], **options: Any) -> Container:
        container = docker.from_env().containers.run(
            image("POSTGRES_IMAGE"),
            ["-c", command],
            entrypoint="/bin/sh",
            name=unique_stack("readiness"),
            healthcheck=Healthcheck(test=healthy, interval=HOUR_NS),
            detach=True,
            **options,
        )
        containers.append(container)
        return container

    yield run
    for container in containers:
        container.remove(force=True)


def ready(container: Container, *, timeout: float = 30.0) -> None:
    # The engine hands every number over as a float.
    ContainerReadinessProvider().create({"container": container.id, "timeout": timeout})


@pytest.mark.parametrize("check", [["CMD", "test", "-e", "/tmp/up"], ["CMD-SHELL", "test -e /tmp/up"]])
def test_a_server_is_ready_as_soon_as_its_health_check_passes(check: list[str], started: Started) -> None:
    container = started("sleep 1; touch /tmp/up; sleep 60", healthy=check)
    began = time.monotonic()
    ready(container)
    assert time.monotonic() - began < 10, "not when the engine looks next"
    assert container.exec_run(["test", "-e", "/tmp/up"]).exit_code == 0, "not before"


def test_a_server_that_does_not_answer_in_time_is_an_error_with_the_words_of_its_health_check(started: Started) -> None:
    container = started("sleep 60", healthy=["CMD-SHELL", "echo starting; echo no tenant yet; exit 1"])
    with pytest.raises(ContainerError) as failed:
        ready(container, timeout=0.5)
    assert str(failed.value) == (
        f"container {container.name} was not healthy within 0 s (running, its health check: no tenant yet); "
        f"`docker logs {container.name}` says why"
    )


def test_a_server_that_keeps_ending_is_not_waited_for(started: Started) -> None:
    container = started("exit 3", healthy=["CMD", "true"], restart_policy={"Name": "always"})
    began = time.monotonic()
    with pytest.raises(ContainerError, match=r"ended 3 times while it was starting \(exit code 3\); `docker logs"):
        ready(container, timeout=60.0)
    assert time.monotonic() - began < 30


def subscribed(
    stack: Deployment, *, table: str = "wells", tenant: str | None = None, secret: str | None = None
) -> None:
    outputs = stack.outputs()
    own = stack.pulumi("config", "get", "jwt.secret").stdout.strip()
    port = int(stack.pulumi("config", "get", "realtime.host_port").stdout)
    subscribe(
        port=port,
        tenant=tenant or outputs["tenant"],
        jwt_secret=secret or own,
        schema="public",
        table=table,
        timeout=2.5,
    )


def test_after_up_a_subscription_is_served_at_once(live: Deployment) -> None:
    subscribed(live)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"table": "not_published"}, "Please check Realtime is enabled for the given connect parameters"),
        ({"secret": "the-secret-of-somebody-else-32-bytes"}, "HTTP 403"),
        ({"tenant": "nobody"}, "HTTP 403"),
    ],
)
def test_a_subscription_that_is_refused_is_an_error_with_the_words_of_the_server(
    fault: dict[str, str], words: str, live: Deployment
) -> None:
    with pytest.raises(SubscriptionError, match=words):
        subscribed(live, **fault)
