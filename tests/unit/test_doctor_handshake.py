"""The upgrade to a websocket, against listeners that behave as servers in trouble do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from doctor.checks import handshake as module
from doctor.checks.handshake import Answer, handshake


@contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """The URL of a port of loopback that takes one connection and does that with it."""

    def take() -> None:
        with suppress(OSError):
            taken, _ = server.accept()
            with taken:
                serve(taken)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=take)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def closes_at_once(taken: socket.socket) -> None:
    """As the port of a container does whose server is not there yet."""
    taken.shutdown(socket.SHUT_RDWR)


def closes_after_the_request(taken: socket.socket) -> None:
    taken.recv(1 << 16)


def never_answers(taken: socket.socket) -> None:
    while taken.recv(1 << 16):
        pass


def speaks_another_language(taken: socket.socket) -> None:
    taken.recv(1 << 16)
    taken.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


def refuses(taken: socket.socket) -> None:
    taken.recv(1 << 16)
    body = b'{"message":"No API key found in request"}'
    head = f"HTTP/1.1 401 Unauthorized\r\nX-Kong-Response-Latency: 1\r\nContent-Length: {len(body)}\r\n\r\n"
    taken.sendall(head.encode() + body)


@pytest.mark.parametrize("attempt", range(20))
def test_a_server_that_closes_before_or_while_it_is_asked_is_no_answer(attempt: int) -> None:
    """Whether the close or the request is first is chance: a few attempts see both."""
    with listener(closes_at_once) as url:
        assert handshake(url, key=str(attempt)).status is None


@pytest.mark.parametrize("serve", [closes_after_the_request, never_answers, speaks_another_language])
def test_a_server_that_does_not_answer_is_no_answer_with_its_reason(
    serve: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.5)
    with listener(serve) as url:
        answer = handshake(url, key="key")
    assert answer.status is None
    assert not answer.accepted
    assert answer.words


def test_a_port_that_nobody_listens_on_is_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert handshake(f"http://127.0.0.1:{port}/", key=None).status is None


def test_a_refusal_says_who_refuses() -> None:
    with listener(refuses) as url:
        answer = handshake(url, key="key")
    message = "No API key found in request"
    assert answer == Answer(401, f"401, {message}", message, from_gateway=True)
