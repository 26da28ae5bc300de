"""CPU and memory of a stack's containers and of this process, sampled."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psutil
import requests
from docker.errors import DockerException, NotFound
from docker.models.containers import Container

from doctor.checks.setup import Need, Setup
from doctor.load_result import Usage
from settings import NAMESPACE

MEBIBYTE = 2**20
PROCESS = "this process"
MACHINE = "this machine"


@dataclass(frozen=True)
class Reading:
    """CPU time used so far and memory in use. ``at`` is in seconds, of the same clock for every reading of a thing."""

    at: float
    cpu_seconds: float
    memory_mib: float


@dataclass
class _Series:
    first: Reading
    last: Reading
    cpu: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


class Sampler:
    """Reads the usage of everything when told to. Blocks for up to a second: call it in a thread.

    ``skipped`` says why containers are not looked at, None when they are.
    """

    def __init__(self, setup: Setup) -> None:
        self.skipped = setup.lacks(Need.DOCKER)
        self._containers: list[Container] = []
        self._series: dict[str, _Series] = {}
        self._process = psutil.Process()
        self._started: dict[str, str] = {}
        if self.skipped is None:
            labels = [f"com.pulumi.project={NAMESPACE}", f"com.pulumi.stack={setup.stack}"]
            self._containers = sorted(setup.engine.containers.list(filters={"label": labels}), key=lambda c: c.name)
            self._started = {c.name: c.attrs["State"]["StartedAt"] for c in self._containers}
            if not self._containers:
                self.skipped = f"no container is labelled com.pulumi.stack={setup.stack}"

    def sample(self, *, counting: bool) -> tuple[dict[str, float], dict[str, float]]:
        """CPU percent since the sample before, and memory in MiB, by name; what cannot be read now is left out.

        With ``counting`` the sample is part of the averages of ``usage``.
        """
        cpu: dict[str, float] = {}
        memory: dict[str, float] = {}
        for name, reading in self._readings():
            series = self._series.setdefault(name, _Series(reading, reading))
            before, series.last = series.last, reading
            memory[name] = round(reading.memory_mib, 1)
            elapsed, used = reading.at - before.at, reading.cpu_seconds - before.cpu_seconds
            if elapsed > 0 and used >= 0:  # a container that was started again counts from nothing
                cpu[name] = round(100 * used / elapsed, 1)
                if counting:
                    series.cpu.append(cpu[name])
                    series.memory.append(reading.memory_mib)
        return cpu, memory

    def usage(self) -> tuple[Usage, ...]:
        """Mean and maximum of what was counted, of everything that was there."""
        return tuple(
            Usage(
                name=name,
                cpu_percent_mean=round(sum(series.cpu) / len(series.cpu), 1),
                cpu_percent_max=max(series.cpu),
                memory_mib_start=round(series.first.memory_mib, 1),
                memory_mib_mean=round(sum(series.memory) / len(series.memory), 1),
                memory_mib_max=round(max(series.memory), 1),
            )
            for name, series in self._series.items()
            if series.cpu
        )

    def restarted(self) -> list[str]:
        """What became of containers that are not the ones of the beginning any more, one phrase each."""
        found = []
        for container in self._containers:
            try:
                container.reload()
            except NotFound:
                found.append(f"{container.name} was removed")
                continue
            except (DockerException, requests.RequestException) as failed:
                found.append(f"{container.name} could not be looked at again ({type(failed).__name__})")
                continue
            state = container.attrs["State"]
            if not state["Running"]:
                cause = ", out of memory" if state["OOMKilled"] else ""
                found.append(f"{container.name} has stopped (exit {state['ExitCode']}{cause})")
            elif state["StartedAt"] != self._started[container.name]:
                found.append(f"{container.name} was started again")
        return found

    def _readings(self) -> list[tuple[str, Reading]]:
        found = []
        if self._containers:
            # All at once: the engine (20.10) answers each at the next tick of its collector, once a second.
            with ThreadPoolExecutor(len(self._containers)) as pool:
                readings = list(pool.map(_read, self._containers))
            for container, reading in zip(self._containers, readings, strict=True):
                if reading is not None:
                    found.append((str(container.name), reading))
        with self._process.oneshot():
            times, resident = self._process.cpu_times(), self._process.memory_info().rss
        found.append((PROCESS, Reading(time.monotonic(), times.user + times.system, resident / MEBIBYTE)))
        machine, whole = psutil.cpu_times(), psutil.virtual_memory()
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        busy = sum(machine) - idle - getattr(machine, "guest", 0.0) - getattr(machine, "guest_nice", 0.0)
        found.append((MACHINE, Reading(time.monotonic(), busy, (whole.total - whole.available) / MEBIBYTE)))
        return found


def _read(container: Container) -> Reading | None:
    try:
        return reading_of(container.stats(stream=False, one_shot=True))
    except (DockerException, requests.RequestException):
        return None  # gone or restarting: restarted() says so at the end


def reading_of(stats: Mapping[str, Any]) -> Reading | None:
    """A reading in the Docker engine's answer; None of a container that does not run, whose numbers are missing."""
    total = stats.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage")
    memory = stats.get("memory_stats", {})
    if not total or "usage" not in memory:
        return None
    details = memory.get("stats", {})
    # As `docker stats` shows it: cgroup v2 says inactive_file, v1 total_inactive_file.
    cache = details.get("inactive_file", details.get("total_inactive_file", 0))
    at = datetime.fromisoformat(stats["read"]).timestamp()
    return Reading(at, total / 1e9, max(0, memory["usage"] - cache) / MEBIBYTE)
