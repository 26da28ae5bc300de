"""The console's API without a database: what it refuses and in which words, its tokens, its streams and its end."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from doctor.__main__ import main
from doctor.checks.finding import Check, Finding, ok
from doctor.checks.setup import Config, Setup, of_outputs
from doctor.console import checks as console_checks
from doctor.console import serve
from doctor.console.hops import HOPS, Hop
from doctor.console.identity import SUBJECT
from doctor.examination import CHECKS, findings
from settings import JwtSettings
from tests.console import Served, events, served
from tests.database.test_probe_row import SIGNED_WITH, outputs_of

PROJECT = Path(__file__).parents[2]
DOWN = "host=127.0.0.1 port=9 dbname=postgres user=nobody password=not-for-the-page"
OUTPUTS = outputs_of(DOWN, ("public.wells", "anon", "anon"))
SIGNS = Config(jwt=JwtSettings.model_validate({"secret": SIGNED_WITH}))


@pytest.fixture(scope="module")
def console() -> Iterator[Served]:
    """A console whose database is down, and that has the secret which signs tokens."""
    with served(of_outputs(OUTPUTS, stack=None, config=SIGNS), lifetime=120) as running:
        yield running


@pytest.fixture(scope="module")
def without_secret() -> Iterator[Served]:
    """A console that was given the outputs alone."""
    with served(of_outputs(OUTPUTS, stack=None, reason="only the outputs were handed over")) as running:
        yield running


# --- errors -----------------------------------------------------------------------------------------------------

ROWS = "/api/rows?table=public.wells&role=anon"


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("/api/nothing", 404, "Not Found"),
        ("/api/rows", 404, "None is not a table of the stack (public.wells)"),
        ("/api/rows?table=public.other&role=anon", 404, "'public.other' is not a table of the stack (public.wells)"),
        ("/api/rows?table=public.wells", 400, "None is not a role of the console"),
        ("/api/rows?table=public.wells&role=service_role", 400, "'service_role' is not a role of the console"),
        ("/api/token?role=postgres", 400, "'postgres' is not a role of the console"),
        (f"{ROWS}&limit=0", 400, "limit: 0 is not a number of rows"),
        (f"{ROWS}&limit=1001", 400, "limit: 1001 is not a number of rows"),
        (f"{ROWS}&limit=ten", 400, "limit: ten is not a number of rows"),
    ],
)
def test_what_is_not_to_be_had_is_one_line_of_json(console: Served, path: str, status: int, error: str) -> None:
    answer = console.get(path)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert set(answer.json()) == {"error", "cure"}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{", "the body is not JSON"),
        (b"[1]", "the body has list"),
        (b'{"rows": 1}', "the body has rows"),
        (b'{"table": "public.wells", "role": "anon", "values": [1]}', "values: is not an object"),
    ],
)
def test_a_body_that_is_no_request_is_refused(console: Served, body: bytes, error: str) -> None:
    answer = console.client.post("/api/rows", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]) == (400, error)


def test_a_body_of_megabytes_is_refused(console: Served) -> None:
    answer = console.send("POST", table="public.wells", role="anon", values={"name": "x" * (2 << 20)})
    assert answer.status_code == 413


def test_a_method_that_a_path_does_not_have_is_405(console: Served) -> None:
    assert console.client.put("/api/rows", json={}).status_code == 405


def test_a_database_that_is_down_is_503_with_the_cure_and_the_rest_goes_on(console: Served) -> None:
    asked = [console.get("/api/stack"), console.get(ROWS), console.send("POST", table="public.wells", role="anon")]
    for answer in asked:
        assert answer.status_code == 503
        assert answer.json()["error"].startswith("database postgres at 127.0.0.1:9 as nobody: ")
        assert "Postgres is stopped, starting, or not published on this port" in answer.json()["cure"]
        assert "not-for-the-page" not in answer.text
    assert console.get("/api/token", role="anon").status_code == 200


def test_a_row_that_the_console_did_not_make_is_not_its_to_change(console: Served) -> None:
    for method in ("PATCH", "DELETE"):
        answer = console.send(method, table="public.wells", role="anon", key={"id": 1})
        assert (answer.status_code, answer.json()["error"]) == (403, "not a test row of this console")


# --- tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_a_token_of_the_page_ends_soon_and_is_signed_as_the_stacks_keys_are(console: Served, role: str) -> None:
    told = console.get("/api/token", role=role).json()
    claims = jwt.decode(told["token"], SIGNED_WITH, algorithms=["HS256"], options={"verify_aud": False})
    assert (told["role"], claims["role"]) == (role, role)
    assert claims.get("sub") == (SUBJECT if role == "authenticated" else None)
    expires = datetime.fromisoformat(told["expires"])
    assert expires.timestamp() == claims["exp"]
    assert timedelta(seconds=110) < expires - datetime.now(UTC) <= timedelta(seconds=120)


def test_without_the_secret_anon_has_its_key_and_others_are_told_why(without_secret: Served) -> None:
    told = without_secret.get("/api/token", role="anon").json()
    assert told == {"token": OUTPUTS.anon_key, "role": "anon", "expires": "2100-01-01T00:00:00.000Z"}
    refused = without_secret.get("/api/token", role="authenticated")
    assert refused.status_code == 409
    assert "only the outputs were handed over" in refused.json()["error"]
    assert "--stack" in refused.json()["cure"]


def test_an_anon_key_that_has_ended_is_not_handed_out() -> None:
    ended = OUTPUTS.model_copy(update={"anon_key_expires": datetime(2020, 1, 1, tzinfo=UTC)})
    with served(of_outputs(ended, stack=None)) as running:
        answer = running.get("/api/token", role="anon")
    assert (answer.status_code, answer.json()["error"]) == (409, "the anon key ended on 2020-01-01")


# --- streams ----------------------------------------------------------------------------------------------------


def test_every_check_looks_at_one_hop_and_every_hop_is_looked_at() -> None:
    assert list(HOPS) == [one.id for one in CHECKS]
    assert set(HOPS.values()) == set(Hop)


def test_an_examination_comes_finding_by_finding_with_its_root_at_the_end(console: Served) -> None:
    with console.client.stream("GET", "/api/checks") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = list(events(answer))
    assert [name for name, _ in told] == ["finding"] * len(CHECKS) + ["done"]
    assert [finding["check"] for _, finding in told[:-1]] == [one.id for one in CHECKS]
    reachable = next(finding for _, finding in told if finding.get("check") == "postgres.reachable")
    assert (reachable["status"], reachable["hop"]) == ("failed", "table")
    assert reachable["title"] == "Postgres takes connections and the login"
    assert reachable["cure"]
    assert told[-1][1].keys() == {"root", "exit_status", "seconds"}
    assert told[-1][1]["root"] == reachable["cause"]


class Held:
    """Checks of which the second does not end before it is let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = threading.Event()

    def first(self, _: Setup) -> Finding:
        self.begun += 1
        return ok("there")

    def second(self, _: Setup) -> Finding:
        assert self.go.wait(20)
        return ok("let go")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held()
    checks = [
        Check(id, "t", (), (), look) for id, look in (("containers.network", held.first), ("realtime.log", held.second))
    ]
    monkeypatch.setattr(console_checks, "findings", lambda setup: findings(setup, checks=checks))
    yield held
    held.go.set()


def test_a_finding_is_told_before_the_next_check_has_ended(console: Served, held: Held) -> None:
    with console.client.stream("GET", "/api/checks") as answer:
        told = events(answer)
        assert next(told)[1]["seen"] == "there"
        held.go.set()
        assert [name for name, _ in told] == ["finding", "done"]


def test_one_examination_at_a_time_and_the_next_begins_when_nobody_reads_the_first(console: Served, held: Held) -> None:
    with (
        httpx.Client(base_url=console.client.base_url, cookies=console.client.cookies, trust_env=False) as another,
        console.client.stream("GET", "/api/checks") as first,
    ):
        assert next(events(first))[0] == "finding"
        with another.stream("GET", "/api/checks") as second:
            lines = second.iter_lines()
            assert next(lines).startswith(":")
            assert held.begun == 1, "the second waits"
            first.close()
            held.go.set()
            told = [line for line in lines if line.startswith("event: ")]
    assert told == ["event: finding", "event: finding", "event: done"]
    assert held.begun == 2


def test_that_the_database_is_down_stops_the_flow_and_is_said_again_and_again(console: Served) -> None:
    with console.client.stream("GET", "/api/flow") as answer:
        told = events(answer)
        began = time.monotonic()
        name, state = next(told)
        assert time.monotonic() - began < 2
        assert (name, state["flowing"]) == ("flow", False)
        assert state["reason"].startswith("database postgres at 127.0.0.1:9")
        assert next(told)[1] == state, "the heartbeat"
        assert time.monotonic() - began < 3


# --- the command ------------------------------------------------------------------------------------------------


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser.add_subparsers(dest="command"))
    return parser.parse_args(["console", *words])


def test_by_default_it_shows_stack_dev_at_port_4747_with_tokens_of_an_hour() -> None:
    given = parsed()
    assert (given.port, given.token_lifetime, given.no_open) == (4747, 3600, False)


@pytest.mark.parametrize(
    "words",
    [
        ("--port", "65536"),
        ("--port", "-1"),
        ("--port", "http"),
        ("--token-lifetime", "29"),
        ("--token-lifetime", "86401"),
        ("--stack", "dev", "--outputs", "outputs.json"),
    ],
)
def test_arguments_that_cannot_work_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        parsed(*words)


@pytest.fixture
def outputs_file(tmp_path: Path) -> Path:
    """The outputs of a stack whose database is down."""
    document: dict[str, Any] = OUTPUTS.model_dump(mode="json")
    document |= {
        "service_role_key": OUTPUTS.service_role_key.get_secret_value(),
        "database_password": "not-for-the-page",
    }
    file = tmp_path / "outputs.json"
    file.write_text(json.dumps(document))
    return file


def test_a_port_that_is_taken_is_one_line_and_exit_3(outputs_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["console", "--outputs", str(outputs_file), "--port", str(port), "--no-open"]) == 3
    assert capsys.readouterr().err == (
        f"--port: 127.0.0.1:{port} cannot be had (Address already in use); choose another\n"
    )


def test_outputs_that_cannot_be_read_are_one_line_and_exit_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["console", "--outputs", str(tmp_path / "none.json"), "--port", "0"]) == 3
    assert "none.json cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_promptly_while_pages_are_open_and_its_output_has_the_token_once(
    number: signal.Signals, outputs_file: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "doctor", "console", "--outputs", str(outputs_file), "--port", "0"],
        cwd=PROJECT,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        words, _, url = process.stdout.readline().strip().partition(": ")
        assert words == "console of stack outputs.json"
        with httpx.Client(base_url=url.partition("?")[0], trust_env=False) as client:
            assert client.get(url).status_code == 303
            with client.stream("GET", "/api/flow") as flow:
                told = events(flow)
                assert next(told)[0] == "flow"
                began = time.monotonic()
                process.send_signal(number)
                assert list(told) == [], "the stream ends"
                assert process.wait(timeout=20) == 0
                assert time.monotonic() - began < 3
        printed = process.stdout.read() + (process.stderr.read() if process.stderr else "")
    assert url.partition("token=")[2] not in printed
    assert printed in ("", "the page is not built: `make web` builds it\n")
