"""Commands in a container: all of their input reaches them, however slowly they take it, and a failure is named."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.container_commands import ContainerCommands, Finished
from deploy.errors import DeployError
from tests.unit.docker_engine import STDERR, STDOUT, Answer, docker_engine, execution, frame

PIECE = bytes(1024 * 1024)
PIECES = 8
"""More than the buffers of a connection hold."""


def received(stream: socket.socket, size: int) -> int:
    """How much of the input came."""
    total = 0
    while total < size and (data := stream.recv(65536)):
        total += len(data)
    return total


def run(folder: Path, answers: dict[str, Answer], stdin: Iterator[bytes] | None, timeout: float = 10) -> Finished:
    with docker_engine(folder, answers, timeout=timeout) as (client, _):
        return ContainerCommands(client, "postgres").run(["psql"], environment={}, stdin=stdin)


def test_a_command_that_takes_no_input_for_longer_than_an_answer_may_take_gets_all_of_it(tmp_path: Path) -> None:
    """psql reads nothing while a statement runs, which may be an index of hours."""
    came: list[int] = []

    def busy(stream: socket.socket) -> None:
        time.sleep(0.6)
        came.append(received(stream, PIECES * len(PIECE)))

    assert run(tmp_path, execution(busy), iter([PIECE] * PIECES), timeout=0.2).code == 0
    assert came == [PIECES * len(PIECE)]


def test_input_that_cannot_be_read_ends_the_command_that_waits_for_it(tmp_path: Path) -> None:
    def cut_off() -> Iterator[bytes]:
        yield PIECE
        raise DeployError("the dump cannot be read (Input/output error)")

    waited: list[float] = []

    def waiting(stream: socket.socket) -> None:
        begun = time.monotonic()
        received(stream, 2 * len(PIECE))
        waited.append(time.monotonic() - begun)

    with pytest.raises(DeployError, match=r"the dump cannot be read \(Input/output error\)"):
        run(tmp_path, execution(waiting), cut_off())
    assert waited[0] < 2, "the command still waited for its input"


def test_a_command_that_fails_before_it_has_read_all_of_its_input_tells_why(tmp_path: Path) -> None:
    """The engine closes a connection with unread input in it, and the sender waits for room in it."""

    def failing(stream: socket.socket) -> None:
        time.sleep(0.2)
        stream.sendall(frame(STDERR, b"psql: error: no such role") + frame(STDOUT, b"4711"))
        stream.close()

    finished = run(tmp_path, execution(failing, code=3), iter([PIECE] * PIECES))
    assert finished == Finished(code=3, errors="psql: error: no such role")


def test_what_the_engine_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    refusing: dict[str, Answer] = {
        "": lambda request: request.reply(409, {"message": "Container postgres is not\nrunning"})
    }
    with pytest.raises(DeployError, match=r"^the Docker engine refused: Container postgres is not running; mend that"):
        run(tmp_path, refusing, None)


def test_output_that_comes_together_with_the_engines_answer_is_not_lost(tmp_path: Path) -> None:
    """A restore's first line is its transaction's number, by which is told whether anything was changed."""
    answers = execution(lambda stream: stream.close())
    first = frame(STDOUT, b"4711\n") + frame(STDERR, b"a warning")
    answers[r"POST /exec/.*/start"] = lambda request: request.upgrade(begins=first + frame(STDOUT, b"done")[:10])
    printed = bytearray()
    with docker_engine(tmp_path, answers) as (client, _):
        commands = ContainerCommands(client, "postgres")
        finished = commands.run(["psql"], environment={}, output=printed.extend)
    assert (bytes(printed), finished.errors) == (b"4711\ndo", "a warning")


@pytest.mark.parametrize("moment", [r"POST /containers/.*/exec", r"GET /exec/.*/json"])
def test_an_engine_that_goes_away_is_named_and_nothing_else_is_blamed(tmp_path: Path, moment: str) -> None:
    answers = execution(lambda stream: stream.close())
    answers[moment] = lambda request: request.connection.close()
    with pytest.raises(DeployError, match=r"^the Docker engine does not answer any more \(.+\); look whether it runs"):
        run(tmp_path, answers, None)


def test_a_command_whose_output_cannot_be_written_is_no_failure_of_the_engine(tmp_path: Path) -> None:
    def full(_: bytes) -> None:
        raise OSError(28, "No space left on device")

    with (
        docker_engine(tmp_path, execution(lambda stream: stream.sendall(frame(STDOUT, b"dump")))) as (client, _),
        pytest.raises(OSError, match="No space left on device"),
    ):
        ContainerCommands(client, "postgres").run(["pg_dump"], environment={}, output=full)
