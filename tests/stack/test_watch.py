"""The watch on a real stack: everything it watches restarts, one after another, and it says which."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import docker
from PIL import Image

from tests.stack.conftest import Deployment
from tests.stack.interruption import await_condition

SETTLED = timedelta(seconds=6)
RESTARTED = [("gateway", "gateway"), ("realtime", "realtime"), ("postgres", "database")]


def records(log: Path) -> list[dict[str, Any]]:
    """Every record so far; a line that is still being written is not one."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def states(log: Path, state: str) -> list[dict[str, Any]]:
    return [record for record in records(log) if record["type"] == "state" and record["state"] == state]


def settled(log: Path, ups: int) -> bool:
    """It came up so many times, and events have come for a while since."""
    found = states(log, "up")
    if len(found) < ups:
        return False
    since = datetime.fromisoformat(found[-1]["at"]) + SETTLED
    return any(
        record["type"] == "round"
        and record["outcome"] == "received"
        and datetime.fromisoformat(record["began"]) > since
        for record in records(log)[-20:]
    )


def wells(deployment: Deployment) -> int:
    with deployment.database() as connection:
        row = connection.execute("SELECT count(*) FROM public.wells").fetchone()
    assert row is not None
    return int(row[0])


def watched_through_restarts(live: Deployment, log: Path, picture: Path) -> tuple[int, str]:
    """A watch while every part is restarted, ended by SIGTERM: its exit status and output."""
    command = [sys.executable, "-m", "doctor", "watch", "--stack", live.stack, "--every", "0.5", "--patience", "6"]
    watching = subprocess.Popen(
        [*command, "--log", str(log), "--plot", str(picture)],
        cwd=live.folder, env=live.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        await_condition(lambda: bool(states(log, "up")), "the first event comes", seconds=60)
        for ups, (container, _) in enumerate(RESTARTED, start=2):
            docker.from_env().containers.get(live.container_name(container)).restart()
            await_condition(
                lambda ups=ups: settled(log, ups),  # type: ignore[misc]
                f"events come again after a restart of {container}",
                seconds=90,
            )
        watching.send_signal(signal.SIGTERM)
        output, _ = watching.communicate(timeout=60)
    finally:
        watching.kill()
        watching.wait()
    return watching.returncode, output


def test_every_restart_is_one_outage_of_the_part_that_was_down(live: Deployment, tmp_path: Path) -> None:
    log, picture = tmp_path / "watch.jsonl", tmp_path / "watch.png"
    before = wells(live)
    status, output = watched_through_restarts(live, log, picture)
    summary = records(log)[-1]
    assert summary["type"] == "summary"
    assert [outage["part"] for outage in summary["outages"]] == [part for _, part in RESTARTED], output
    assert all(outage["ended"] is not None and outage["seconds"] > 0 for outage in summary["outages"])

    assert summary["state"] == "up"
    assert (summary["lost"], summary["duplicated"], summary["different"], summary["awaited"]) == (0, 0, 0, 0), output
    assert summary["unexplained"] == []
    assert status == 0

    rounds = [record for record in records(log) if record["type"] == "round"]
    outcomes = Counter(record["outcome"] for record in rounds)
    assert outcomes["received"] == summary["received"] > 30
    assert outcomes["missed"] == summary["missed"] > 0
    assert outcomes["not written"] == summary["not_written"] > 0
    assert sorted(record["number"] for record in rounds) == list(range(1, summary["rounds"] + 1))

    assert wells(live) == before, "its rows are still there"
    outputs = live.outputs()
    for secret in ("database_password", "service_role_key", "anon_key"):
        assert outputs[secret] not in log.read_text() + output

    with Image.open(picture) as image:
        assert image.format == "PNG"
        colours = image.convert("RGB").getcolors(maxcolors=2**20)
    assert colours is not None and len(colours) > 50, "an empty picture"
