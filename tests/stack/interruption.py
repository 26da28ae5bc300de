"""`make up` interrupted in the middle, at a moment that its own output tells."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from tests.stack.conftest import Deployment

UP_SECONDS = 300
CONDITION_SECONDS = 120
PLUGIN_SECONDS = 10


@dataclass(frozen=True)
class Moment:
    """A moment in the life of an update: the engine has printed ``line``, and then ``condition`` holds."""

    name: str
    line: str
    condition: Callable[[Deployment], bool] = lambda _: True

    def __str__(self) -> str:
        return self.name


@contextmanager
def at(deployment: Deployment, moment: Moment, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """`deploy up`, or the command given, leader of a process group of its own, at the moment.

    Fails when it ends without reaching it.
    """
    log = deployment.folder / "up.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "deploy", *(command or ("up",)), "--stack", deployment.stack],
            cwd=deployment.folder,
            env=deployment.environ,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as update,
    ):

        def reached() -> bool:
            reached = moment.line in log.read_text() and moment.condition(deployment)
            assert update.poll() is None, f"the update ended before {moment}:\n{log.read_text()}"
            return reached

        try:
            await_condition(reached, moment.name, seconds=UP_SECONDS)
            yield update
        finally:
            if update.poll() is None:
                os.killpg(update.pid, signal.SIGKILL)


@contextmanager
def killed(deployment: Deployment, moment: Moment, *command: str, plugins_too: bool = False) -> Iterator[None]:
    """`deploy up`, or the command given, has been killed at the moment.

    SIGKILL goes to its process group, as when a terminal is closed by force.

    The engine's plugins have process groups of their own and outlive it, as they do for a user; ``plugins_too``
    kills them as well, as a power cut does. The block's end ends those that are left.
    """
    with at(deployment, moment, *command) as update:
        plugins = psutil.Process(update.pid).children(recursive=True)
        os.killpg(update.pid, signal.SIGKILL)
        if plugins_too:
            end(plugins)
    try:
        yield
    finally:
        end(plugins)


def end(processes: list[psutil.Process]) -> None:
    """SIGKILL to those that still run, and wait until they are gone."""
    for process in processes:
        if process.is_running():
            process.kill()
    psutil.wait_procs(processes, timeout=PLUGIN_SECONDS)


def await_condition(holds: Callable[[], bool], what: str, *, seconds: float = CONDITION_SECONDS) -> None:
    """Return as soon as the condition holds; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
