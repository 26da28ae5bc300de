"""A new environment is one copied file and `make secrets`; two on one machine never touch each other."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import docker
import httpx
import jwt
import pytest
import yaml

from doctor.checks.handshake import handshake
from settings import NAMESPACE, PRIVATE_KEY, secret_keys
from tests.stack.conftest import PROJECT, Deployment, free_port, new_deployment, removed, unique_stack
from tests.stack.secret_search import leaked

PARTS = ("postgres", "realtime", "gateway")
OPEN_FILES = f"{NAMESPACE}:realtime.rlimit_nofile"
PORTS = ("postgres.host_port", "realtime.host_port", "gateway.port")
DRIFTED = 7
DECLINED = 401


def copied(example: str, beside: Deployment, **settings: str) -> Deployment:
    """Another environment in the same project: the example's file under another name, with free ports.

    ``settings`` are what else its user writes; two underscores stand for the dot of a key.
    """
    environment = replace(beside, stack=unique_stack(example))
    document = yaml.safe_load((PROJECT / f"Pulumi.{example}.yaml").read_text())
    document["config"] |= {f"{NAMESPACE}:{port}": str(free_port()) for port in PORTS}
    document["config"] |= {f"{NAMESPACE}:{key.replace('__', '.')}": value for key, value in settings.items()}
    # A Docker engine without CAP_SYS_RESOURCE, as in a container, cannot raise its own limit.
    _, open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if OPEN_FILES in document["config"]:
        document["config"][OPEN_FILES] = str(min(int(document["config"][OPEN_FILES]), open_files))
    (environment.folder / f"Pulumi.{environment.stack}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return environment


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A project of a user's own, with a state and a passphrase; its first stack is never up."""
    return new_deployment(tmp_path_factory.mktemp("environments"), stack=unique_stack("first"), settings={})


def test_a_copied_file_lacks_only_secrets_and_make_secrets_makes_them(project: Deployment) -> None:
    environment = copied("prod", project)
    lacking = environment.deploy("preview", check=False)
    assert lacking.returncode == 1
    assert sorted(line.partition(" ")[0] for line in lacking.stderr.splitlines()) == sorted(
        f"{NAMESPACE}:{key}:" for key in secret_keys()
    )
    generated = environment.deploy("secrets")
    assert generated.stdout.splitlines() == [f"{key}: generated" for key in secret_keys()]
    previewed = environment.deploy("preview")
    assert "Policy Packs run" in previewed.stdout
    assert f"{environment.name}-gateway" in previewed.stdout


def test_a_file_copied_with_its_secrets_is_refused(project: Deployment) -> None:
    """Else two environments would have the same keys, and whoever holds one holds both."""
    original = (project.folder / f"Pulumi.{project.stack}.yaml").read_text()
    copy = replace(project, stack=unique_stack("copy"))
    path = copy.folder / f"Pulumi.{copy.stack}.yaml"
    path.write_text(original)
    try:
        for command in ("secrets", "up"):
            refused = copy.deploy(command, check=False)
            assert refused.returncode == 1
            (line,) = refused.stderr.splitlines()
            assert line.startswith(f"Pulumi.{copy.stack}.yaml holds secrets of stack {project.stack}")
        assert path.read_text() == original
    finally:
        path.unlink()


def test_the_policy_pack_ends_a_preview(project: Deployment) -> None:
    project.configure({"gateway.anonymous": True, "gateway.host": "0.0.0.0"})
    try:
        refused = project.deploy("preview", check=False)
    finally:
        project.configure({"gateway.anonymous": False, "gateway.host": "127.0.0.1"})
    assert refused.returncode != 0
    assert "[mandatory]  no-anonymous-on-a-public-gateway" in refused.stdout
    assert "so the gateway on 0.0.0.0 checks no key" in refused.stdout
    assert project.deploy("preview").returncode == 0


@pytest.fixture(scope="module")
def both(project: Deployment) -> Iterator[tuple[Deployment, Deployment]]:
    """The two examples, staging and production, up beside each other; production signs with a private key."""
    environments = copied("staging", project), copied("prod", project, jwt__algorithm="ES256")
    try:
        for environment in environments:
            environment.deploy("secrets")
            environment.up()
        yield environments
    finally:
        for environment in environments:
            removed(environment)


def inspected(environment: Deployment) -> dict[str, Any]:
    """What Docker says of the containers, by part."""
    engine = docker.from_env()
    return {part: engine.containers.get(environment.container_name(part)).attrs for part in PARTS}


def slots(environment: Deployment) -> list[tuple[Any, ...]]:
    with environment.database() as connection:
        return connection.execute("SELECT slot_name FROM pg_replication_slots WHERE active").fetchall()


def test_they_share_no_name_port_network_volume_or_slot(both: tuple[Deployment, Deployment]) -> None:
    staging, prod = both
    assert not set(staging.docker_objects()) & set(prod.docker_objects())
    for environment, listens_on in ((staging, "0.0.0.0"), (prod, "127.0.0.1")):
        containers = inspected(environment)
        published = {
            part: [binding["HostIp"] for port in about["HostConfig"]["PortBindings"].values() for binding in port]
            for part, about in containers.items()
        }
        assert published == {"postgres": ["127.0.0.1"], "realtime": ["127.0.0.1"], "gateway": [listens_on]}
        for about in containers.values():
            assert list(about["NetworkSettings"]["Networks"]) == [environment.name]
            assert about["HostConfig"]["Memory"] > 0
            assert all(mount["Name"].startswith(environment.name) for mount in about["Mounts"] if "Name" in mount)
        assert slots(environment)


def test_a_key_of_one_opens_nothing_of_the_other(both: tuple[Deployment, Deployment]) -> None:
    staging, prod = (environment.outputs() for environment in both)
    assert staging["service_role_key"] != prod["service_role_key"]
    for outputs, other in ((staging, prod), (prod, staging)):
        for key in ("anon_key", "service_role_key"):
            answer = httpx.get(f"{outputs['url']}/realtime/v1/websocket", headers={"apikey": other[key]})
            assert answer.status_code == DECLINED


def test_no_secret_of_one_is_in_the_other(both: tuple[Deployment, Deployment]) -> None:
    configs = [json.loads(e.pulumi("config", "--json", "--show-secrets").stdout) for e in both]
    values = [{config[f"{NAMESPACE}:{key}"]["value"] for key in secret_keys()} for config in configs]
    assert not values[0] & values[1]


def test_a_key_signed_with_a_private_key_opens_realtime_and_the_shared_secret_opens_nothing(
    both: tuple[Deployment, Deployment],
) -> None:
    """`up` has received rows with the anon key. Realtime verifies HS256 beside its JWKS, so the old secret counts."""
    _, prod = both
    config = json.loads(prod.pulumi("config", "--json", "--show-secrets").stdout)
    key = prod.outputs()["anon_key"]
    claims = jwt.decode(key, options={"verify_signature": False})
    of_the_old_secret = jwt.encode(claims, config[f"{NAMESPACE}:jwt.secret"]["value"], algorithm="HS256")
    url = f"http://127.0.0.1:{config[f'{NAMESPACE}:realtime.host_port']['value']}/socket/websocket"
    assert jwt.get_unverified_header(key)["alg"] == "ES256"
    assert handshake(url, key=key, host="supabase-realtime").accepted
    refused = handshake(url, key=of_the_old_secret, host="supabase-realtime")
    assert not refused.accepted
    assert refused.status in (401, 403)


def test_the_private_key_is_nowhere_in_plain_text(both: tuple[Deployment, Deployment]) -> None:
    _, prod = both
    pem = prod.pulumi("config", "get", PRIVATE_KEY).stdout
    secret = {PRIVATE_KEY: pem.splitlines()[1]}
    assert leaked(pem.encode(), secret)
    assert not leaked(prod.pulumi("stack", "export").stdout.encode(), secret)
    for path in prod.folder.rglob("*"):
        if path.is_file() and ".venv" not in path.parts:
            assert not leaked(path.read_bytes(), secret), path
    engine = docker.from_env()
    for part in PARTS:
        container = engine.containers.get(prod.container_name(part))
        assert not leaked(container.logs() + json.dumps(container.attrs).encode(), secret), part


def test_a_change_of_one_is_drift_of_that_one_alone(both: tuple[Deployment, Deployment]) -> None:
    """As the report tells it, which the workflow puts into an issue."""
    staging, prod = both
    with staging.database() as connection:
        connection.execute("DROP POLICY wells_delete ON public.wells")
    drifted = staging.deploy("report", "drift", check=False)
    assert drifted.returncode == DRIFTED, drifted.stderr
    assert "| TableSecurity `public.wells` was changed by hand: `make up` changes it back" in drifted.stdout
    assert "`policies[wells_delete]`" in drifted.stdout
    assert drifted.stdout.startswith("# Drift of stack staging-")
    as_declared = prod.deploy("report", "drift", check=False)
    assert as_declared.returncode == 0, as_declared.stdout + as_declared.stderr
    assert as_declared.stdout.endswith("The world is as declared: nothing to do.\n")


def test_destroying_one_leaves_the_other_working(both: tuple[Deployment, Deployment]) -> None:
    staging, prod = both
    kept = sorted(f"{staging.name}-{volume}" for volume in ("postgres", "postgres-keys"))
    before = prod.docker_objects()
    staging.destroy()
    assert staging.docker_objects() == kept
    assert prod.docker_objects() == before
    prod.probe("--count", "1")
    assert prod.drift().returncode == 0
