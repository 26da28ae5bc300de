"""What the doctor makes of a gateway's refusals, and of the file in its container."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from docker.errors import NotFound
from pydantic import SecretStr

from doctor.checks import gateway, keys
from doctor.checks.finding import Finding, Status
from doctor.checks.setup import Setup
from doctor.examination import examine
from tests.program.recorder import ANON_KEY

SECRET = "the-service-role-key-in-the-file"
SERVICE: dict[str, Any] = {
    "name": "realtime-websocket",
    "url": "http://supabase-realtime:4000/socket/",
    "read_timeout": 86_400_000,
    "routes": [{"paths": ["/realtime/v1/"], "strip_path": True}],
}


@contextmanager
def refusing_everything() -> Iterator[str]:
    """The URL of a server that answers 403 without a word, as Realtime does."""

    class Refuser(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuser) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_the_host_is_blamed_only_where_realtime_itself_took_the_key() -> None:
    with refusing_everything() as url:
        setup = Setup(url=url, realtime_url=url, anon_key=SecretStr(ANON_KEY))
        examination = examine(setup, checks=[keys.websocket, gateway.websocket])
    assert examination.finding("keys.websocket").status is Status.SKIPPED
    assert examination.root == "realtime-refuses-websocket"


def gateway_with(answer: Any) -> Setup:
    """A stack whose gateway's container hands this archive out, or raises it."""

    def get_archive(path: str) -> tuple[list[bytes], dict[str, Any]]:
        if isinstance(answer, Exception):
            raise answer
        return [answer], {"name": path}

    running = SimpleNamespace(get_archive=get_archive, attrs={"Config": {"Env": []}})
    setup = Setup(stack="dev")
    setup.__dict__.update(docker_reason=None, parts={"gateway": running})
    return setup


def archive(text: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo("kong.yml")
        entry.size = len(text.encode())
        tar.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


def idle_timeout(text: str) -> Finding:
    examination = examine(gateway_with(archive(text)), checks=[gateway.idle_timeout])
    assert examination.unlooked == (), examination
    return examination.finding("gateway.idle_timeout")


def with_service(**changes: Any) -> str:
    return yaml.safe_dump({"_format_version": "1.1", "services": [SERVICE | changes]})


@pytest.mark.parametrize(
    ("text", "status", "cause"),
    [
        (with_service(), Status.OK, None),
        (with_service(read_timeout=None), Status.WARNING, "idle-timeout-short"),
        (with_service(read_timeout=30_000), Status.WARNING, "idle-timeout-short"),
        (with_service(read_timeout="a day"), Status.WARNING, "gateway-config-invalid"),
        ("_format_version: '1.1'\n", Status.SKIPPED, None),
        ("services: 1\n", Status.SKIPPED, None),
        ("", Status.WARNING, "gateway-config-invalid"),
        ("- realtime\n", Status.WARNING, "gateway-config-invalid"),
    ],
)
def test_the_file_says_when_idle_websockets_are_closed(text: str, status: Status, cause: str | None) -> None:
    finding = idle_timeout(text)
    assert (finding.status, finding.cause) == (status, cause), finding


@pytest.mark.parametrize("broken", ["{SECRET}: '", "\t{SECRET}", "*{SECRET}", "key: {SECRET}: more"])
def test_a_file_that_is_no_yaml_is_told_of_with_its_line_and_nothing_of_its_text(broken: str) -> None:
    finding = idle_timeout("_format_version: '1.1'\nconsumers:\n- keyauth:\n" + broken.replace("{SECRET}", SECRET))
    assert (finding.status, finding.cause) == (Status.WARNING, "gateway-config-invalid"), finding
    assert "no YAML in line" in finding.seen
    assert SECRET[:8] not in finding.model_dump_json()


@pytest.mark.parametrize(
    "answer",
    [NotFound("none"), b"", b"no archive", archive("")[:100]],
    ids=["no file", "nothing", "no archive", "half an archive"],
)
def test_a_file_that_cannot_be_had_is_no_fault_of_the_gateway(answer: Any) -> None:
    examination = examine(gateway_with(answer), checks=[gateway.idle_timeout])
    finding = examination.finding("gateway.idle_timeout")
    assert (finding.status, finding.seen) == (Status.SKIPPED, "the gateway's declarative file cannot be read")
    assert examination.unlooked == ()
