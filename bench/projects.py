"""Pulumi projects to measure: each in a folder of its own, with a stack and a file backend that nobody else uses."""

from __future__ import annotations

import compileall
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import yaml

from bench.measure import Measured, measure
from deploy import generated, pulumi_cli
from deploy.engine import Engine
from settings import NAMESPACE, Settings, load, secret_keys

PROJECT = Path(__file__).resolve().parent.parent
PROGRAMS = PROJECT / "bench" / "programs"
PACKAGES = ("bench", "components", "providers", "sql")
MODULES = ("realtime_versions.py", "settings.py", "tokens.py")
STACK_LABEL = "com.pulumi.stack"
EMPTY = "bench"
"""Name of the projects that are compared with."""
REFRESHED = ("--refresh", "--run-program")


@dataclass(frozen=True)
class Project:
    """A project with one stack."""

    engine: Engine

    @property
    def folder(self) -> Path:
        return self.engine.project

    @property
    def stack(self) -> str:
        return self.engine.stack

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def up(self, *, memory: bool = False) -> Measured:
        return self._run("up", "--yes", "--skip-preview", memory=memory)

    def preview(self, *, memory: bool = False) -> Measured:
        return self._run("preview", "--expect-no-changes", memory=memory)

    def refreshed_preview(self, *, memory: bool = False) -> Measured:
        return self._run("preview", "--expect-no-changes", *REFRESHED, memory=memory)

    def resources(self) -> int:
        """How many resources the state holds."""
        return len(self.engine.export()["deployment"].get("resources", []))

    def settings(self) -> Settings:
        """The stack's settings, as the program sees them."""
        return load(self.engine.config(), stack=self.stack, environ=os.environ)

    def _run(self, *command: str, memory: bool) -> Measured:
        arguments = [self.engine.command, *command, "--stack", self.stack, "--non-interactive", "--color", "never"]
        return measure(arguments, cwd=self.folder, environ=self.engine.environ, memory=memory)


def stack_project(folder: Path, *, program: Path, config: Mapping[str, Any]) -> Project:
    """A project that declares this stack, or a part of it, with secrets of its own.

    A key of ``config`` without a namespace is one of the settings.
    """
    shutil.copy(PROJECT / "Pulumi.yaml", _made(folder) / "Pulumi.yaml")
    values = {key if ":" in key else f"{NAMESPACE}:{key}": value for key, value in config.items()}
    project = _project(folder, program=program, config=values)
    for key in secret_keys():
        if key not in config:
            project.engine.ask("config", "set", "--secret", key, stdin=generated.generate(key))
    return project


def comparison_project(folder: Path, *, program: str, config: Mapping[str, Any] | None = None) -> Project:
    """A project that runs one of bench/programs."""
    document = {"name": EMPTY, "runtime": {"name": "python", "options": {"virtualenv": ".venv"}}}
    (_made(folder) / "Pulumi.yaml").write_text(yaml.safe_dump(document))
    return _project(folder, program=PROGRAMS / program, config=config or {})


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _project(folder: Path, *, program: Path, config: Mapping[str, Any]) -> Project:
    for package in PACKAGES:
        shutil.copytree(PROJECT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for module in MODULES:
        shutil.copy(PROJECT / module, folder / module)
    shutil.copy(program, folder / "__main__.py")
    compileall.compile_dir(folder, quiet=1)
    (folder / ".venv").symlink_to(sys.prefix, target_is_directory=True)
    cli = pulumi_cli.find_or_install(PROJECT)
    environ = {
        **os.environ,
        "PATH": pulumi_cli.path_with(cli, os.environ),
        "PULUMI_BACKEND_URL": (folder / "state").as_uri(),
        "PULUMI_CONFIG_PASSPHRASE": secrets.token_hex(16),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
    }
    (folder / "state").mkdir()
    stack = f"bench-{secrets.token_hex(3)}"
    (folder / f"Pulumi.{stack}.yaml").write_text(yaml.safe_dump({"config": dict(config)}))
    engine = Engine(command=cli.command, project=folder, stack=stack, environ=environ)
    engine.select(create=True)
    return Project(engine=engine)


def development_config() -> dict[str, Any]:
    """What Pulumi.dev.yaml sets, without its secrets, and with ports that nobody uses."""
    document = yaml.safe_load((PROJECT / "Pulumi.dev.yaml").read_text())
    plain = {
        key.partition(":")[2]: value
        for key, value in document["config"].items()
        if not (isinstance(value, dict) and "secure" in value)
    }
    return plain | {key: free_port() for key in ("postgres.host_port", "realtime.host_port", "gateway.port")}


def free_port() -> int:
    """A TCP port of loopback that nobody listens on right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def remove_docker_objects(client: docker.DockerClient, stack: str) -> None:
    """Remove the containers, networks and volumes that carry the stack's label."""
    wanted = {"label": f"{STACK_LABEL}={stack}"}
    for container in client.containers.list(all=True, filters=wanted):
        container.remove(force=True, v=True)
    for network in client.networks.list(filters=wanted):
        network.remove()
    for volume in client.volumes.list(filters=wanted):
        volume.remove(force=True)


def remove_volume(client: docker.DockerClient, name: str) -> None:
    """Remove a volume that a program of bench/programs declared, if it is there."""
    for volume in client.volumes.list(filters={"name": f"^{name}$"}):
        volume.remove(force=True)


def machine() -> str:
    """The machine and the versions that a result belongs to."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cli = pulumi_cli.find_or_install(PROJECT)
    engine = docker.from_env().version()["Version"]
    return f"{os.cpu_count()} cores, {gib:.0f} GiB of memory, Pulumi {cli.version}, Docker engine {engine}"
