"""A load test's accounts, its limits, its arguments, and what it makes of what servers do to its subscribers."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import jwt
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from doctor import load_command, load_report, outputs
from doctor.__main__ import main
from doctor.catalog import Column, Table, Type
from doctor.checks.setup import Config, Setup, of_outputs
from doctor.deliveries import Deliveries, row_key
from doctor.load import load
from doctor.load_inserts import deletion
from doctor.load_limits import (
    CannotLoadError,
    TenantLimits,
    only_loopback,
    raise_open_files,
    sized,
    within,
)
from doctor.load_result import ErrorKind, Errors, LoadResult, Sample, Usage, latency
from doctor.load_subscriber import Audience, ErrorCounts, Subscriber, heartbeats
from doctor.phoenix import socket_uri
from doctor.usage import reading_of
from settings import ApiRole, JwtAlgorithm, JwtSettings, RealtimeSettings
from tests.unit.test_probe import DOCUMENT
from tokens import new_private_key, public_keys, user_token

PROJECT = Path(__file__).parents[2]
OUTPUTS = outputs.parse(json.dumps(DOCUMENT), source="a test")
ID = Column(name="id", number=1, type=Type("int8"), sql_type="bigint", cast="bigint", not_null=True, unique=True)
WELLS = Table(schema="public", name="wells", columns=(ID,), primary_key=("id",), foreign_keys=(), checks=())
PNG = b"\x89PNG\r\n\x1a\n"


# --- what reached whom ------------------------------------------------------------------------------------------


def test_every_event_is_counted_once_for_its_subscriber() -> None:
    counted = Deliveries(clients=3, inserts=10)
    for key in range(4):
        counted.committed(counted.committing((key,), when=float(key)))
    for client, keys in enumerate(((0, 1, 2, 3), (0, 1, 1, 3), (0, 1))):
        for key in keys:
            counted.arrived(client, (key,), when=key + 0.010)
    assert counted.inserted == 4
    assert counted.delivered == 9
    assert counted.by_client([0, 1, 2]) == (4, 3, 2)
    assert counted.duplicated == 1
    assert counted.lost([0, 1, 2]) == 3
    assert counted.lost([0]) == 0
    assert counted.nowhere() == 0
    assert counted.to_some(3) == 2
    found = latency(counted.latencies)
    assert found is not None
    assert found.p50 == found.max == pytest.approx(10, rel=0.002)
    assert counted.latencies.get_total_count() == 9


def test_an_insert_that_nobody_heard_of_is_told_from_one_that_some_did() -> None:
    counted = Deliveries(clients=2, inserts=3)
    for key in range(3):
        counted.committed(counted.committing((key,), when=0.0))
    counted.arrived(0, (0,), when=0.1)
    counted.arrived(1, (0,), when=0.1)
    counted.arrived(1, (1,), when=0.1)
    assert (counted.nowhere(), counted.to_some(2), counted.lost([0, 1])) == (1, 1, 3)


def test_an_insert_whose_commit_failed_is_owed_to_nobody() -> None:
    counted = Deliveries(clients=1, inserts=2)
    counted.committing((1,), when=0.0)
    assert (counted.inserted, counted.lost([0])) == (0, 0)


def test_an_event_proves_a_commit_whose_answer_was_lost() -> None:
    counted = Deliveries(clients=2, inserts=2)
    counted.committing((1,), when=0.0)
    counted.arrived(0, (1,), when=0.1)
    assert (counted.inserted, counted.delivered, counted.lost([0, 1])) == (1, 1, 1)


def test_rows_of_others_are_no_duplicates() -> None:
    counted = Deliveries(clients=1, inserts=1)
    counted.arrived(0, (99,), when=0.1)
    assert (counted.strange, counted.duplicated, counted.delivered) == (1, 0, 0)


def test_an_event_later_than_the_histogram_holds_is_still_counted() -> None:
    counted = Deliveries(clients=1, inserts=1)
    counted.committed(counted.committing((1,), when=0.0))
    counted.arrived(0, (1,), when=1e6)
    found = latency(counted.latencies)
    assert found is not None
    assert found.max == pytest.approx(3_600_000, rel=0.002)


@pytest.mark.parametrize(
    ("cast", "written", "seen"),
    [
        ("bigint", 9007199254740993, 9007199254740993),
        ("uuid", "a1b2", "a1b2"),
        ("timestamp with time zone", "2026-01-01T12:00:00+00:00", "2026-01-01T13:00:00+01:00"),
        ("bytea", "\\x6162", "\\x" + b"\\x6162".hex()),
        ("bytea", "\\x6162", "\\x6162"),
        ("numeric", 1.5, 1.5),
        ("jsonb", {"a": [1]}, {"a": [1]}),
    ],
)
def test_a_key_is_found_again_as_realtime_shows_it(cast: str, written: Any, seen: Any) -> None:
    column = Column(name="k", number=1, type=Type("x"), sql_type=cast, cast=cast)
    assert row_key([column], {"k": written}) == row_key([column], {"k": seen, "other": 1})
    assert hash(row_key([column], {"k": written})) == hash(row_key([column], {"k": seen}))


def test_rows_are_removed_by_every_column_of_their_key() -> None:
    part = Column(name="part", number=2, type=Type("text"), sql_type="text", cast="text")
    table = Table(
        schema="public", name="a%b", columns=(ID, part), primary_key=("id", "part"), foreign_keys=(), checks=()
    )
    assert deletion(table).as_string() == (
        'DELETE FROM "public"."a%%b" AS t USING unnest(CAST(%s AS text[]), CAST(%s AS text[])) AS k ("key 0", "key 1") '
        'WHERE t."id" = CAST(k."key 0" AS bigint) AND t."part" = CAST(k."key 1" AS text)'
    )


# --- limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("clients", 0),
        ("clients", 20_001),
        ("rate", 0.01),
        ("rate", 1001),
        ("rate", float("nan")),
        ("seconds", 0),
        ("seconds", float("inf")),
    ],
)
def test_every_argument_has_bounds_that_its_error_names(argument: str, value: float) -> None:
    with pytest.raises(CannotLoadError, match=rf"^--{argument}: "):
        sized(**({"clients": 10, "rate": 1.0, "seconds": 10.0} | {argument: value}))  # type: ignore[arg-type]


def test_the_product_of_the_arguments_is_bounded_too() -> None:
    with pytest.raises(CannotLoadError, match="3600000 inserts are more than the 200000"):
        sized(clients=1, rate=1000, seconds=3600)
    with pytest.raises(CannotLoadError, match="--clients × --rate × --seconds"):
        sized(clients=20_000, rate=100, seconds=1000)
    assert sized(clients=1, rate=0.1, seconds=1).inserts == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.9.9.9", "[::1]"])
def test_this_machine_needs_no_permission(host: str) -> None:
    only_loopback(OUTPUTS, [f"ws://{host}:8000/realtime/v1"], allowed=())


@pytest.mark.parametrize("host", ["realtime.example", "10.0.0.1", "0.0.0.0", "localhost.example"])
def test_another_machine_needs_its_name_said(host: str) -> None:
    with pytest.raises(CannotLoadError, match=f"--allow-remote {re.escape(host)}"):
        only_loopback(OUTPUTS, [f"ws://{host}:8000/realtime/v1"], allowed=["another.example"])
    only_loopback(OUTPUTS, [f"ws://{host}:8000/realtime/v1"], allowed=[host])


def test_a_database_elsewhere_needs_its_name_said_too() -> None:
    elsewhere = OUTPUTS.model_copy(update={"database": OUTPUTS.database.model_copy(update={"host": "db.example"})})
    with pytest.raises(CannotLoadError, match=r"--allow-remote db\.example"):
        only_loopback(elsewhere, ["ws://127.0.0.1:8000"], allowed=())


@pytest.fixture
def low_limit() -> Iterator[tuple[int, int]]:
    """A soft limit of open files below what the clients of the test need, put back afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    yield 512, hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_soft_limit_of_open_files_is_raised_as_far_as_needed(low_limit: tuple[int, int]) -> None:
    assert raise_open_files(100) is None
    assert raise_open_files(1000) == "open files: raised the soft limit of this process from 512 to 1128"
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1128, low_limit[1])


def test_a_hard_limit_that_is_too_low_is_named(low_limit: tuple[int, int]) -> None:
    with pytest.raises(CannotLoadError, match=rf"may open {low_limit[1]} at most; raise the hard limit"):
        raise_open_files(low_limit[1])


def realtime_settings(**changes: Any) -> RealtimeSettings:
    secrets = {
        "db_enc_key": "a" * 16,
        "secret_key_base": "b" * 64,
        "api_jwt_secret": "c" * 32,
        "metrics_jwt_secret": "d" * 32,
    }
    return RealtimeSettings.model_validate(secrets | changes)


def test_more_clients_than_the_tenant_takes_are_refused_with_the_setting() -> None:
    with pytest.raises(CannotLoadError, match=r"pulumi config set realtime.max_concurrent_users 201` and `pulumi up"):
        within(TenantLimits(max_concurrent_users=200), Setup(), 201)
    within(TenantLimits(max_concurrent_users=200), Setup(), 200)
    within(TenantLimits(), Setup(), 20_000)


def test_more_clients_than_realtime_has_files_are_refused_with_the_setting() -> None:
    setup = Setup(config=Config(realtime=realtime_settings(rlimit_nofile=1024)))
    with pytest.raises(CannotLoadError, match=r"pulumi config set realtime.rlimit_nofile 1512"):
        within(TenantLimits(), setup, 1000)
    within(TenantLimits(), setup, 512)


def test_joins_are_paced_below_the_tenants_limit() -> None:
    assert TenantLimits(max_joins_per_second=300).paced_joins == 240
    assert 0 < TenantLimits(max_joins_per_second=1).paced_joins < 1
    assert TenantLimits().paced_joins == 80


# --- what servers do to subscribers -----------------------------------------------------------------------------


def opened(
    handler: Callable[[ServerConnection], Awaitable[None]],
    answer: Callable[[ServerConnection, Request], Response | None] | None = None,
    *,
    wait: bool = False,
) -> tuple[list[tuple[ErrorKind, str]], Subscriber]:
    """The errors counted for one subscriber of a real websocket server; with ``wait``, until it has ended."""

    async def visit() -> tuple[list[tuple[ErrorKind, str]], Subscriber]:
        errors = ErrorCounts(Setup().redacted)
        async with serve(handler, "127.0.0.1", 0, process_request=answer) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            deliveries = Deliveries(clients=1, inserts=10)
            deliveries.committed(deliveries.committing((17,), when=0.0))
            uri = socket_uri(f"ws://127.0.0.1:{port}/realtime/v1", "the-anon-key")
            audience = Audience(uri=uri, address=None, table=WELLS, deliveries=deliveries, errors=errors)
            subscriber = Subscriber(0, audience, None)
            assert await subscriber.open() is subscriber.was_live
            async with asyncio.timeout(10):
                while wait and not subscriber.ended.is_set():
                    await asyncio.sleep(0.01)
            await subscriber.close()
        return [(error.kind, error.message) for error in errors.result()], subscriber

    return asyncio.run(visit())


def message(event: str, payload: object, ref: str | None = None) -> str:
    return json.dumps({"topic": "realtime:x", "event": event, "payload": payload, "ref": ref})


def joining(*replies: str) -> Callable[[ServerConnection], Awaitable[None]]:
    """A server that answers the join with these messages."""

    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        for reply in replies:
            await connection.send(reply)
        await connection.wait_closed()

    return handler


LIVE = message("system", {"status": "ok", "message": "Subscribed to PostgreSQL"})
JOINED = message("phx_reply", {"status": "ok", "response": {}}, "1")


def refusing(status: HTTPStatus, body: str) -> Callable[[ServerConnection, Request], Response]:
    return lambda connection, _: connection.respond(status, body)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (HTTPStatus.FORBIDDEN, "", (ErrorKind.HANDSHAKE_REFUSED, "HTTP 403 with an empty body")),
        (
            HTTPStatus.UNAUTHORIZED,
            '{"message":"Invalid authentication credentials"}',
            (ErrorKind.HANDSHAKE_REFUSED, "HTTP 401, Invalid authentication credentials"),
        ),
        (
            HTTPStatus.TOO_MANY_REQUESTS,
            '{"error":"Too many connected users"}',
            (ErrorKind.RATE_LIMITED, "HTTP 429, Too many connected users"),
        ),
    ],
)
def test_a_refused_handshake_is_counted_by_status_and_words(
    status: HTTPStatus, body: str, error: tuple[ErrorKind, str]
) -> None:
    errors, subscriber = opened(joining(), refusing(status, body))
    assert errors == [error]
    assert not subscriber.was_live


@pytest.mark.parametrize(
    ("response", "error"),
    [
        ({"reason": "Invalid token"}, (ErrorKind.JOIN_REFUSED, "Invalid token")),
        ({"reason": "Too many connected users"}, (ErrorKind.RATE_LIMITED, "Too many connected users")),
        (
            {"reason": "ClientJoinRateLimitReached: Too many joins per second"},
            (ErrorKind.RATE_LIMITED, "ClientJoinRateLimitReached: Too many joins per second"),
        ),
    ],
)
def test_a_refused_join_is_counted_with_the_servers_reason(response: object, error: tuple[ErrorKind, str]) -> None:
    errors, subscriber = opened(joining(message("phx_reply", {"status": "error", "response": response}, "1")))
    assert errors == [error]
    assert not subscriber.was_live


def test_a_client_is_live_when_changes_flow_and_not_when_it_has_joined() -> None:
    failing = message("system", {"status": "error", "message": "Unable to subscribe to changes"})
    errors, subscriber = opened(joining(JOINED, failing, LIVE))
    assert subscriber.was_live
    assert errors == []
    errors, subscriber = opened(joining(JOINED, failing, message("phx_error", {})))
    assert not subscriber.was_live
    assert errors == [(ErrorKind.CHANNEL_CLOSED, "phx_error, Unable to subscribe to changes")]


def test_what_ends_a_live_subscriber_is_counted_once_with_its_reason() -> None:
    expired = message("system", {"status": "error", "message": "Access token has expired"})
    errors, _ = opened(joining(JOINED, LIVE, expired, message("phx_close", {})), wait=True)
    assert errors == [(ErrorKind.CHANNEL_CLOSED, "phx_close, Access token has expired")]
    limited = message("system", {"status": "error", "message": "Too many messages per second"})
    errors, _ = opened(joining(JOINED, LIVE, limited, message("phx_close", {})), wait=True)
    assert errors == [(ErrorKind.RATE_LIMITED, "Too many messages per second")]


def test_a_socket_that_closes_is_counted_with_its_code() -> None:
    async def goodbye(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(LIVE)
        await connection.close(1012, "restart")

    errors, subscriber = opened(goodbye, wait=True)
    assert subscriber.was_live
    assert errors == [(ErrorKind.SOCKET_CLOSED, "code 1012, restart")]


def test_a_subscriber_comes_back_as_often_as_it_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("doctor.load_subscriber.RECONNECT_SECONDS", (0.05,))
    visits = 0

    async def handler(connection: ServerConnection) -> None:
        nonlocal visits
        visits += 1
        await connection.recv()
        if visits == 2:
            await connection.send(message("phx_reply", {"status": "error", "response": {"reason": "no"}}, "1"))
        else:
            await connection.send(LIVE)
            await connection.send(change("INSERT", {"id": visits}))
        if visits < 4:
            await connection.close(1012)
        await connection.wait_closed()

    async def visit() -> None:
        errors, deliveries, outages = ErrorCounts(Setup().redacted), Deliveries(clients=1, inserts=4), list[float]()
        for key in range(1, 5):
            deliveries.committed(deliveries.committing((key,), when=0.0))
        async with serve(handler, "127.0.0.1", 0) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            uri = socket_uri(f"ws://127.0.0.1:{port}/realtime/v1", "the-anon-key")
            audience = Audience(uri=uri, address=None, table=WELLS, deliveries=deliveries, errors=errors)
            subscriber = Subscriber(0, audience, None)
            assert await subscriber.open()
            staying = asyncio.create_task(subscriber.stay(outages.append))
            async with asyncio.timeout(10):
                while deliveries.delivered < 3:
                    await asyncio.sleep(0.01)
            staying.cancel()
            await subscriber.close()
        assert len(outages) == 2
        assert all(outage >= 0.05 for outage in outages)
        assert deliveries.lost([0]) == 1
        assert {error.kind: error.count for error in errors.result()} == {
            ErrorKind.SOCKET_CLOSED: 2,
            ErrorKind.JOIN_REFUSED: 1,
        }

    asyncio.run(visit())


def test_hearts_beat_in_time_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("doctor.load_subscriber.HEARTBEAT_SECONDS", 0.25)

    class Counting(Subscriber):
        beats = 0

        def beat(self) -> None:
            self.beats += 1

    async def busy() -> list[int]:
        deliveries, errors = Deliveries(clients=1, inserts=1), ErrorCounts(Setup().redacted)
        audience = Audience(uri="ws://127.0.0.1:9", address=None, table=WELLS, deliveries=deliveries, errors=errors)
        subscribers = [Counting(number, audience, None) for number in range(50)]
        beating = asyncio.create_task(heartbeats(subscribers))
        for _ in range(20):
            time.sleep(0.05)  # what keeps the event loop from turning
            await asyncio.sleep(0)
        beating.cancel()
        return [subscriber.beats for subscriber in subscribers]

    assert min(asyncio.run(busy())) >= 3


def change(kind: str, record: object, errors: object = None) -> str:
    return message("postgres_changes", {"ids": [1], "data": {"type": kind, "record": record, "errors": errors}})


def test_events_are_counted_and_those_of_others_passed_over() -> None:
    ours, theirs = change("INSERT", {"id": 17}), change("INSERT", {"id": 18})
    update, delete = change("UPDATE", {"id": 17}), change("DELETE", {})
    unauthorized = change("INSERT", {}, ["Error 401: Unauthorized"])
    end = message("phx_close", {})
    errors, subscriber = opened(
        joining(LIVE, ours, ours, theirs, update, delete, unauthorized, "rubbish", end), wait=True
    )
    assert subscriber.audience.deliveries.delivered == 1
    assert subscriber.audience.deliveries.duplicated == 1
    assert subscriber.audience.deliveries.strange == 3
    assert set(errors) == {
        (ErrorKind.EVENT_WITHOUT_COLUMNS, "Error 401: Unauthorized"),
        (ErrorKind.UNREADABLE_MESSAGE, "JSONDecodeError in a message of 7 bytes"),
        (ErrorKind.CHANNEL_CLOSED, "phx_close, silence"),
    }


def test_errors_take_no_more_memory_the_more_there_are_and_show_no_token() -> None:
    errors = ErrorCounts(Setup().redacted)
    for number in range(1000):
        errors.add(ErrorKind.JOIN_REFUSED, f"reason {number} of eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoiYW5vbiJ9.c2ln")
    found = errors.result()
    assert len(found) == 21
    assert {error.message: error.count for error in found}["others"] == 980
    assert not any("eyJ" in error.message for error in found)


@pytest.mark.parametrize("algorithm", JwtAlgorithm)
def test_the_token_of_a_user_is_signed_as_the_keys_are(algorithm: JwtAlgorithm) -> None:
    key = None if algorithm is JwtAlgorithm.HS256 else new_private_key(algorithm)
    settings = JwtSettings.model_validate({"secret": "s" * 32, "algorithm": algorithm, "private_key": key})
    token = user_token(settings, subject="7f9c24e8", issued_at=1_900_000_000, expires_at=1_900_003_600)
    header = jwt.get_unverified_header(token)
    assert (header["alg"], header["typ"]) == (algorithm.value, "JWT")
    verifier: Any = "s" * 32 if key is None else jwt.PyJWKSet.from_dict(public_keys(settings)).keys[0]
    claims = jwt.decode(
        token, verifier, algorithms=[algorithm.value], options={"verify_iat": False, "verify_aud": False}
    )
    assert (claims["role"], claims["sub"], claims["exp"]) == ("authenticated", "7f9c24e8", 1_900_003_600)


# --- the result -------------------------------------------------------------------------------------------------

COMPLETE = LoadResult(
    started=datetime(2026, 1, 1, tzinfo=UTC),
    stack="dev",
    url="ws://127.0.0.1:8000/realtime/v1",
    direct=False,
    table="public.wells",
    subscriber=ApiRole.AUTHENTICATED,
    writer=ApiRole.ANON,
    clients=2,
    rate=1,
    seconds=2,
    synchronous_commit="on",
    live=2,
    live_at_end=2,
    all_live_after_s=1.0,
    inserted=2,
    insert_seconds=2.0,
    expected=4,
    delivered=4,
    delivered_by_subscriber=(2, 2),
)
REFUSED = Errors(kind=ErrorKind.JOIN_REFUSED, message="Invalid token", count=3, first_after_s=0.5)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 0),
        ({"strange": 7}, 0),
        ({"lost": 1, "delivered": 3}, 1),
        ({"duplicated": 1}, 1),
        ({"live": 1}, 1),
        ({"inserted": 0, "delivered": 0}, 1),
        ({"errors": (REFUSED,)}, 1),
    ],
)
def test_exit_0_only_when_all_was_delivered_to_all_without_an_error(changes: dict[str, Any], status: int) -> None:
    assert COMPLETE.model_copy(update=changes).exit_status == status


def test_the_result_as_json_holds_everything_and_is_read_back() -> None:
    document = json.loads(COMPLETE.model_copy(update={"errors": (REFUSED,)}).model_dump_json())
    assert document["exit_status"] == 1
    assert document["errors"] == [
        {"kind": "join refused", "message": "Invalid token", "count": 3, "first_after_s": 0.5}
    ]
    for computed in ("ok", "exit_status"):
        document.pop(computed)
    assert LoadResult.model_validate(document).count(ErrorKind.JOIN_REFUSED) == 3


def test_losses_are_in_the_report_in_plain_words() -> None:
    changes = {"delivered": 2, "lost": 2, "lost_everywhere": 1, "delivered_by_subscriber": (1, 1), "errors": (REFUSED,)}
    text = "\n".join(load_report.lines(COMPLETE.model_copy(update=changes)))
    assert "2 of 4 delivered, 2 lost, 0 duplicated" in text
    assert "1 inserts to everybody" in text
    assert "3 × join refused: Invalid token" in text


@pytest.mark.parametrize("samples", [0, 1, 30])
def test_the_plot_is_a_png_however_short_the_run(tmp_path: Path, samples: int) -> None:
    timeline = tuple(
        Sample(
            after_s=float(second),
            live=2,
            inserted=second,
            delivered=2 * second,
            p50_ms=20.0 if second % 2 else None,
            p99_ms=30.0 if second % 2 else None,
            cpu_percent={"postgres": 10.0} if second else {},
            memory_mib={"postgres": 100.0},
        )
        for second in range(samples)
    )
    load_report.plot(COMPLETE.model_copy(update={"timeline": timeline}), tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(PNG)


def test_usage_is_read_as_docker_stats_shows_it() -> None:
    answer: dict[str, Any] = {
        "read": "2026-11-23T22:33:17.589713958Z",
        "cpu_stats": {"cpu_usage": {"total_usage": 2_500_000_000}},
        "memory_stats": {"usage": 100 * 2**20, "stats": {"inactive_file": 20 * 2**20}},
    }
    found = reading_of(answer)
    assert found is not None
    assert (found.cpu_seconds, found.memory_mib) == (2.5, 80)
    assert reading_of({"read": "0001-01-01T00:00:00Z", "cpu_stats": {"cpu_usage": {}}, "memory_stats": {}}) is None


# --- the command line -------------------------------------------------------------------------------------------

ARGUMENTS = ("load", "--clients", "10", "--rate", "1", "--seconds", "1")


@pytest.fixture
def outputs_file(tmp_path: Path) -> Path:
    file = tmp_path / "outputs.json"
    file.write_text(json.dumps(DOCUMENT))
    return file


def test_outputs_that_cannot_be_read_are_exit_3(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*ARGUMENTS, "--outputs", str(tmp_path / "none.json")]) == 3
    assert "none.json" in capsys.readouterr().err


def test_a_stack_elsewhere_is_exit_3_and_nothing_is_tried(
    capsys: pytest.CaptureFixture[str], outputs_file: Path
) -> None:
    outputs_file.write_text(json.dumps(DOCUMENT | {"realtime_url": "wss://realtime.example/realtime/v1"}))
    assert main([*ARGUMENTS, "--outputs", str(outputs_file)]) == 3
    assert "--allow-remote realtime.example" in capsys.readouterr().err


def test_direct_needs_the_port_of_realtime(capsys: pytest.CaptureFixture[str], outputs_file: Path) -> None:
    assert main([*ARGUMENTS, "--outputs", str(outputs_file), "--direct"]) == 3
    assert "--direct: the port of Realtime itself is not known" in capsys.readouterr().err


def test_a_plot_in_no_folder_is_refused_before_the_run(
    capsys: pytest.CaptureFixture[str], outputs_file: Path, tmp_path: Path
) -> None:
    assert main([*ARGUMENTS, "--outputs", str(outputs_file), "--plot", str(tmp_path / "none" / "a.png")]) == 3
    assert "--plot: there is no folder" in capsys.readouterr().err


def test_a_set_up_that_is_not_a_stack_is_refused() -> None:
    with pytest.raises(CannotLoadError, match="--stack"):
        asyncio.run(load(Setup(url="http://127.0.0.1:8000"), clients=1, rate=1, seconds=1))


def test_a_table_that_no_user_may_read_is_refused_with_the_setting() -> None:
    tables = (outputs.PublishedTable.model_validate({"table": "public.wells", "read": [], "events": ["insert"]}),)
    setup = of_outputs(OUTPUTS.model_copy(update={"tables": tables}), stack=None)
    with pytest.raises(CannotLoadError, match=r"table: public.wells, read: \[anon\]"):
        asyncio.run(load(setup, clients=1, rate=1, seconds=1))


def test_a_database_that_is_down_is_exit_3(
    capsys: pytest.CaptureFixture[str], outputs_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("doctor.load.DATABASE_SECONDS", 1.0)
    outputs_file.write_text(json.dumps(DOCUMENT | {"database": DOCUMENT["database"] | {"port": 9}}))
    assert main([*ARGUMENTS, "--outputs", str(outputs_file)]) == 3
    assert "database postgres at 127.0.0.1:9" in capsys.readouterr().err


def test_every_argument_and_every_field_of_the_json_is_documented() -> None:
    page = (PROJECT / "docs" / "doctor.md").read_text()
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    load_command.add_arguments(subparsers)
    options = set(re.findall(r"--[a-z-]+", subparsers.choices["load"].format_help()))
    fields = {*LoadResult.model_fields, *Errors.model_fields, *Usage.model_fields, *Sample.model_fields, "ok"}
    for word in (options | fields | {str(kind) for kind in ErrorKind}) - {"--help"}:
        assert f"`{word}`" in page or f" {word} " in page, f"docs/doctor.md says nothing of {word}"
