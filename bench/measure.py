"""Wall-clock time and memory of a command."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.1
"""Between two looks at the memory: often enough for commands of seconds, seldom enough not to slow them."""
LAST_LINES = 30


class BenchError(Exception):
    """What could not be measured, and why."""


@dataclass(frozen=True)
class Measured:
    """What a command took. ``peak_mib`` is the most resident memory that it and its descendants had at once, MiB, a
    page that two of them share counted twice; 0 when it was not watched."""

    seconds: float
    peak_mib: float = 0.0


def measure(
    command: Sequence[str], *, cwd: Path, environ: Mapping[str, str], stdin: str = "", memory: bool = False
) -> Measured:
    """Run a command to its end. Raises BenchError, with the end of what it printed, when it fails."""
    started = time.perf_counter()
    with subprocess.Popen(  # noqa: S603 - own arguments, no shell
        command,
        cwd=cwd,
        env=dict(environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        watch = _Watch(process.pid) if memory else None
        printed, _ = process.communicate(stdin)
    seconds = time.perf_counter() - started
    peak = watch.end() if watch else 0.0
    if process.returncode != 0:
        end = "\n".join(printed.splitlines()[-LAST_LINES:])
        raise BenchError(f"{' '.join(command)} exited {process.returncode}:\n{end}")
    return Measured(seconds=seconds, peak_mib=peak)


class _Watch:
    """Looks at the memory of a process and its descendants until it is told to end."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def end(self) -> float:
        """The peak, MiB."""
        self._over.set()
        self._thread.join()
        return self._peak / 2**20

    def _look(self) -> None:
        while not self._over.is_set():
            self._peak = max(self._peak, self._resident())
            self._over.wait(SAMPLE_SECONDS)

    def _resident(self) -> int:
        total = 0
        try:
            processes = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0
        for process in processes:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total
