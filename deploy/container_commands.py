"""Commands inside a running container, with streams of any size: what ``docker exec -i`` does."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import Protocol

import docker
from docker.utils.socket import STDOUT

from deploy.docker_failures import AGAIN, DOCKER_ERRORS, docker_failure
from deploy.errors import DeployError

EXIT_SECONDS = 10
"""How long the engine may take to tell the exit code of a command whose output has ended."""
POLL_SECONDS = 0.05
ERROR_BYTES = 64 * 1024
"""What is kept of a command's standard error, from its beginning: the first error is the cause of the others."""
PIECE = 256 * 1024
FRAME = struct.Struct(">BxxxL")
"""What stands before a piece of output: its stream's number and its size (moby v20.10, pkg/stdcopy/stdcopy.go)."""
ENDED = (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError)
"""How a connection of the engine ends while there is still something to send."""


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    errors: str


class Commands(Protocol):
    """Where commands run."""

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        stdin: Iterable[bytes] | None = None,
        output: Callable[[bytes], object] | None = None,
    ) -> Finished:
        """Run a command to its end; its standard output goes to ``output`` as it comes.

        A command that reads standard input must know how much: it may not see an end of it.
        """
        ...


@dataclass(frozen=True)
class ContainerCommands:
    """Commands in one container."""

    client: docker.DockerClient
    container: str

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        stdin: Iterable[bytes] | None = None,
        output: Callable[[bytes], object] | None = None,
    ) -> Finished:
        """Run a command; see Commands.

        Raises DeployError when the engine refuses it or is lost in the middle, and what ``stdin`` and ``output``
        raise: the command is left to itself then, without the rest of its input.
        """
        try:
            return self._run(command, environment, stdin, output)
        except DOCKER_ERRORS as failed:
            raise docker_failure(failed) from None

    def _run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        stdin: Iterable[bytes] | None,
        output: Callable[[bytes], object] | None,
    ) -> Finished:
        api = self.client.api
        created = api.exec_create(
            self.container, list(command), stdin=stdin is not None, environment=dict(environment)
        )["Id"]
        connection = api.exec_start(created, socket=True)
        # Over a socket file the SDK gives a file object, whose end does not end the socket.
        raw = getattr(connection, "_sock", connection)
        # What came together with the engine's answer is in the buffer of the answer's reader and nowhere else.
        reader = connection._response.raw._fp.fp
        # The SDK leaves its timeout for answers in force, here one for a whole chunk; a command takes its input when it
        # can, and a restore may build an index for hours in between.
        raw.settimeout(None)
        sender = _Sender(raw, () if stdin is None else stdin)
        errors = bytearray()
        try:
            sender.start()
            for stream, data in _frames(reader):
                if stream == STDOUT:
                    if output is not None:
                        output(data)
                elif len(errors) < ERROR_BYTES:
                    errors += data
        finally:
            _shut_down(raw)
            sender.join()
            connection.close()
            raw.close()
        if sender.failed is not None:
            raise sender.failed
        return Finished(code=self._exit_code(created), errors=errors.decode(errors="replace"))

    def _exit_code(self, identity: str) -> int:
        deadline = time.monotonic() + EXIT_SECONDS
        while time.monotonic() < deadline:
            code = self.client.api.exec_inspect(identity)["ExitCode"]
            if code is not None:
                return int(code)
            time.sleep(POLL_SECONDS)
        raise DeployError(
            f"the Docker engine ended the stream of a command in container {self.container} that still runs; "
            "look whether the engine and the container are well, then run it again"
        )


class _Sender(threading.Thread):
    """Sends standard input; a command that has ended, having read enough or failed, takes no more of it."""

    def __init__(self, raw: socket.socket, chunks: Iterable[bytes]) -> None:
        super().__init__(daemon=True)
        self.raw = raw
        self.chunks = chunks
        self.failed: Exception | None = None
        """Why the command did not get all of it."""

    def run(self) -> None:
        """The thread's work. A command waits for input that it is not sent, so a failure ends the connection."""
        try:
            for chunk in self.chunks:
                self.raw.sendall(chunk)
        except ENDED:
            return
        except Exception as failed:  # noqa: BLE001 - raised again by who waits for the thread
            self.failed = failed
            _shut_down(self.raw)


def _shut_down(raw: socket.socket) -> None:
    """End a connection both ways, which, unlike closing it, wakes a thread that waits for it."""
    with contextlib.suppress(OSError):  # ended by the engine already
        raw.shutdown(socket.SHUT_RDWR)


def _frames(reader: BufferedReader) -> Iterator[tuple[int, bytes]]:
    """What a command writes, by stream. Raises DeployError when that cannot be read."""
    try:
        while len(header := reader.read(FRAME.size)) == FRAME.size:
            stream, left = FRAME.unpack(header)
            while left and (data := reader.read1(min(left, PIECE))):
                left -= len(data)
                yield stream, data
    except ConnectionResetError:
        # So ends a connection in which the engine has left input unread. Why is for the exit code to say.
        return
    except OSError as lost:
        raise DeployError(f"the connection to the Docker engine broke ({lost}); {AGAIN}") from None
