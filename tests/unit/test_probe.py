"""The probe's pure parts, and what it makes of the answers that a gateway and Realtime give."""

from __future__ import annotations

import asyncio
import io
import json
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from doctor import outputs
from doctor.__main__ import arguments, report
from doctor.catalog import Column, Kind, Type
from doctor.failures import Cause, Failure, ProbeFailedError, refused
from doctor.outputs import Outputs, OutputsError, PublishedTable
from doctor.plan import plans
from doctor.probe import ProbeResult, percentile
from doctor.removal import in_any_case
from doctor.rendering import differences
from doctor.sample_values import candidates, constants, numeric_precision
from doctor.subscription import Change, Target, subscribed
from settings import ApiRole, Event
from tests.unit.realtime_server import TOPIC_EVENT, insert_event, live, server, system

SECRETS = ("the-password-of-the-database", "the-service-role-key")
DOCUMENT: dict[str, Any] = {
    "url": "http://127.0.0.1:8000",
    "realtime_url": "ws://127.0.0.1:8000/realtime/v1",
    "rest_url": "http://127.0.0.1:8000/realtime/v1/api",
    "tenant": "supabase-realtime",
    "anon_key": "the-anon-key",
    "anon_key_expires": "2035-12-30T00:00:00+00:00",
    "service_role_key": SECRETS[1],
    "database": {"host": "127.0.0.1", "port": 54322, "name": "postgres", "user": "supabase_admin"},
    "database_password": SECRETS[0],
    "tables": [{"table": "public.wells", "read": ["anon"], "write": ["anon"], "events": ["insert", "update"]}],
}


# --- the stack's outputs ----------------------------------------------------------------------------------------


def test_the_outputs_of_a_stack_are_read_and_their_secrets_stay_out_of_sight() -> None:
    read = outputs.parse(json.dumps(DOCUMENT), source="stack dev")
    assert read.database.port == 54322
    assert read.tables[0].read == (ApiRole.ANON,)
    assert read.tables[0].events == (Event.INSERT, Event.UPDATE)
    assert not any(secret in repr(read) for secret in (*SECRETS, "the-anon-key"))


@pytest.mark.parametrize("ending", ["", "/", "/websocket"])
def test_a_client_library_is_given_the_websocket_url_without_its_last_part(ending: str) -> None:
    document = DOCUMENT | {"realtime_url": "ws://127.0.0.1:8000/realtime/v1" + ending}
    read = outputs.parse(json.dumps(document), source="x")
    assert read.socket_url == "ws://127.0.0.1:8000/realtime/v1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "stack dev has no outputs yet; run `make up` first"),
        ("", "stack dev has no outputs yet; run `make up` first"),
        ("{", "stack dev is not JSON (line 1)"),
        ("[]", "stack dev is not a JSON object"),
        (json.dumps(DOCUMENT | {"database_password": "[secret]"}), "stack dev has its secrets masked"),
        (json.dumps({k: v for k, v in DOCUMENT.items() if k != "tenant"}), "tenant: field required"),
        (json.dumps(DOCUMENT | {"database": {"host": "x", "port": 0, "name": "x", "user": "x"}}), "database.port"),
    ],
)
def test_outputs_that_cannot_be_used_are_named_in_one_line(text: str, message: str) -> None:
    with pytest.raises(OutputsError) as refusal:
        outputs.parse(text, source="stack dev")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not any(secret in str(refusal.value) for secret in SECRETS)


def test_outputs_come_from_a_file_or_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outputs.json").write_text(json.dumps(DOCUMENT))
    assert outputs.read_file(str(tmp_path / "outputs.json")).tenant == "supabase-realtime"
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(DOCUMENT)))
    assert outputs.read_file("-").tenant == "supabase-realtime"
    with pytest.raises(OutputsError, match="cannot be read: No such file"):
        outputs.read_file(str(tmp_path / "missing"))


def cli(folder: Path, script: str) -> dict[str, str]:
    """An environment whose PATH has one program, a pulumi that runs the script."""
    program = folder / "bin" / "pulumi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"PATH": str(program.parent), "HOME": str(folder)}


def test_a_stack_is_asked_for_its_outputs_in_the_environment_that_make_up_used(tmp_path: Path) -> None:
    (tmp_path / "outputs.json").write_text(json.dumps(DOCUMENT))
    environ = cli(
        tmp_path,
        f'[ "$*" = "stack output --json --show-secrets --non-interactive --stack dev" ] || exit 9\n'
        f'[ "$PULUMI_BACKEND_URL" = "{(tmp_path / ".pulumi" / "state").as_uri()}" ] || exit 8\n'
        '[ -n "$PULUMI_CONFIG_PASSPHRASE" ] || exit 7\n'
        f'while read -r line; do echo "$line"; done < "{tmp_path}/outputs.json"; echo "$line"',
    )
    assert outputs.read_stack("dev", project=tmp_path, environ=environ).tenant == "supabase-realtime"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo \"error: no stack named 'dev' found\" >&2; exit 6", "there is no stack dev; run `make up`"),
        ("echo 'error: incorrect passphrase' >&2; exit 255", "set PULUMI_CONFIG_PASSPHRASE to the stack's passphrase"),
        ("echo 'error: something else' >&2; exit 255", "the Pulumi CLI failed: error: something else"),
        ("echo '{}'", "stack dev has no outputs yet"),
    ],
)
def test_a_stack_that_has_no_outputs_to_give_is_named_with_the_cure(tmp_path: Path, script: str, message: str) -> None:
    with pytest.raises(OutputsError, match=message):
        outputs.read_stack("dev", project=tmp_path, environ=cli(tmp_path, script))


def test_a_machine_without_the_pulumi_cli_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(OutputsError, match=r"neither in .pulumi/cli nor on PATH; run `make up`"):
        outputs.read_stack("dev", project=tmp_path, environ={"PATH": str(tmp_path), "HOME": str(tmp_path)})


# --- which table ------------------------------------------------------------------------------------------------


def table(name: str, read: str = "", write: str = "", events: str = "insert") -> PublishedTable:
    return PublishedTable.model_validate(
        {"table": name, "read": read.split(), "write": write.split(), "events": events.split()}
    )


def test_a_table_that_anon_reads_and_writes_is_probed_before_others() -> None:
    found = plans(
        [
            table("public.staff", "authenticated", "authenticated"),
            table("public.news", "anon authenticated", "authenticated"),
            table("public.wells", "anon", "anon"),
        ]
    )
    assert [(plan.table.name, plan.subscriber, plan.writer) for plan in found] == [
        ("wells", ApiRole.ANON, ApiRole.ANON),
        ("news", ApiRole.ANON, ApiRole.SERVICE_ROLE),
        ("staff", ApiRole.SERVICE_ROLE, ApiRole.SERVICE_ROLE),
    ]


def test_a_probe_that_leaves_policies_out_says_so() -> None:
    complete, reading, neither = plans([table("a.a", "anon", "anon"), table("a.b", "anon"), table("a.c")])
    assert complete.note is None
    assert reading.note is not None and "no policy lets anon insert" in reading.note
    assert neither.note is not None and "no policy lets anon read" in neither.note


def test_a_table_whose_inserts_are_not_published_is_no_use_to_the_probe() -> None:
    assert plans([table("public.wells", "anon", "anon", events="update delete"), table("public.x", events="")]) == []


# --- sample values ----------------------------------------------------------------------------------------------


def values(name: str, modifier: int = -1, *, unique: bool = False, kind: Kind = Kind.BASE, **more: Any) -> list[str]:
    return candidates(Type(name=name, kind=kind, modifier=modifier, **more), unique=unique, rng=random.Random(1))


@pytest.mark.parametrize("length", [1, 3, 10, 80])
@pytest.mark.parametrize("unique", [True, False])
def test_a_text_is_never_longer_than_its_column(length: int, unique: bool) -> None:
    assert max(map(len, values("varchar", length + 4, unique=unique))) <= length


def test_a_number_has_no_more_digits_than_its_column() -> None:
    # numeric(5,2): ((5 << 16) | 2) + 4
    modifier = ((5 << 16) | 2) + 4
    assert numeric_precision(modifier) == (5, 2)
    assert "1000" not in values("numeric", modifier) and "100" in values("numeric", modifier)
    for seed in range(50):
        unique = candidates(Type("numeric", modifier=modifier), unique=True, rng=random.Random(seed))[0]
        assert abs(float(unique)) < 1000 and len(unique.partition(".")[2]) <= 2


@pytest.mark.parametrize("name", ["int2", "int4", "int8", "text", "uuid", "bytea", "timestamptz", "inet", "numeric"])
def test_a_unique_column_gets_another_value_every_time(name: str) -> None:
    rng = random.Random(1)
    made = {candidates(Type(name), unique=True, rng=rng)[0] for _ in range(20)}
    assert len(made) == 20


def test_arrays_and_ranges_are_made_of_values_of_their_elements() -> None:
    assert values("_text", kind=Kind.ARRAY, inner=Type("text"))[0] == '{"probe"}'
    assert values("int4range", kind=Kind.RANGE, inner=Type("int4"))[0] == '["1","1"]'
    assert "empty" in values("tstzrange", kind=Kind.RANGE, inner=Type("timestamptz"))
    assert values("pair", kind=Kind.COMPOSITE, attributes=3) == ["(,,)"]


def test_a_type_without_known_values_offers_none() -> None:
    assert values("regclass") == []


def test_the_constants_of_a_constraint_are_candidates() -> None:
    found = constants("(status = ANY (ARRAY['open'::text, 'it''s'::text])) AND (depth > 12) AND (kind = '{a,\"b\"}')")
    assert {"open", "it's", "a", "b", "12", "13", "11"} <= set(found)


# --- the event against the row ----------------------------------------------------------------------------------


def column(name: str, cast: str = "text", *, generated: bool = False) -> Column:
    return Column(name=name, number=1, type=Type(cast), sql_type=cast, cast=cast, generated=generated)


@pytest.mark.parametrize(
    ("cast", "written", "seen"),
    [
        ("text", "probe", "probe"),
        ("bigint", 9007199254740993, 9007199254740993),
        ("numeric", 12345678901234567890.125, 1.2345678901234567e19),
        ("jsonb", {"a": [1, None, True]}, {"a": [1.0, None, True]}),
        ("timestamp with time zone", "2026-01-01T12:00:00+00:00", "2026-01-01T14:00:00+02:00"),
        ("bytea", "\\xdead", "\\xdead"),
        ("bytea", "\\xdead", "\\x64656164"),  # v2.32.12: the text cast to bytea once more
        ("text", None, None),
    ],
)
def test_an_event_that_shows_the_row_is_recognised(cast: str, written: object, seen: object) -> None:
    assert differences({"c": written}, {"c": seen}, [column("c", cast)]) == []


@pytest.mark.parametrize(
    ("cast", "written", "seen"),
    [
        ("text", "probe", "prob"),
        ("text", None, ""),
        ("bigint", 9007199254740993, 9007199254740994),
        ("boolean", True, 1),
        ("jsonb", {"a": 1}, {"a": 1, "b": 2}),
        ("timestamp with time zone", "2026-01-01T12:00:00+00:00", "2026-01-01T12:00:00+02:00"),
        ("integer[]", [1, 2], [1]),
        ("bytea", "\\xdead", "\\xbeef"),
    ],
)
def test_an_event_with_another_value_is_told_from_the_row(cast: str, written: object, seen: object) -> None:
    assert differences({"c": written}, {"c": seen}, [column("c", cast)]) == ["column c has another value"]


def test_columns_that_are_missing_or_should_not_be_seen_are_named() -> None:
    columns = [column("id"), column("area", generated=True)]
    assert differences({"id": "1", "area": "2"}, {"salary": 1}, columns) == [
        "column id is missing",
        "column salary is there, which the role may not select",
    ]


# --- what a refusal means ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "likely"),
    [
        (401, '{"message":"Invalid authentication credentials"}', "key-auth does not know the key"),
        (401, '{"message":"No API key found in request"}', "key-auth does not know the key"),
        (403, '{"message":"You cannot consume this service"}', "acl keeps the key's consumer out"),
        (403, "", "no tenant of the name that reaches it"),
        (404, '{"message":"no Route matched with those values"}', "no route for /realtime/v1/"),
        (404, "Not Found", "a path that Realtime does not serve"),
        (404, '{"error":"Tenant not found"}', "no tenant of the name that reaches it"),
        (401, '{"error":"Failed to validate JWT signature"}', "jwt_secret is not the one the key is signed with"),
        (429, '{"error":"Too many connected users"}', "raise realtime.max_concurrent_users"),
    ],
)
def test_a_refused_websocket_is_explained(status: int, body: str, likely: str) -> None:
    failure = refused(status, body)
    assert failure.cause is Cause.REFUSED
    assert likely in failure.likely
    assert str(status) in failure.seen


def test_an_expired_key_is_the_likeliest_reason_for_any_refusal() -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    assert "the key expired on" in refused(403, "", key_expires=yesterday).likely
    assert "expired" not in refused(403, "", key_expires=yesterday + timedelta(days=2)).likely


# --- the subscription, against servers that answer as Kong and Realtime v2.32.12 were seen to ------------------


def target(url: str) -> Target:
    return Target(url=url, key="the-anon-key", schema="public", table="wells")


def failure_of(after_join: TOPIC_EVENT, *refusals: tuple[int, bytes], timeout: float = 1.5) -> Failure:
    """How a subscription to such a server fails."""

    async def attempt() -> Failure:
        async with server(after_join, *refusals) as url:
            with pytest.raises(ProbeFailedError) as failed:
                async with subscribed(target(url), timeout=timeout):
                    pass
            return failed.value.failure

    return asyncio.run(attempt())


@pytest.mark.parametrize(("status", "body"), [(401, b'{"message":"Invalid authentication credentials"}'), (403, b"")])
def test_a_refused_key_is_reported_at_once_and_not_tried_again(status: int, body: bytes) -> None:
    started = time.monotonic()
    failure = failure_of(live, (status, body), timeout=20)  # a second attempt would be let in
    assert failure.cause is Cause.REFUSED
    assert time.monotonic() - started < 10


def test_a_gateway_that_waits_for_realtime_is_tried_until_realtime_is_back() -> None:
    async def attempt() -> bool:
        async with server(live, (502, b""), (503, b"")) as url, subscribed(target(url), timeout=20) as subscription:
            return subscription.live.done()

    assert asyncio.run(attempt())


def test_a_gateway_that_keeps_waiting_for_realtime_is_reported_with_its_last_answer() -> None:
    failure = failure_of(live, *[(502, b'{"message":"An invalid response was received"}')] * 20)
    assert failure.cause is Cause.REALTIME_UNAVAILABLE
    assert "HTTP 502, An invalid response" in failure.seen


def test_a_gateway_that_is_not_there_is_reported_as_such() -> None:
    async def attempt() -> Failure:
        async with server(live) as url:
            pass  # closed again, so that nobody listens there
        with pytest.raises(ProbeFailedError) as failed:
            async with subscribed(target(url), timeout=1):
                pass
        return failed.value.failure

    assert asyncio.run(attempt()).cause is Cause.GATEWAY_UNREACHABLE


async def silent(_: ServerConnection, __: str) -> None:
    """A join that is answered, and nothing after it."""


def test_a_join_that_succeeds_is_not_yet_a_subscription() -> None:
    failure = failure_of(silent)
    assert failure.cause is Cause.NOT_SUBSCRIBED
    assert failure.seen == "silence"


def test_a_subscription_that_realtime_refuses_is_reported_in_its_words_with_the_cure() -> None:
    async def unpublished(socket: ServerConnection, topic: str) -> None:
        await system(socket, topic, "error", "Unable to subscribe to changes with given parameters. Please check …")

    failure = failure_of(unpublished)
    assert failure.cause is Cause.NOT_SUBSCRIBED
    assert failure.seen.startswith("Unable to subscribe to changes")
    assert "not in the publication" in failure.likely


def test_a_subscription_that_is_refused_while_realtime_starts_succeeds_later() -> None:
    joins = 0

    async def later(socket: ServerConnection, topic: str) -> None:
        nonlocal joins
        joins += 1
        await (live(socket, topic) if joins > 2 else system(socket, topic, "error", "not yet"))

    async def attempt() -> None:
        async with server(later) as url, subscribed(target(url), timeout=20):
            pass

    asyncio.run(attempt())
    assert joins == 3


def test_a_key_that_realtime_refuses_at_the_join_is_not_tried_again() -> None:
    joins = 0

    async def expired(socket: ServerConnection, topic: str) -> None:
        nonlocal joins
        joins += 1
        await system(socket, topic, "error", "Access token has expired: …")

    assert "does not accept the key" in failure_of(expired, timeout=20).likely
    assert joins == 1


def received(event: Callable[[ServerConnection, str], Awaitable[None]]) -> Change:
    """What a subscriber is handed of what the server sends once changes flow."""

    async def then(socket: ServerConnection, topic: str) -> None:
        await live(socket, topic)
        await asked.wait()
        await event(socket, topic)

    async def attempt() -> Change:
        async with server(then) as url, subscribed(target(url), timeout=10) as subscription:
            change = subscription.expect(lambda change: change.record.get("id") != 1)
            asked.set()
            return await asyncio.wait_for(change, 10)

    asked = asyncio.Event()
    return asyncio.run(attempt())


def test_the_event_that_is_expected_is_told_from_others() -> None:
    async def two(socket: ServerConnection, topic: str) -> None:
        await insert_event(socket, topic, record={"id": 1})
        await insert_event(socket, topic, record={"id": 2})

    assert received(two).record == {"id": 2}


def test_an_event_without_columns_is_heard_though_the_client_library_drops_it() -> None:
    async def unauthorized(socket: ServerConnection, topic: str) -> None:
        errors = ["Error 401: Unauthorized"]
        await insert_event(socket, topic, record={}, columns=[], errors=errors, commit_timestamp=None)

    change = received(unauthorized)
    assert change.record == {}
    assert change.errors == ("Error 401: Unauthorized",)


# realtime 2.34.1 reads what websockets 13 deprecated
@pytest.mark.filterwarnings("ignore:ConnectionClosed.(code|reason) is deprecated:DeprecationWarning")
def test_a_connection_that_breaks_is_noticed() -> None:
    async def hang_up(socket: ServerConnection, topic: str) -> None:
        await live(socket, topic)
        await socket.close(1011, "restarting")

    async def attempt() -> str:
        async with server(hang_up) as url, subscribed(target(url), timeout=10) as subscription:
            return await asyncio.wait_for(subscription.broken, 10)

    assert "1011" in asyncio.run(attempt())


# --- the result -------------------------------------------------------------------------------------------------


def test_percentiles_lie_between_their_neighbours() -> None:
    latencies = [float(number) for number in range(1, 11)]
    assert percentile(latencies, 50) == 5.5
    assert percentile(latencies, 95) == pytest.approx(9.55)
    assert percentile([7.0], 95) == 7.0


LOST = Failure(cause=Cause.NOT_RECEIVED, waited_for="the event", seen="silence", likely="a policy")


@pytest.mark.parametrize(
    ("result", "ok"),
    [
        (ProbeResult(requested=2, sent=2, latencies_ms=(1.0, 2.0)), True),
        (ProbeResult(requested=2, sent=2, latencies_ms=(1.0,)), False),
        (ProbeResult(requested=2), False),
        (ProbeResult(requested=1, sent=1, latencies_ms=(1.0,), failures=(LOST,)), False),
    ],
)
def test_a_probe_is_well_only_if_every_event_came_and_nothing_failed(result: ProbeResult, ok: bool) -> None:
    assert result.ok is ok
    assert json.loads(result.model_dump_json())["ok"] is ok


def test_a_probe_reports_every_latency_and_what_was_lost() -> None:
    result = ProbeResult(
        table="public.wells",
        subscriber=ApiRole.ANON,
        writer=ApiRole.ANON,
        requested=4,
        sent=4,
        latencies_ms=(10.0, 30.0, 20.0),
        subscribed_after_ms=1500,
        notes=("a note",),
    )
    assert report(result) == [
        "note: a note",
        "public.wells: anon subscribed after 1.5 s, anon inserts",
        "latency, ms: 10 30 20",
        "3 of 4 events came, 1 lost: min 10, p50 20, p95 29, max 30 ms",
    ]


def test_a_failure_is_one_line() -> None:
    assert str(LOST) == "event not received: waited for the event; got silence; likely: a policy"


@pytest.mark.parametrize(
    "options", [["--count", "0"], ["--timeout", "0"], ["--timeout", "nan"], ["--stack", "a", "--outputs", "b"]]
)
def test_options_that_make_no_sense_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        arguments().parse_args(["probe", *options])
    assert refusal.value.code == 2
    assert "error: argument" in capsys.readouterr().err


def test_cleaning_up_is_finished_before_a_cancellation_goes_on() -> None:
    finished: list[bool] = []

    async def clean_up() -> None:
        await asyncio.sleep(0.05)
        finished.append(True)

    async def run() -> None:
        task = asyncio.ensure_future(in_any_case(clean_up()))
        for _ in range(2):  # once more, while it is waited for
            await asyncio.sleep(0.01)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert finished == [True]


def test_the_outputs_model_and_the_fixture_above_agree() -> None:
    assert set(DOCUMENT) == set(Outputs.model_fields)
