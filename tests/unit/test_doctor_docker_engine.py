"""Which Docker engine the doctor asks: the one that the stack's containers are on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import SecretStr

from doctor.checks.setup import Config, Need, Setup, config_of
from settings import JwtSettings


class Engine(BaseHTTPRequestHandler):
    """As much of a Docker engine as says that it is one."""

    def do_GET(self) -> None:
        body = json.dumps({"ApiVersion": "1.44"}).encode() if self.path.endswith("/version") else b"OK"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def engine() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Engine) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"tcp://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_engine_of_the_stacks_docker_host_is_asked(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    config = config_of({"docker:host": engine}, environ={})
    with Setup(stack="dev", config=config) as setup:
        assert setup.lacks(Need.DOCKER) is None
    with Setup(stack="dev", config=config_of({}, environ={})) as setup:
        assert str(setup.lacks(Need.DOCKER)).startswith("the Docker engine does not answer")


def test_secrets_of_the_config_are_known_beside_it() -> None:
    jwt = JwtSettings(
        secret=SecretStr("the-client-key-secret-of-this-test-alone"), issued_at=1_767_225_600, lifetime_days=3650
    )
    setup = Setup(config=Config(jwt=jwt, docker_host="tcp://127.0.0.1:9"))
    assert setup.redacted("the-client-key-secret-of-this-test-alone") == "[secret]"
