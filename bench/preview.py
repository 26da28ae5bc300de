"""A preview without changes, against an empty program's."""

from __future__ import annotations

from pathlib import Path

import docker

from bench.projects import (
    PROJECT,
    comparison_project,
    development_config,
    remove_docker_objects,
    remove_volume,
    stack_project,
)
from bench.report import Result, against, ratio, seconds

ROUNDS = 7
BOUND = 1.5


def run(work: Path, rounds: int) -> Result:
    """Alternate the previews of the development stack, of an empty program, and of the least with three providers."""
    client = docker.from_env()
    stack = stack_project(work / "stack", program=PROJECT / "__main__.py", config=development_config())
    empty = comparison_project(work / "empty", program="empty.py")
    least = comparison_project(work / "least", program="three_providers.py")
    projects = {"empty program": empty, "one resource of each provider": least, "development stack": stack}
    taken: dict[str, list[float]] = {name: [] for name in projects}
    resources: dict[str, int] = {}
    try:
        for name, project in projects.items():
            project.up()
            project.preview()
            resources[name] = project.resources()
        for _ in range(rounds):
            for name, project in projects.items():
                taken[name].append(project.preview().seconds)
    finally:
        remove_docker_objects(client, stack.stack)
        remove_volume(client, f"bench-{least.stack}")
    base = taken["empty program"]
    rows = [("empty program", str(resources["empty program"]), seconds(base), "1")]
    for name in ("one resource of each provider", "development stack"):
        rows.append((name, str(resources[name]), seconds(taken[name]), against(ratio(taken[name], base), BOUND)))
    return Result(
        name="preview",
        command=f"python -m bench preview --rounds {rounds}",
        columns=("preview without changes", "resources", "seconds", "ratio"),
        rows=tuple(rows),
    )
