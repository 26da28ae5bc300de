"""The engine: the Pulumi CLI, run in the project, for one stack."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from deploy.errors import DeployError
from deploy.events import read_events


@dataclass(frozen=True)
class Engine:
    """The Pulumi CLI with the environment that makes it use the chosen backend."""

    command: str
    project: Path
    stack: str
    environ: Mapping[str, str]

    def run(self, *arguments: str) -> int:
        """Run a command on the terminal; its exit code."""
        return run_attached([self.command, *arguments, "--stack", self.stack], cwd=self.project, environ=self.environ)

    def observe(self, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
        """Run a command with its words on stderr; its exit code, and what it did, event by event.

        The engine's log of events is written for its developers, PULUMI_DEBUG_COMMANDS and all, and shows more than
        anybody should keep: it lasts as long as the command, in a folder of this user alone.
        """
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "events"
            log.touch()
            code = run_attached(
                [self.command, *arguments, "--stack", self.stack, "--event-log", str(log)],
                cwd=self.project,
                environ={**self.environ, "PULUMI_DEBUG_COMMANDS": "true"},
                stdout=sys.stderr,
            )
            return code, read_events(log.read_text())

    def ask(self, *arguments: str, stdin: str | None = None) -> str:
        """What a command prints. Raises DeployError with the engine's own words when it fails."""
        answer = subprocess.run(  # noqa: S603 - the CLI that was found or installed, without a shell
            [self.command, *arguments, "--stack", self.stack, "--non-interactive", "--color", "never"],
            cwd=self.project,
            env=dict(self.environ),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode != 0:
            words = " ".join(answer.stderr.split()).removeprefix("error: ") or f"exit code {answer.returncode}"
            raise DeployError(f"`pulumi {' '.join(arguments)}` on stack {self.stack}: {words}")
        return answer.stdout

    def select(self, *, create: bool) -> None:
        """Make the stack the project's current one, and make it when there is none and ``create``."""
        name = ["--create"] if create else []
        try:
            self.ask("stack", "select", *name)
        except DeployError as refused:
            if create or "no stack named" not in str(refused):
                raise
            missing = f"there is no stack {self.stack} yet; make it with `make up STACK={self.stack}`"
            raise DeployError(missing) from None

    def config(self) -> dict[str, Any]:
        """Every config value of the stack by its full key, defaults included, secrets decrypted."""
        entries = json.loads(self.ask("config", "--json", "--show-secrets"))
        return {key: entry.get("value") for key, entry in entries.items()}

    def outputs(self) -> dict[str, Any]:
        """The stack's outputs, secrets masked."""
        outputs: dict[str, Any] = json.loads(self.ask("stack", "output", "--json"))
        return outputs

    def export(self) -> dict[str, Any]:
        """The stack's state, as ``pulumi stack import`` takes it, secrets encrypted."""
        state: dict[str, Any] = json.loads(self.ask("stack", "export"))
        return state

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Put a changed state back."""
        self.ask("stack", "import", stdin=json.dumps(state))


def run_attached(arguments: list[str], *, cwd: Path, environ: Mapping[str, str], stdout: TextIO | None = None) -> int:
    """Run a command on this terminal and wait for its end, whatever signal arrives meanwhile; its exit code.

    Ctrl-C reaches the command from the terminal, which then ends in good order; SIGTERM is passed on, since
    only this process gets it. Killed by a signal: 128 and the signal's number, as a shell says it.
    """
    with subprocess.Popen(arguments, cwd=cwd, env=dict(environ), stdout=stdout) as process:  # noqa: S603 - no shell, own arguments
        previous = {
            signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
            signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
        }
        try:
            code = process.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    return 128 - code if code < 0 else code
