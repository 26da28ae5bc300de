"""Stacks on the real engine: each a copy of the project with a stack, ports and a state of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import psycopg
import pytest
import yaml
from docker.errors import DockerException, ImageNotFound

from settings import IMAGE_VARIABLES, NAMESPACE, SECTIONS

PROJECT = Path(__file__).parents[2]
SOURCES = ("components", "providers", "deploy", "doctor", "policy", "sql")
PLUGINS = ("docker", "postgresql")
WELLS = {"table": "public.wells", "read": ["anon", "authenticated"], "write": ["anon", "authenticated"]}


def image(variable: str) -> str:
    """The image that a stack under test runs: the environment's, or the default of the settings."""
    section, _, key = IMAGE_VARIABLES[variable].partition(".")
    return os.environ.get(variable) or str(SECTIONS[section].model_fields[key].default)


def missing_part() -> str | None:
    """What this machine lacks to run a real stack, None when it has all."""
    if shutil.which("pulumi") is None:
        return "no pulumi command on PATH: install the Pulumi CLI"
    listed = subprocess.run(
        ["pulumi", "plugin", "ls", "--json"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    installed = {plugin["name"] for plugin in json.loads(listed)}
    if absent := [plugin for plugin in PLUGINS if plugin not in installed]:
        return f"no Pulumi plugin {', '.join(absent)}: run `pulumi install`"
    try:
        engine = docker.from_env()
        engine.ping()
    except DockerException as unreachable:
        return f"no Docker engine: {unreachable}"
    for variable in IMAGE_VARIABLES:
        try:
            engine.images.get(image(variable))
        except ImageNotFound:
            return f"no image {image(variable)} (set {variable} to another): `docker pull {image(variable)}`"
    return None


MISSING = missing_part()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder needs the real parts; without them it skips and says which one is missing."""
    for item in items:
        if MISSING and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=MISSING))


def free_port() -> int:
    """A TCP port of loopback that nobody listens on right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(kw_only=True)
class Deployment:
    """A stack under test: what `make` does, in a folder of its own."""

    folder: Path
    stack: str
    environ: dict[str, str] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{NAMESPACE}-{self.stack}"

    def container_name(self, part: str) -> str:
        return f"{self.name}-{part}"

    def run(
        self, *command: str, check: bool = True, timeout: float = 600, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command in the stack's folder; its output is the assertion's message when it fails."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environ | dict(environ or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{' '.join(command)} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def deploy(self, command: str, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """What `make <command> STACK=…` runs."""
        return self.run(sys.executable, "-m", "deploy", command, "--stack", self.stack, *options, check=check)

    def up(self, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.deploy("up", check=check)

    def drift(self) -> subprocess.CompletedProcess[str]:
        return self.deploy("drift", check=False)

    def destroy(self) -> subprocess.CompletedProcess[str]:
        return self.deploy("destroy")

    def probe(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "doctor", "probe", "--stack", self.stack, *options, check=check)

    def pulumi(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("pulumi", *command, "--stack", self.stack, "--non-interactive", check=check)

    def outputs(self) -> dict[str, Any]:
        outputs: dict[str, Any] = json.loads(self.pulumi("stack", "output", "--json", "--show-secrets").stdout)
        return outputs

    def state(self) -> list[dict[str, Any]]:
        """The resources of the state."""
        deployment = json.loads(self.pulumi("stack", "export").stdout)["deployment"]
        resources: list[dict[str, Any]] = deployment.get("resources", [])
        return resources

    def configure(self, values: Mapping[str, Any]) -> None:
        """Write settings that are not secret, as a person edits the stack's file."""
        path = self.folder / f"Pulumi.{self.stack}.yaml"
        document = yaml.safe_load(path.read_text()) if path.exists() else {}
        config = document.setdefault("config", {})
        config.update({f"{NAMESPACE}:{key}": value for key, value in values.items()})
        path.write_text(yaml.safe_dump(document, sort_keys=False))

    def database(self) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection as the stack's superuser, autocommit."""
        outputs = self.outputs()
        return psycopg.connect(
            host=outputs["database"]["host"],
            port=outputs["database"]["port"],
            dbname=outputs["database"]["name"],
            user=outputs["database"]["user"],
            password=outputs["database_password"],
            autocommit=True,
        )

    def docker_objects(self) -> list[str]:
        """Names of every container, network and volume of the stack, found by label."""
        engine = docker.from_env()
        wanted = {"label": f"com.pulumi.stack={self.stack}"}
        return sorted(
            [c.name for c in engine.containers.list(all=True, filters=wanted)]
            + [n.name for n in engine.networks.list(filters=wanted)]
            + [v.name for v in engine.volumes.list(filters=wanted)]
        )


def new_deployment(folder: Path, *, stack: str, settings: Mapping[str, Any]) -> Deployment:
    """A copy of the project in a folder, with a stack of its own: own secrets, ports, state and names."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        shutil.copytree(PROJECT / source, folder / source, ignore=shutil.ignore_patterns("__pycache__"))
    for source in ("__main__.py", "realtime_versions.py", "settings.py", "tokens.py", "Pulumi.yaml"):
        shutil.copy(PROJECT / source, folder / source)
    (folder / ".venv").symlink_to(Path(sys.prefix), target_is_directory=True)
    state = folder / ".pulumi" / "state"
    state.mkdir(parents=True)
    deployment = Deployment(
        folder=folder,
        stack=stack,
        environ=os.environ
        | {variable: image(variable) for variable in IMAGE_VARIABLES}
        | {
            "PULUMI_BACKEND_URL": state.as_uri(),
            "PULUMI_CONFIG_PASSPHRASE": secrets.token_hex(16),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            # Realtime drops a change that it decodes after the flush of its commit and before others may see the row
            # (v2.32.12, apply_rls). On a loaded machine that gap is wide enough to hit one probe in four.
            "PGOPTIONS": "-c synchronous_commit=off",
        },
    )
    own = () if "postgres.external.host" in settings else ("postgres.host_port",)
    keys = (*own, "realtime.host_port", "gateway.port", "gateway.status_port")
    ports = {key: free_port() for key in keys}
    deployment.configure({**ports, "migrations": "sql/migrations", "tables": [WELLS], **settings})
    deployment.deploy("secrets")
    return deployment


def removed(deployment: Deployment) -> None:
    """Remove what a test's stack left, whatever state it is in, its volumes too."""
    engine = docker.from_env()
    wanted = {"label": f"com.pulumi.stack={deployment.stack}"}
    for container in engine.containers.list(all=True, filters=wanted):
        container.remove(force=True, v=True)
    for container in engine.containers.list(all=True, filters={"name": f"^/{deployment.name}-"}):
        container.remove(force=True, v=True)
    for network in engine.networks.list(filters=wanted):
        network.remove()
    for volume in engine.volumes.list(filters=wanted):
        volume.remove(force=True)


def unique_stack(prefix: str) -> str:
    """A stack name that no other run on this machine has."""
    return f"{prefix}-{secrets.token_hex(3)}"


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One stack that is up, shared by the tests that leave it as declared."""
    deployment = new_deployment(tmp_path_factory.mktemp("live"), stack=unique_stack("live"), settings={})
    try:
        deployment.up()
        yield deployment
    finally:
        removed(deployment)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Deployment]:
    """A stack of the test's own that is not up yet."""
    deployment = new_deployment(tmp_path / "project", stack=unique_stack("fresh"), settings={})
    try:
        yield deployment
    finally:
        removed(deployment)
