"""`make plan`: what would be declared, told without anything but Python, and without giving a secret away."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from plan import description, program
from plan.__main__ import main
from plan.program import PlanError, Program, Resource, Secret
from rehearsal.applier import UnknownResourceError, is_database_object, statements
from settings import WELL_KNOWN_SECRETS, load, secret_keys

PROJECT = Path(__file__).parents[2]
SOURCES = ("components", "plan", "providers", "rehearsal", "sql")


@pytest.fixture(scope="module")
def dev() -> Program:
    return program.run(program.stack_config("dev"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, for stacks of the test's own."""
    for source in SOURCES:
        shutil.copytree(PROJECT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
    for source in ("__main__.py", "realtime_versions.py", "settings.py", "tokens.py", "Pulumi.yaml"):
        shutil.copy(PROJECT / source, tmp_path / source)
    return tmp_path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a plan opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)


def write_stack(project: Path, stack: str, config: Mapping[str, Any]) -> None:
    document = {"config": {f"supabase-realtime:{key}": value for key, value in config.items()}}
    (project / f"Pulumi.{stack}.yaml").write_text(yaml.safe_dump(document))


def texts(value: Any) -> Iterator[str]:
    match value:
        case Mapping():
            for item in value.values():
                yield from texts(item)
        case list() | tuple():
            for item in value:
                yield from texts(item)
        case _:
            yield str(value)


@pytest.mark.usefixtures("no_network")
def test_a_plan_needs_no_cli_no_docker_and_no_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    for image in ("POSTGRES_IMAGE", "REALTIME_IMAGE", "KONG_IMAGE"):
        monkeypatch.delenv(image, raising=False)
    assert main(["--stack", "dev"]) == 0
    shown = capsys.readouterr().out
    for expected in (
        "docker:index/container:Container postgres",
        "image: supabase/postgres:15",
        'CREATE SCHEMA IF NOT EXISTS "_realtime" AUTHORIZATION "supabase_admin";',
        "CREATE TABLE public.wells (",
        'ALTER TABLE "public"."wells" ENABLE ROW LEVEL SECURITY;',
        'CREATE PUBLICATION "supabase_realtime" FOR TABLE "public"."wells"',
        "url: http://supabase-realtime:4000/socket/",
        "external_id: supabase-realtime",
    ):
        assert expected in shown


@pytest.mark.parametrize("stack", ["dev", "staging", "prod"])
def test_every_example_stack_can_be_planned(stack: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--stack", stack]) == 0
    note = f"`make secrets STACK={stack}` generates them"
    assert (note in capsys.readouterr().out) == (stack != "dev")


def test_everything_comes_after_what_it_depends_on(dev: Program) -> None:
    place = {resource.urn: number for number, resource in enumerate(dev.resources)}
    assert sum(len(resource.dependencies) for resource in dev.resources) > 20
    for resource in dev.resources:
        for dependency in resource.dependencies:
            assert place[dependency] < place[resource.urn], f"{resource.name} comes before what it needs"


def test_every_database_object_is_told_in_sql(dev: Program) -> None:
    told = {one.name for one in description.describe(dev) if any(block.language == "sql" for block in one.blocks)}
    objects = {resource.name for resource in dev.resources if is_database_object(resource)}
    assert {"roles", "_realtime", "migrations", "public.wells", "publication"} <= objects
    assert objects <= told


def test_the_kong_file_is_shown_as_it_would_be_uploaded(dev: Program) -> None:
    (gateway,) = (one for one in description.describe(dev) if one.name == "gateway")
    (block,) = gateway.blocks
    kong = yaml.safe_load(block.text)
    assert [service["name"] for service in kong["services"]][:1] == ["realtime-websocket"]
    assert [consumer["keyauth_credentials"] for consumer in kong["consumers"]] == [[{"key": ["secret"]}]] * 2


def test_no_secret_is_shown(project: Path) -> None:
    """The secrets of this stack stand in its file unencrypted, so that the plan knows them and must hide them."""
    secrets = {
        "postgres.password": "the-database-password-of-this-test",
        "realtime.db_enc_key": "sixteen-bytes-ok",
        "realtime.secret_key_base": "a-secret-key-base-of-this-test-alone-that-is-sixty-four-bytes-ok",
        "realtime.api_jwt_secret": "the-management-secret-of-this-test-alone",
        "realtime.metrics_jwt_secret": "the-metrics-secret-of-this-test-alone",
        "jwt.secret": "the-client-key-secret-of-this-test-alone",
    }
    assert set(secrets) == set(secret_keys())
    write_stack(project, "open", secrets)
    planned = program.run(program.stack_config("open", project))
    given = "\n".join(text for resource in planned.resources for text in texts(resource.values))
    told = [
        text
        for one in description.describe(planned)
        for text in (*texts(one.inputs), *(block.text for block in one.blocks))
    ] + list(texts(description.outputs(planned)))
    for secret in secrets.values():
        assert secret in given
        assert not any(secret in text for text in told)
    assert "eyJ" in given
    assert not any("eyJ" in text for text in told)


def test_an_encrypted_secret_is_not_decrypted_but_stood_in_for(dev: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PULUMI_CONFIG_PASSPHRASE", raising=False)
    shown = "\n".join(text for resource in dev.resources for text in texts(resource.values))
    assert not [secret for secret in WELL_KNOWN_SECRETS if len(secret) > 16 and secret in shown]
    assert "placeholder-for-postgres.password" in shown


def test_placeholders_pass_for_secrets_on_every_stack() -> None:
    config = {f"supabase-realtime:{key}": program.placeholder(key) for key in secret_keys()}
    load(config, stack="anything", environ={})
    assert len(set(config.values())) == len(config)


def test_what_is_not_secret_among_the_environment_stays_readable(dev: Program) -> None:
    (realtime,) = (one for one in description.describe(dev) if one.name == "realtime" and "envs" in one.inputs)
    assert "DB_PASSWORD=[secret]" in realtime.inputs["envs"]
    assert "SEED_SELF_HOST=false" in realtime.inputs["envs"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"gateway.port": 99999}, "supabase-realtime:gateway.port: is above 65535"),
        ({"gateway.portt": 1}, "supabase-realtime:gateway.portt: is not a setting"),
        ({"migrations": "nowhere"}, "`migrations` names nowhere, which is not a folder"),
        ({"gateway.host": {"secure": "v1:abc"}}, "gateway.host in Pulumi.mine.yaml is encrypted, and a plan decrypts"),
        (
            {"tables": [{"table": "public.wells", "read": [{"secure": "v1:abc"}]}]},
            "supabase-realtime:tables in Pulumi.mine.yaml is encrypted",
        ),
    ],
)
def test_a_faulty_config_is_told_in_words_and_not_in_a_traceback(
    project: Path, config: Mapping[str, Any], message: str
) -> None:
    write_stack(project, "mine", config)
    done = subprocess.run(
        [sys.executable, "-m", "plan", "--stack", "mine"],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_a_stack_without_a_file_is_told_with_those_that_have_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--stack", "absent"]) == 1
    refused = capsys.readouterr().err
    assert "there is no Pulumi.absent.yaml" in refused
    assert "dev, prod, staging" in refused


def test_a_file_that_is_not_yaml_is_named(project: Path) -> None:
    (project / "Pulumi.mine.yaml").write_text("config: [")
    with pytest.raises(PlanError, match=r"Pulumi\.mine\.yaml is not YAML"):
        program.stack_config("mine", project)


def test_a_resource_whose_sql_is_not_known_is_an_error_and_not_left_out(dev: Program) -> None:
    role = Resource(
        urn="urn",
        type="postgresql:index/role:Role",
        name="app",
        custom=True,
        parent="",
        inputs={},
        dependencies=frozenset(),
    )
    with pytest.raises(UnknownResourceError, match=r"Role app: .* teach it"):
        statements(role, dev.config.project)


def test_the_program_is_recorded_with_its_secret_marks(dev: Program) -> None:
    (tenant,) = (resource for resource in dev.resources if resource.kind == "RealtimeTenant")
    assert isinstance(tenant.inputs["jwt_secret"], Secret)
    assert isinstance(tenant.inputs["db_password"], Secret)
    assert tenant.inputs["external_id"] == "supabase-realtime"


def test_running_the_program_leaves_ctrl_c_to_the_caller() -> None:
    before = signal.getsignal(signal.SIGINT)
    program.run(program.stack_config("dev"))
    assert signal.getsignal(signal.SIGINT) is before
