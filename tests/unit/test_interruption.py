"""What writes rows and is interrupted: Ctrl-C and SIGTERM, however often, let it clean up."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from doctor import interruption
from tests.unit.test_probe import DOCUMENT

PROJECT = Path(__file__).parents[2]
SIGNALS = [signal.SIGINT, signal.SIGTERM]
LOAD = ("load", "--clients", "1", "--rate", "1", "--seconds", "1")
CHECK = """
import sys
from doctor import outputs
from doctor.checks import change
from doctor.checks.setup import of_outputs
change.arrives(of_outputs(outputs.read_file(sys.argv[2]), stack=None))
"""
"""The check of ``python -m doctor --probe`` that writes."""
CLEANING_UP = """
import asyncio, sys
from doctor import interruption
from doctor.removal import in_any_case

async def clean_up():
    print("cleans up", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print("cleaned up", flush=True)

async def work():
    try:
        print("works", flush=True)
        await asyncio.sleep(60)
    finally:
        await in_any_case(clean_up())

try:
    interruption.run(work())
except KeyboardInterrupt:
    sys.exit(interruption.INTERRUPTED)
"""


def started(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_does_not_end_what_the_first_began_to_clean_up(number: signal.Signals) -> None:
    with started("-c", CLEANING_UP) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "works\n"
        process.send_signal(number)
        assert process.stdout.readline() == "cleans up\n"
        for again in (number, *SIGNALS):
            process.send_signal(again)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        output, errors = process.communicate("go on\n", timeout=20)
    assert (output, process.returncode) == ("cleaned up\n", 130), errors


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", [("-m", "doctor", "probe"), ("-m", "doctor", *LOAD), ("-c", CHECK)])
def test_whatever_writes_rows_is_interrupted_alike(
    command: Sequence[str], number: signal.Signals, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as database:
        database.settimeout(20)
        port = database.getsockname()[1]
        (tmp_path / "outputs.json").write_text(
            json.dumps(DOCUMENT | {"database": DOCUMENT["database"] | {"port": port}})
        )
        with started(*command, "--outputs", str(tmp_path / "outputs.json")) as process, database.accept()[0]:
            process.send_signal(number)  # while it waits for an answer of the database
            _, errors = process.communicate(timeout=20)
    if "-c" in command:
        assert errors.endswith("KeyboardInterrupt\n"), errors  # for the command line to catch
    else:
        assert (process.returncode, errors.splitlines()[-1]) == (130, "interrupted")


def test_what_runs_in_another_thread_is_not_in_reach_of_signals() -> None:
    results = []

    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    thread = threading.Thread(target=lambda: results.append(interruption.run(work())))
    thread.start()
    thread.join()
    assert results == [7]


def test_a_cancellation_that_no_signal_asked_for_stays_one() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        interruption.run(work())
