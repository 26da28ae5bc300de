"""Commands inside a running container, with streams of any size: what ``docker exec -i`` does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import docker
from docker.utils.socket import STDOUT, frames_iter

from deploy.errors import DeployError

EXIT_SECONDS = 10
"""How long the engine may take to tell the exit code of a command whose output has ended."""
POLL_SECONDS = 0.05
ERROR_BYTES = 64 * 1024
"""What is kept of a command's standard error, from its beginning: the first error is the cause of the others."""


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
        """Run a command; see Commands. Raises DeployError when the engine is lost in the middle."""
        api = self.client.api
        created = api.exec_create(
            self.container, list(command), stdin=stdin is not None, environment=dict(environment)
        )["Id"]
        connection = api.exec_start(created, socket=True)
        # Over a socket file the SDK gives a file object, whose end does not end the socket.
        raw = getattr(connection, "_sock", connection)
        sender = None
        errors = bytearray()
        try:
            if stdin is not None:
                sender = threading.Thread(target=_send, args=(raw, stdin), daemon=True)
                sender.start()
            for stream, data in frames_iter(connection, tty=False):
                if stream == STDOUT:
                    if output is not None:
                        output(data)
                elif len(errors) < ERROR_BYTES:
                    errors += data
        finally:
            connection.close()
            raw.close()
        if sender is not None:
            sender.join()
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


def _send(raw: Any, chunks: Iterable[bytes]) -> None:
    """Send standard input; a command that has ended, having read enough or failed, takes no more of it."""
    for chunk in chunks:
        try:
            raw.sendall(chunk)
        except OSError:
            return
