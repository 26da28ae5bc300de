"""A load test of a real stack: exact counts, what it cost, and errors by kind when something is refused."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker
import jwt
import psycopg
import pytest
from pydantic import SecretStr

from doctor import outputs
from doctor.checks.setup import Setup, config_of, of_outputs
from doctor.load import load
from doctor.load_limits import CannotLoadError
from doctor.load_result import ErrorKind, LoadResult
from tests.stack.conftest import Deployment, new_deployment, removed, unique_stack
from tests.stack.faults import until

PNG = b"\x89PNG\r\n\x1a\n"
Database = psycopg.Connection[tuple[Any, ...]]
PARTS = ("postgres", "realtime", "gateway")


@pytest.fixture
def database(live: Deployment) -> Iterator[Database]:
    with live.database() as connection:
        yield connection


def rows(database: Database) -> int:
    """How many rows the table has."""
    row = database.execute("SELECT count(*) FROM public.wells").fetchone()
    assert row is not None
    return int(row[0])


def setup_of(deployment: Deployment, **changes: Any) -> Setup:
    """The stack as the doctor sees it; ``changes`` are to its outputs."""
    values = json.loads(deployment.pulumi("config", "--json", "--show-secrets").stdout)
    config = config_of({key: entry.get("value") for key, entry in values.items()}, environ=deployment.environ)
    found = outputs.parse(json.dumps(deployment.outputs() | changes), source=deployment.stack)
    return of_outputs(found, stack=deployment.stack, config=config)


def ran(setup: Setup, *, clients: int, rate: float = 5, seconds: float = 1) -> LoadResult:
    """The result of the library function."""
    with setup:
        return asyncio.run(load(setup, clients=clients, rate=rate, seconds=seconds))


def loaded(deployment: Deployment, *options: str, clients: int, rate: float, seconds: float) -> LoadResult:
    """What `python -m doctor load` printed as JSON, its exit status checked against it."""
    size = ("--clients", str(clients), "--rate", str(rate), "--seconds", str(seconds))
    done = deployment.run(
        *(sys.executable, "-m", "doctor", "load", "--stack", deployment.stack, *size, "--json", *options), check=False
    )
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    assert done.returncode == document.pop("exit_status"), done.stdout
    document.pop("ok")
    return LoadResult.model_validate(document)


def test_a_hundred_users_receive_every_insert_once_and_the_rows_are_gone(
    live: Deployment, database: Database, tmp_path: Path
) -> None:
    before, plot = rows(database), tmp_path / "run.png"
    result = loaded(live, "--plot", str(plot), clients=100, rate=10, seconds=5)
    assert result.ok, result.model_dump_json(indent=2, exclude={"timeline"})
    assert (result.live, result.inserted) == (100, 50)
    assert (result.delivered, result.expected, result.lost, result.duplicated) == (5000, 5000, 0, 0)
    assert result.delivered_by_subscriber == (50,) * 100
    assert result.subscriber == "authenticated"
    assert result.latency_ms is not None
    assert 0 < result.latency_ms.min <= result.latency_ms.p50 <= result.latency_ms.p99 <= result.latency_ms.max
    used = {usage.name: usage for usage in result.usage}
    for name in (*map(live.container_name, PARTS), "this process"):
        assert used[name].memory_mib_max > 1
        assert used[name].cpu_percent_max > 0
    assert plot.read_bytes().startswith(PNG)
    assert rows(database) == before


def test_without_the_gateway_and_with_the_anon_key_alone_when_no_secret_can_be_had(
    live: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGOPTIONS", live.environ["PGOPTIONS"])
    direct = loaded(live, "--direct", clients=5, rate=5, seconds=1)
    assert direct.ok, direct.model_dump_json(indent=2)
    anonymous = ran(setup_of(live).model_copy(update={"config": None}), clients=5)
    assert anonymous.ok, anonymous.model_dump_json(indent=2)
    assert anonymous.subscriber == "anon"
    assert any("anon key" in note for note in anonymous.notes)


def test_an_expired_key_and_a_wrong_secret_are_errors_of_their_kind(live: Deployment, database: Database) -> None:
    before, setup = rows(database), setup_of(live)
    assert setup.config is not None
    assert setup.config.jwt is not None
    secret = setup.config.jwt.secret.get_secret_value()
    claims = {"role": "anon", "exp": int(datetime(2025, 1, 1, tzinfo=UTC).timestamp())}
    expired = jwt.encode(claims, secret, algorithm="HS256")
    refused = ran(setup_of(live, anon_key=expired), clients=20)
    assert refused.exit_status == 1
    assert refused.live == refused.inserted == 0
    assert [error.kind for error in refused.errors] == [ErrorKind.HANDSHAKE_REFUSED]
    assert "HTTP 40" in refused.errors[0].message

    forged = setup.config.jwt.model_copy(update={"secret": SecretStr("x" * 32)})
    config = setup.config.model_copy(update={"jwt": forged})
    result = ran(setup.model_copy(update={"config": config}), clients=20)
    assert result.exit_status == 1
    assert [error.kind for error in result.errors] == [ErrorKind.JOIN_REFUSED]
    assert rows(database) == before


def test_what_would_fail_for_reasons_of_limits_is_refused_before_it_starts(live: Deployment) -> None:
    setup = setup_of(live)
    with pytest.raises(CannotLoadError, match=r"realtime\.max_concurrent_users"):
        ran(setup, clients=201)
    remote = setup_of(live, realtime_url="ws://realtime.example/realtime/v1")
    with pytest.raises(CannotLoadError, match=r"--allow-remote realtime\.example"):
        ran(remote, clients=1)


def test_users_cut_off_by_a_restart_of_the_gateway_come_back_and_what_they_missed_is_lost(
    live: Deployment, database: Database
) -> None:
    before = rows(database)
    gateway = docker.from_env().containers.get(live.container_name("gateway"))
    with ThreadPoolExecutor() as pool:
        running = pool.submit(loaded, live, "--reconnect", clients=20, rate=5, seconds=20)
        until(lambda: running.done() or rows(database) >= before + 20, "twenty inserts", seconds=60)
        assert not running.done(), running.result()
        gateway.restart(timeout=1)
        result = running.result()
    assert result.exit_status == 1
    assert result.live == result.live_at_end == 20
    assert result.reconnects >= 20
    assert result.outage_s_max is not None
    assert 1 <= result.outage_s_max < 20
    assert result.count(ErrorKind.SOCKET_CLOSED) == 20
    assert result.inserted == 100
    assert 0 < result.lost < result.expected
    assert result.delivered == result.expected - result.lost
    assert any("gateway was started again" in note for note in result.notes)


def test_an_interrupted_run_removes_its_rows_too(live: Deployment, database: Database) -> None:
    before = rows(database)
    command = (sys.executable, "-m", "doctor", "load", "--stack", live.stack)
    running = subprocess.Popen(
        [*command, "--clients", "10", "--rate", "20", "--seconds", "60"],
        cwd=live.folder,
        env=live.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: running.poll() is not None or rows(database) >= before + 20, "twenty inserts", seconds=60)
        assert running.poll() is None, running.communicate()[1]
        running.terminate()
        _, told = running.communicate(timeout=60)
    finally:
        if running.poll() is None:
            running.kill()
            running.wait()
    assert running.returncode == 130, told
    assert "interrupted" in told
    assert rows(database) == before


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A stack that lets a thousand users in."""
    settings = {"realtime.max_concurrent_users": 1000, "realtime.max_joins_per_second": 200}
    deployment = new_deployment(tmp_path_factory.mktemp("load"), stack=unique_stack("load"), settings=settings)
    try:
        deployment.up()
        yield deployment
    finally:
        removed(deployment)


@pytest.mark.skipif(
    os.environ.get("STACK_TESTS") != "all", reason="a thousand users take two minutes more: set STACK_TESTS=all"
)
def test_a_thousand_users_of_one_process_receive_every_insert(wide: Deployment) -> None:
    result = loaded(wide, clients=1000, rate=2, seconds=15)
    assert result.ok, result.model_dump_json(indent=2, exclude={"timeline"})
    assert result.delivered == 30_000
    with wide.database() as connection:
        assert rows(connection) == 0
