"""Rotation: what is written down, in which order, and what an interrupted one is said to need."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from docker.errors import NotFound
from pydantic import SecretStr

import settings
from deploy import rotation
from deploy.engine import Engine
from deploy.errors import DeployError
from deploy.generated import generate, generate_private_key
from settings import NAMESPACE, PendingRotation, Settings, SettingsError

SECRETS = {f"{NAMESPACE}:{key}": generate(key) for key in settings.secret_keys()}


def pending(key: str = "jwt.secret") -> PendingRotation:
    return PendingRotation(
        key=key, previous=SecretStr(SECRETS[f"{NAMESPACE}:{key}"]), next=SecretStr("the-next-value-of-this-test-alone!")
    )


def loaded(record: str | None = None) -> Settings:
    config = SECRETS if record is None else {**SECRETS, f"{NAMESPACE}:rotation": record}
    return settings.load(config, stack="staging", environ={})


class Cli:
    """A CLI that keeps what it is asked, and has a state in which there is a container or none."""

    def __init__(self, folder: Path, *, containers: int = 1) -> None:
        self.folder = folder
        resources = [{"type": "docker:index/container:Container", "id": str(n)} for n in range(containers)]
        (folder / "state").write_text(json.dumps({"deployment": {"resources": resources}}))
        script = folder / "pulumi"
        script.write_text(
            f'#!/bin/sh\necho "$*" >> {folder}/asked\n'
            f'case "$*" in "stack export"*) cat {folder}/state;; *) {{ cat; echo; }} >> {folder}/stdin;; esac\n'
        )
        script.chmod(0o755)
        self.engine = Engine(command=str(script), project=folder, stack="staging", environ={"PATH": "/usr/bin:/bin"})

    @property
    def asked(self) -> list[str]:
        """The commands so far, without the options that all have."""
        lines = (self.folder / "asked").read_text().splitlines()
        return [line.partition(" --stack")[0] for line in lines]

    @property
    def stdin(self) -> list[str]:
        """What was handed over on stdin, command by command."""
        return [line for line in (self.folder / "stdin").read_text().splitlines() if line]


def test_every_secret_can_be_rotated() -> None:
    assert sorted(rotation.SECRETS.values()) == sorted(settings.secret_keys())


def test_the_next_value_is_written_down_beside_the_one_in_force_before_anything_changes(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    rotation.begin(cli.engine, loaded(), "jwt")
    assert cli.asked == ["stack export", "config set --secret rotation"]
    (record,) = cli.stdin
    under_way = loaded(record).rotation
    assert under_way is not None
    assert under_way.key == "jwt.secret"
    assert under_way.previous.get_secret_value() == SECRETS[f"{NAMESPACE}:jwt.secret"]
    assert len(under_way.next.get_secret_value()) >= 32
    assert under_way.next != under_way.previous


@pytest.mark.parametrize("name", rotation.SECRETS)
def test_a_generated_next_value_is_good_enough_for_its_setting(tmp_path: Path, name: str) -> None:
    cli = Cli(tmp_path)
    rotation.begin(cli.engine, loaded(), name)
    record = json.loads(cli.stdin[0])
    settings.load({**SECRETS, f"{NAMESPACE}:{record['key']}": record["next"]}, stack="staging", environ={})


@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
def test_on_a_stack_whose_keys_a_private_key_signs_it_is_the_one_that_gets_rotated(
    tmp_path: Path, algorithm: str
) -> None:
    cli = Cli(tmp_path)
    old = generate_private_key(algorithm)
    config = {**SECRETS, f"{NAMESPACE}:jwt.algorithm": algorithm, f"{NAMESPACE}:jwt.private_key": old}
    rotation.begin(cli.engine, settings.load(config, stack="staging", environ={}), "jwt")
    under_way = settings.load({**config, f"{NAMESPACE}:rotation": cli.stdin[0]}, stack="staging", environ={}).rotation
    assert under_way is not None
    assert (under_way.key, under_way.previous.get_secret_value()) == ("jwt.private_key", old.strip())
    assert rotation.command(under_way, "staging") == "make rotate SECRET=jwt STACK=staging"
    settings.load(
        {**config, f"{NAMESPACE}:jwt.private_key": under_way.next.get_secret_value()}, stack="staging", environ={}
    )


def test_a_rotation_under_way_is_taken_up_with_the_value_it_had_chosen(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    rotation.begin(cli.engine, loaded(pending().recorded()), "jwt")
    assert not (tmp_path / "asked").exists(), "nothing is written"


def test_another_secret_waits_until_the_one_under_way_is_finished(tmp_path: Path) -> None:
    with pytest.raises(DeployError) as refused:
        rotation.begin(Cli(tmp_path).engine, loaded(pending().recorded()), "management")
    assert refused.value.faults == (
        "the rotation of jwt.secret is not finished; `make rotate SECRET=jwt STACK=staging` finishes it; "
        "then rotate realtime.api_jwt_secret",
    )


def test_a_stack_that_is_not_up_has_nothing_to_rotate(tmp_path: Path) -> None:
    cli = Cli(tmp_path, containers=0)
    with pytest.raises(DeployError, match=r"stack staging is not up, so nothing knows jwt.secret yet"):
        rotation.begin(cli.engine, loaded(), "jwt")
    assert cli.asked == ["stack export"]


def test_the_secret_becomes_the_configs_last_so_that_the_keys_begin_anew_in_any_case(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    rotation.put_in_place(cli.engine, NO_DOCKER, loaded(pending().recorded()), pending())
    first, second = cli.asked
    assert first.startswith("config set --plaintext jwt.issued_at 1")
    assert second == "config set --secret jwt.secret"
    assert cli.stdin == ["the-next-value-of-this-test-alone!"]


def test_what_is_in_place_already_is_left_alone(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    done = PendingRotation(
        key="jwt.secret", previous=SecretStr("x" * 40), next=SecretStr(SECRETS[f"{NAMESPACE}:jwt.secret"])
    )
    rotation.put_in_place(cli.engine, NO_DOCKER, loaded(done.recorded()), done)
    assert not (tmp_path / "asked").exists()


def without_postgres() -> Settings:
    """A stack on whose Postgres port nobody listens."""
    record = pending("postgres.password").recorded()
    config = {**SECRETS, f"{NAMESPACE}:rotation": record, f"{NAMESPACE}:postgres.host_port": "1"}
    return settings.load(config, stack="staging", environ={})


def test_a_stack_without_data_yet_starts_with_the_next_password(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    rotation.put_in_place(cli.engine, Volumes(), without_postgres(), pending("postgres.password"))
    assert cli.asked == ["config set --secret postgres.password"]
    assert cli.stdin == ["the-next-value-of-this-test-alone!"]


def test_a_postgres_that_has_data_and_does_not_answer_gets_no_password_that_it_does_not_know(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    with pytest.raises(DeployError, match="Postgres cannot be asked to take its next password"):
        rotation.put_in_place(
            cli.engine, Volumes("supabase-realtime-staging-postgres"), without_postgres(), pending("postgres.password")
        )
    assert not (tmp_path / "asked").exists(), "the config keeps the password that may be in force"


@pytest.mark.parametrize(
    "record",
    [
        "",
        "not JSON",
        "{}",
        '{"key": "jwt.secret", "previous": "a-secret-value", "next": 1}',
        '{"key": "gateway.port", "previous": "a-secret-value", "next": "b"}',
    ],
)
def test_a_record_that_no_rotation_wrote_is_a_fault_that_shows_none_of_it(record: str) -> None:
    with pytest.raises(SettingsError) as faulty:
        loaded(record)
    (fault,) = faulty.value.faults
    assert fault.startswith("supabase-realtime:rotation: is no record of a rotation; ")
    assert "a-secret-value" not in fault


def test_neither_the_record_nor_the_settings_show_a_secret() -> None:
    shown = repr(loaded(pending().recorded())) + str(pending())
    assert "the-next-value" not in shown
    assert SECRETS[f"{NAMESPACE}:jwt.secret"] not in shown


class Volumes:
    """An engine that has these volumes, and is asked for nothing else."""

    def __init__(self, *names: str) -> None:
        self.names = names

    @property
    def volumes(self) -> Volumes:
        return self

    def get(self, name: str) -> str:
        if name not in self.names:
            raise NotFound(f"no such volume: {name}")
        return name


class _NoDocker:
    """Only Postgres's password is put anywhere but into the config."""

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"the Docker engine was asked for {name}")


NO_DOCKER = _NoDocker()
