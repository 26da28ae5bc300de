"""Rotation: what is written down, in which order, and what an interrupted one is said to need."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from threading import Thread

import pytest
from docker.errors import NotFound
from pydantic import SecretStr
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

import settings
from deploy import rotation
from deploy.engine import Engine
from deploy.errors import DeployError
from deploy.generated import generate, generate_private_key
from settings import NAMESPACE, ApiRole, PendingRotation, Settings, SettingsError
from tests.unit.docker_engine import Answer, container, docker_engine
from tokens import api_key

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


@contextlib.contextmanager
def door(status: int | None) -> Iterator[tuple[int, list[Request]]]:
    """A port where every websocket is answered with the status, None for one that opens, and who has knocked."""
    knocked: list[Request] = []

    def answer(connection: ServerConnection, request: Request) -> Response | None:
        knocked.append(request)
        return None if status is None else connection.respond(HTTPStatus(status), "")

    with serve(lambda connection: connection.close(), "127.0.0.1", 0, process_request=answer) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1], knocked
        finally:
            server.shutdown()
            thread.join()


def behind(gateway: int, realtime: int) -> Settings:
    """A stack whose gateway and Realtime listen on these ports."""
    ports = {f"{NAMESPACE}:gateway.port": str(gateway), f"{NAMESPACE}:realtime.host_port": str(realtime)}
    return settings.load({**SECRETS, **ports}, stack="staging", environ={})


def still_opens(gateway: int | None, realtime: int | None) -> str | None:
    """What is said of the old jwt.secret, when it is answered so by the gateway and by Realtime."""
    with door(gateway) as (gateway_port, _), door(realtime) as (realtime_port, _):
        return rotation.OPENS["jwt.secret"](behind(gateway_port, realtime_port), pending().previous)


def test_a_gateway_that_refuses_the_old_key_does_not_prove_that_realtime_does() -> None:
    """With `gateway.anonymous: false` Kong's key-auth answers, and Realtime is never asked."""
    old = loaded().jwt.model_copy(update={"secret": pending().previous})
    with door(401) as (gateway, at_gateway), door(None) as (realtime, at_realtime):
        opens = rotation.OPENS["jwt.secret"](behind(gateway, realtime), pending().previous)
    assert opens == "Realtime opens a websocket"
    assert [request.path.partition("?")[0] for request in (*at_gateway, *at_realtime)] == [
        "/realtime/v1/websocket",
        "/socket/websocket",
    ]
    assert at_realtime[0].headers["Host"] == f"supabase-realtime:{realtime}"
    assert at_realtime[0].headers["x-api-key"] == api_key(old, ApiRole.ANON)


@pytest.mark.parametrize(
    ("gateway", "realtime", "said"),
    [
        (401, 403, None),
        (403, 403, None),
        (None, 403, "the gateway opens a websocket"),
        (401, 500, "Realtime answers 500"),
        (503, 403, "the gateway answers 503"),
    ],
)
def test_the_old_key_is_refused_when_both_gateway_and_realtime_refuse_it(
    gateway: int | None, realtime: int, said: str | None
) -> None:
    assert still_opens(gateway, realtime) == said


def test_a_gateway_that_is_just_starting_and_hangs_up_is_knocked_at_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            taken, _ = listening.accept()
            with taken:
                taken.recv(65536)

        thread = Thread(target=hang_up)
        thread.start()
        opens = rotation.OPENS["jwt.secret"](behind(listening.getsockname()[1], 1), pending().previous)
        thread.join()
    assert opens is not None
    assert opens.startswith("the gateway does not answer (")


def test_a_restarted_realtime_is_waited_for_until_it_is_healthy_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was healthy before, which says nothing of it now."""
    monkeypatch.setattr(rotation, "POLL_SECONDS", 0.01)
    healths = ["healthy", "starting", "starting", "healthy"]
    answers: dict[str, Answer] = {
        "GET": lambda request: request.reply(200, container("realtime", health=healths.pop(0))),
        "POST .*/restart": lambda request: request.reply(204),
    }
    with docker_engine(tmp_path, answers) as (client, asked):
        rotation.drop_old_clients(client, loaded())
    assert healths == []
    assert [line.partition(" ")[0] for line in asked] == ["GET", "POST", "GET", "GET", "GET"]


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
