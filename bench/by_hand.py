"""The stack as a plain script: `docker run`, SQL and one API call, each server polled until it answers.

`python by_hand.py FOLDER` with what a person would have written into the folder: parameters.json, an env file for
each container, the files of Postgres's first start, schema.sql, tenant.json, kong.yml. What it makes carries the label
of parameters.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

POLL_SECONDS = 0.1
INIT_FOLDER = "/docker-entrypoint-initdb.d"
READY_SECONDS = 180


def docker(*arguments: str) -> None:
    """Run the Docker CLI."""
    subprocess.run(["docker", *arguments], check=True, stdout=subprocess.DEVNULL)  # noqa: S603, S607


def until(answers: Callable[[], bool], what: str) -> None:
    """Poll until it answers."""
    deadline = time.monotonic() + READY_SECONDS
    while not answers():
        if time.monotonic() > deadline:
            sys.exit(f"{what} does not answer after {READY_SECONDS} s")
        time.sleep(POLL_SECONDS)


def status(url: str) -> int | None:
    """The status of a GET, None without an answer."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - http to loopback
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code
    except OSError:
        return None


def accepts(database: dict[str, Any]) -> bool:
    """Whether Postgres takes a connection over TCP, which it does once it has initialised."""
    try:
        psycopg.connect(**database).close()
    except psycopg.OperationalError:
        return False
    return True


def make(folder: Path) -> None:
    """Make everything, in the order in which it depends on one another."""
    p = json.loads((folder / "parameters.json").read_text())
    name, label = p["name"], f"--label={p['label']}"
    common = [
        *("--detach", label, "--network", name, "--restart", "unless-stopped"),
        *("--security-opt", "no-new-privileges:true", "--cap-drop", "ALL"),
    ]
    docker("network", "create", label, name)
    docker("volume", "create", label, f"{name}-data")
    docker("volume", "create", label, f"{name}-keys")
    docker(
        *("run", *common, "--name", f"{name}-postgres", "--env-file", str(folder / "postgres.env")),
        *(f"--cap-add={capability}" for capability in p["postgres_capabilities"]),
        *("--memory", f"{p['postgres_memory']}m", "--publish", f"127.0.0.1:{p['database']['port']}:5432"),
        *("--volume", f"{name}-data:/var/lib/postgresql/data", "--volume", f"{name}-keys:/etc/postgresql-custom"),
        *(
            part
            for file in sorted(folder.glob("zz-*.sql"))
            for part in ("--volume", f"{file}:{INIT_FOLDER}/{file.name}:ro")
        ),
        p["postgres_image"],
    )
    until(lambda: accepts(p["database"]), "Postgres")
    with psycopg.connect(**p["database"]) as connection:
        connection.execute((folder / "schema.sql").read_bytes())

    docker(
        *("run", "--detach", label, "--network", name, "--network-alias", p["tenant"], "--restart", "unless-stopped"),
        *("--name", f"{name}-realtime", "--env-file", str(folder / "realtime.env"), "--read-only"),
        *("--security-opt", "no-new-privileges:true", "--tmpfs", "/tmp:rw,mode=1777,size=64m"),  # noqa: S108
        *("--ulimit", f"nofile={p['realtime_nofile']}", "--memory", f"{p['realtime_memory']}m"),
        *("--publish", f"127.0.0.1:{p['realtime_port']}:4000", p["realtime_image"]),
    )
    realtime = f"http://127.0.0.1:{p['realtime_port']}"
    until(lambda: status(f"{realtime}/healthcheck") == 200, "Realtime")  # noqa: PLR2004
    tenant = urllib.request.Request(  # noqa: S310 - http to loopback
        f"{realtime}/api/tenants/{p['tenant']}",
        data=(folder / "tenant.json").read_bytes(),
        headers={"Authorization": f"Bearer {p['api_token']}", "Content-Type": "application/json"},
        method="PUT",
    )
    urllib.request.urlopen(tenant, timeout=60).close()  # noqa: S310

    docker(
        *("run", *common, "--name", f"{name}-gateway", "--env-file", str(folder / "kong.env")),
        *("--memory", f"{p['gateway_memory']}m", "--publish", f"127.0.0.1:{p['gateway_port']}:8000"),
        *("--volume", f"{folder / 'kong.yml'}:/etc/kong/kong.yml:ro", p["gateway_image"]),
    )
    until(lambda: status(f"http://127.0.0.1:{p['gateway_port']}/") is not None, "Kong")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
