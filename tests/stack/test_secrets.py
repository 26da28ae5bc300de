"""No secret leaks: not into the state, a label, a log, or what the commands print."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import docker
import httpx
import pytest

from deploy.generated import generate
from settings import secret_keys
from tests.stack.conftest import Deployment
from tests.stack.healing import assert_heals
from tests.stack.secret_search import leaked, leaked_by_logs, secret_values

PARTS = ("postgres", "realtime", "gateway")


@pytest.fixture(scope="module")
def secrets(live: Deployment) -> dict[str, str]:
    return secret_values(live)


@pytest.mark.parametrize("written", ["plain", "json", "url", "base64", "base64 of JSON", "base64 of a pickle"])
def test_this_search_finds_a_secret_however_it_is_written(written: str) -> None:
    secret = 'a"secret/of+this test'
    texts = {
        "plain": f"PASSWORD={secret}\n".encode(),
        "json": json.dumps({"password": secret}).encode(),
        "url": f"GET /?apikey={quote(secret, safe='')} HTTP/1.1".encode(),
        "base64": b"x " + base64.b64encode(f"ab{secret}cd".encode()),
        "base64 of JSON": base64.b64encode(json.dumps({"p": secret}).encode()),
        "base64 of a pickle": b'"' + base64.b64encode(b"\x80\x04\x95password" * 3 + secret.encode() + b"." * 50) + b'"',
    }
    assert leaked(texts[written], {"it": secret, "another": "another/secret+of this test"}) == ["it"]


def test_the_state_holds_no_secret(live: Deployment, secrets: dict[str, str]) -> None:
    exported = live.pulumi("stack", "export").stdout.encode()
    assert b"ciphertext" in exported
    assert leaked(exported, secrets) == []


def test_no_file_of_the_project_holds_a_secret(live: Deployment, secrets: dict[str, str]) -> None:
    """The state's files, its history and backups among them, and the settings."""
    files = [p for p in live.folder.rglob("*") if p.is_file() and ".venv" not in p.parts]
    assert any("history" in path.parts for path in files)
    found = {str(path.relative_to(live.folder)): leaked(path.read_bytes(), secrets) for path in files}
    assert {name: names for name, names in found.items() if names} == {}


def test_no_label_holds_a_secret(live: Deployment, secrets: dict[str, str]) -> None:
    engine = docker.from_env()
    labelled = [
        *(engine.containers.get(live.container_name(part)).labels for part in PARTS),
        *(network.attrs["Labels"] for network in engine.networks.list(names=[live.name])),
        *(volume.attrs["Labels"] for volume in engine.volumes.list(filters={"name": live.name})),
    ]
    assert len(labelled) == len(PARTS) + 3
    assert leaked(json.dumps(labelled).encode(), secrets) == []


def test_no_command_line_holds_a_secret(live: Deployment, secrets: dict[str, str]) -> None:
    """Which every user of the host sees in its list of processes: of the containers and of their health checks."""
    engine = docker.from_env()
    for part in PARTS:
        container = engine.containers.get(live.container_name(part))
        config = container.attrs["Config"]
        seen = json.dumps([container.top(ps_args="-eo pid,args"), config["Cmd"], config.get("Healthcheck")])
        assert leaked(seen.encode(), secrets) == [], part


def test_no_container_logs_a_secret_even_when_clients_send_them(live: Deployment, secrets: dict[str, str]) -> None:
    outputs = live.outputs()
    key, metrics = outputs["service_role_key"], secrets["token of the metrics"]
    for path in ("websocket", "api/broadcast", "api/tenants", "nowhere"):
        httpx.get(f"{outputs['url']}/realtime/v1/{path}", params={"apikey": key, "vsn": "1.0.0"})
        httpx.get(f"{outputs['url']}/realtime/v1/{path}", headers={"apikey": key, "Authorization": f"Bearer {key}"})
    httpx.get(f"{outputs['url']}/realtime/v1/websocket?apikey={key}&vsn=9.9.9", headers={"Upgrade": "websocket"})
    port = live.pulumi("config", "get", "realtime.host_port").stdout.strip()
    httpx.get(f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {metrics}"})
    live.probe("--count", "1")
    engine = docker.from_env()
    assert b"/realtime/v1/websocket" in engine.containers.get(live.container_name("gateway")).logs()
    assert leaked_by_logs(live) == {}


def test_the_gateway_logs_no_key_of_a_client_that_calls_while_realtime_is_down(live: Deployment) -> None:
    """nginx writes the whole request, query and all, beside an upstream's failure."""
    outputs = live.outputs()
    realtime = docker.from_env().containers.get(live.container_name("realtime"))
    realtime.stop()
    try:
        refused = httpx.get(
            f"{outputs['url']}/realtime/v1/websocket", params={"apikey": outputs["service_role_key"]}, timeout=60
        )
    finally:
        realtime.start()
    assert refused.status_code >= 500
    assert_heals(live)
    assert leaked_by_logs(live) == {}


@pytest.mark.parametrize(
    "command",
    [
        ("deploy", "up"),
        ("deploy", "drift"),
        ("deploy", "preview"),
        ("deploy", "report", "drift"),
        ("deploy", "report", "preview"),
        ("pulumi", "preview", "--diff", "--show-full-output", "--refresh", "--run-program"),
        ("pulumi", "stack", "output", "--json"),
        ("pulumi", "stack", "--show-urns"),
        ("pulumi", "config", "--json"),
    ],
    ids=" ".join,
)
def test_no_command_prints_a_secret(command: tuple[str, ...], live: Deployment, secrets: dict[str, str]) -> None:
    program, *arguments = command
    printed = live.deploy(*arguments) if program == "deploy" else live.pulumi(*arguments)
    assert leaked((printed.stdout + printed.stderr).encode(), secrets) == []


def test_an_update_that_changes_every_secret_prints_none(live: Deployment, secrets: dict[str, str]) -> None:
    """A preview, so that the stack stays as it is: the diff of every secret, old and new."""
    original = (live.folder / f"Pulumi.{live.stack}.yaml").read_text()
    try:
        for key in secret_keys():
            live.pulumi("config", "set", "--secret", key, generate(key))
        new = {f"new {name}": value for name, value in secret_values(live).items()}
        printed = live.pulumi("preview", "--diff", "--show-full-output")
    finally:
        (live.folder / f"Pulumi.{live.stack}.yaml").write_text(original)
    assert "[secret]" in printed.stdout
    assert leaked((printed.stdout + printed.stderr).encode(), secrets | new) == []
