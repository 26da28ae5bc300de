"""A container that a restore stops runs again afterwards, however the restore ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from deploy.__main__ import COMMANDS, INTERRUPTED, main
from deploy.errors import DeployError
from deploy.recovery import stopped
from tests.unit.docker_engine import IDENTITY, Answer, Request, container, docker_engine

NAME = "supabase-realtime-staging-realtime"
STOP, RESTART = (f"POST /containers/{IDENTITY}/{verb}?t=60" for verb in ("stop", "restart"))


def done(request: Request) -> None:
    request.reply(204)


def answers(**verbs: Answer) -> dict[str, Answer]:
    """An engine that runs Realtime, and does what is asked unless told otherwise."""
    return {
        r"GET /containers/": lambda request: request.reply(200, container(NAME)),
        r"/stop": verbs.get("stop", done),
        r"/restart": verbs.get("restart", done),
    }


def changes(asked: list[str]) -> list[str]:
    return [line for line in asked if not line.startswith("GET")]


def test_a_container_runs_again_after_the_block(tmp_path: Path) -> None:
    with docker_engine(tmp_path, answers()) as (client, asked):
        with stopped(client, NAME):
            assert changes(asked) == [STOP]
        assert changes(asked) == [STOP, RESTART]


def test_ctrl_c_while_it_is_being_stopped_has_it_started_again(tmp_path: Path) -> None:
    """The engine goes on stopping it, so that a mere start would find it running and do nothing."""

    def interrupted(_: Request) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with docker_engine(tmp_path, answers(stop=interrupted)) as (client, asked):
        with pytest.raises(KeyboardInterrupt), stopped(client, NAME):
            pytest.fail("the block ran")
        assert changes(asked) == [STOP, RESTART]


def test_what_ended_the_block_is_said_also_when_the_container_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full: Answer = lambda request: request.reply(500, {"message": "port is already allocated"})  # noqa: E731
    with docker_engine(tmp_path, answers(restart=full)) as (client, _):
        with pytest.raises(DeployError, match="nothing was changed"), stopped(client, NAME):
            raise DeployError("nothing was changed")
        line = (
            f"container {NAME} is stopped and cannot be started again (port is already allocated); "
            f"`docker start {NAME}` does it"
        )
        assert capsys.readouterr().err == f"{line}\n"
        with pytest.raises(DeployError) as failed, stopped(client, NAME):
            pass
    assert failed.value.faults == (line,)


def run_main(monkeypatch: pytest.MonkeyPatch, command: object) -> int:
    monkeypatch.setitem(COMMANDS, "probe", (command, ""))
    return main(["probe"])


def test_an_engine_that_refuses_in_the_middle_of_a_command_is_one_line_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refusing: Answer = lambda request: request.reply(500, {"message": "no space left on device"})  # noqa: E731
    with docker_engine(tmp_path, {"": refusing}) as (client, _):
        assert run_main(monkeypatch, lambda _: client.containers.get(NAME)) == 1
    assert capsys.readouterr().err == (
        "the Docker engine refused: no space left on device; mend that, then run it again\n"
    )


def test_an_engine_that_goes_away_in_the_middle_of_a_command_is_one_line_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with docker_engine(tmp_path, {"": lambda request: request.connection.close()}) as (client, _):
        assert run_main(monkeypatch, lambda _: client.containers.get(NAME)) == 1
    error = capsys.readouterr().err
    assert error.startswith("the Docker engine does not answer any more (")
    assert len(error.splitlines()) == 1


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: str) -> int:
        raise KeyboardInterrupt

    assert run_main(monkeypatch, interrupted) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
