"""The stack's network and containers, as the Docker engine sees them."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Any

from docker.models.containers import Container

from doctor.causes import CAUSES, PLACEHOLDER
from doctor.checks.finding import Finding, check, failed, ok, warning
from doctor.checks.logs import EXIT, explain, tail
from doctor.checks.setup import Need, Setup, image_name
from settings import NAMESPACE

KILLED = 137
STOPPED = (0, KILLED, 143)
"""Exit codes of a container that somebody stopped: by itself, SIGKILL, SIGTERM."""
YOUNG_SECONDS = 60
SETTLE_SECONDS = 4.0
"""A container that restarts for ever runs for some seconds in between: it is looked at until it shows."""
POLL_SECONDS = 0.25
TROUBLE = re.compile(r"error|fatal|cannot|failed", re.IGNORECASE)
PORT_SETTINGS = {"postgres": "postgres.host_port", "realtime": "realtime.host_port", "gateway": "gateway.port"}


@check("the stack's network exists", needs=(Need.DOCKER,))
def network(setup: Setup) -> Finding:
    name = f"{NAMESPACE}-{setup.stack}"
    if setup.network is None:
        return failed("network-missing", f"no network {name}")
    return ok(f"network {name}")


def runs(setup: Setup, part: str) -> Finding:
    """Whether the container of a part runs, and is well as far as the Docker engine knows."""
    name = setup.container_name(part)
    container = setup.parts[part]
    if container is None:
        return failed("container-missing", f"no container {name}")
    _settle(container)
    state = container.attrs["State"]
    if state["Restarting"] or not state["Running"] or _crashed_just_now(container):
        return _exit(setup, container, part)
    return _running(setup, container, part)


def _running(setup: Setup, container: Container, part: str) -> Finding:
    state = container.attrs["State"]
    health = (state.get("Health") or {}).get("Status")
    seen = f"{container.name}: {_words(container)}"
    image, declared = image_name(container), _declared_image(setup, part)
    if endpoint(setup, container) is None:
        return failed("container-off-network", f"{container.name} is not in network {NAMESPACE}-{setup.stack}")
    if state["Paused"]:
        return failed("container-paused", seen, container=container.name)
    if health == "unhealthy":
        return failed(
            "container-unhealthy", f"{seen}; its health check: {_last_check(state)}", container=container.name
        )
    if declared is not None and declared not in (image, image.partition("@")[0]):
        seen = f"{container.name} runs {image}, declared is {declared}"
        return warning("image-differs", seen, setting=f"{part}.image")
    if health == "starting":
        return warning("container-starting", seen, container=container.name)
    return ok(seen)


def _settle(container: Container) -> None:
    """Waits until a container that has crashed before either crashes again or is healthy."""
    deadline = time.monotonic() + SETTLE_SECONDS
    container.reload()
    while container.attrs["State"]["Running"] and _crashed_just_now(container) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        container.reload()


def _crashed_just_now(container: Container) -> bool:
    """Whether the engine has restarted it within a minute, and it is not healthy since."""
    state = container.attrs["State"]
    if not container.attrs["RestartCount"] or (state.get("Health") or {}).get("Status") == "healthy":
        return False
    return (datetime.now(UTC) - _started(state)).total_seconds() < YOUNG_SECONDS


def _started(state: dict[str, Any]) -> datetime:
    """When its last run began."""
    return datetime.fromisoformat(state["StartedAt"][:19]).replace(tzinfo=UTC)


def _exit(setup: Setup, container: Container, part: str) -> Finding:
    """Why a container does not run: memory, its log's last words, or somebody's hand."""
    state: dict[str, Any] = container.attrs["State"]
    name = setup.container_name(part)
    names: dict[str, str] = {"container": name, "setting": PORT_SETTINGS[part]}
    seen = f"{name}: {_words(container)}"
    if state["OOMKilled"] or (state["Restarting"] and state["ExitCode"] == KILLED):
        return failed("container-out-of-memory", seen, **names | {"setting": f"{part}.memory"})
    if state["Status"] == "created" or state["Error"]:
        return failed("container-cannot-start", f"{name}: {state['Error'] or 'created and never started'}", **names)
    lines = tail(container)
    # Words of the run that ended go before those of the runs before it, which may have ended of something else.
    explained = explain(tail(container, since=_started(state)), EXIT[part]) or explain(lines, EXIT[part])
    by_hand = state["Status"] == "exited" and state["ExitCode"] in STOPPED
    if explained is not None and not by_hand:
        known = CAUSES[explained.cause]
        unfilled = {name: f"<{name}>" for name in PLACEHOLDER.findall(known.cause + known.cure)}
        return failed(explained.cause, f"{seen}; its log: {explained.line}", **{**unfilled, **names, **explained.names})
    if by_hand:
        return failed("container-stopped", seen, **names)
    return failed("container-exits", f"{seen}; its log: {_last_words(lines)}", **names)


def _last_words(lines: list[str]) -> str:
    """The last line of a log that tells of an error; else the last one."""
    newest = [" ".join(line.split())[:300] for line in reversed(lines) if line.strip()]
    return next((line for line in newest if TROUBLE.search(line)), newest[0] if newest else "nothing")


def _last_check(state: dict[str, Any]) -> str:
    """What the last run of the health check said."""
    (last,) = ((state.get("Health") or {}).get("Log") or [{"ExitCode": "unknown", "Output": ""}])[-1:]
    return " ".join(str(last["Output"]).split())[:200] or f"exit code {last['ExitCode']}"


def _words(container: Container) -> str:
    state = container.attrs["State"]
    health = (state.get("Health") or {}).get("Status")
    text = str(state["Status"])
    if health and state["Running"]:
        text += f", {health}"
    if not state["Running"] or state["Restarting"]:
        text += f", exit code {state['ExitCode']}" + (", out of memory" if state["OOMKilled"] else "")
    if container.attrs["RestartCount"]:
        text += f", restarted {container.attrs['RestartCount']} times"
    return text


def endpoint(setup: Setup, container: Container) -> dict[str, Any] | None:
    """The container's endpoint in the stack's network."""
    for found in container.attrs["NetworkSettings"]["Networks"].values():
        if found["NetworkID"] == setup.network:
            return dict(found)
    return None


def _declared_image(setup: Setup, part: str) -> str | None:
    section = getattr(setup.config, part) if setup.config else None
    return section.image if section else None
