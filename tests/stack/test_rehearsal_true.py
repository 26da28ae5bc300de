"""What `make rehearse` says of a table is what the real Realtime does with it."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import docker
import jwt
import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from websockets.asyncio.client import ClientConnection, connect

from plan import program
from providers.connection import Cursor
from rehearsal import trials
from rehearsal.advice import warnings
from rehearsal.case_trials import try_cases
from rehearsal.cases import read_cases
from rehearsal.catalog import Catalog, Table
from rehearsal.matrix import Extent, Received, summary, try_tables
from rehearsal.realtime import NO_PRIMARY_KEY, UNAUTHORIZED, Delivery
from rehearsal.sample_rows import SampleRow, sample_rows
from rehearsal.server import embedded_postgres
from rehearsal.stage import staged
from rehearsal.trials import ANYONE, SUB, Subject
from settings import ApiRole, Event
from tests.stack.conftest import Deployment, new_deployment, removed, unique_stack

PUBLICATION = "supabase_realtime"
SENTINEL = "sentinel"
LIVE = "Subscribed to PostgreSQL"
SUBSCRIBE_SECONDS = 120
EVENT_SECONDS = 120

COLUMNS = "id uuid PRIMARY KEY, title text NOT NULL, owner uuid, org text, status text, active boolean NOT NULL"
READ = "GRANT SELECT ON {t} TO anon, authenticated"
RLS = "ALTER TABLE {t} ENABLE ROW LEVEL SECURITY"
FULL = "ALTER TABLE {t} REPLICA IDENTITY FULL"
OPEN = "CREATE POLICY everything ON {t} FOR SELECT TO anon, authenticated USING (true)"
OWNER = "CREATE POLICY owner ON {t} FOR SELECT TO authenticated USING (owner = auth.uid())"
SETS: Mapping[str, Sequence[str]] = {
    "open": [READ, RLS, OPEN],
    "owner_only": [READ, RLS, OWNER],
    "signed_in_only": [
        READ,
        RLS,
        "CREATE POLICY p ON {t} FOR SELECT TO authenticated USING (auth.role() = 'authenticated')",
    ],
    "by_claim": [READ, RLS, "CREATE POLICY p ON {t} FOR SELECT USING (org = (auth.jwt() ->> 'org'))"],
    "by_status": [READ, RLS, "CREATE POLICY p ON {t} FOR SELECT TO anon USING (status = 'published')"],
    "restrictive": [READ, RLS, OPEN, "CREATE POLICY p ON {t} AS RESTRICTIVE FOR SELECT USING (active)"],
    "two_policies": [READ, RLS, OWNER, "CREATE POLICY p ON {t} FOR SELECT TO anon, authenticated USING (active)"],
    "all_commands": [READ, RLS, "CREATE POLICY p ON {t} FOR ALL TO authenticated USING (owner = auth.uid())"],
    "write_only": ["GRANT INSERT ON {t} TO anon", RLS, "CREATE POLICY p ON {t} FOR INSERT TO anon WITH CHECK (true)"],
    "column_grants": ["GRANT SELECT (id, title) ON {t} TO anon, authenticated", RLS, OPEN],
    "column_grants_without_key": ["GRANT SELECT (title) ON {t} TO anon, authenticated", RLS, OPEN],
    "no_grant": [RLS, OPEN],
    "rls_off": [READ],
    "rls_off_no_grant": [],
    "no_policy": [READ, RLS],
    "identity_full": [READ, RLS, OPEN, FULL],
    "identity_full_owner": [READ, RLS, OWNER, FULL],
    "identity_full_rls_off": [READ, FULL],
    "identity_full_columns": ["GRANT SELECT (id, title) ON {t} TO anon, authenticated", FULL],
    "identity_nothing": [READ, RLS, OPEN, "ALTER TABLE {t} REPLICA IDENTITY NOTHING"],
    "forced": [READ, RLS, OPEN, "ALTER TABLE {t} FORCE ROW LEVEL SECURITY"],
    "no_primary_key": [READ, RLS, OPEN, FULL, "ALTER TABLE {t} DROP CONSTRAINT no_primary_key_pkey"],
    "wide_key": [READ, RLS, OPEN, "ALTER TABLE {t} DROP CONSTRAINT wide_key_pkey, ADD PRIMARY KEY (id, title)"],
}
"""Sets of policies, privileges and replica identities, each on a table of its own."""

CASES = f"""
- as: authenticated
  claims: {{org: north}}
  table: public.by_claim
  row: {{org: north}}
  change: insert
  expect: {{receives: true}}
- as: authenticated
  claims: {{org: south}}
  table: public.by_claim
  row: {{org: north}}
  change: insert
  expect: {{receives: false}}
- as: anon
  claims: {{org: north}}
  table: public.by_claim
  row: {{org: north}}
  change: insert
  expect: {{receives: true}}
- as: authenticated
  claims: {{sub: {SUB}}}
  table: public.restrictive
  row: {{active: true}}
  change: {{update: {{active: false}}}}
  expect: {{receives: false}}
- as: authenticated
  claims: {{sub: {SUB}}}
  table: public.restrictive
  row: {{active: false}}
  change: {{update: {{active: true}}}}
  expect: {{receives: true}}
- as: authenticated
  claims: {{sub: {SUB}}}
  table: public.owner_only
  row: {{owner: {SUB}}}
  change: {{update: {{owner: 00000000-0000-4000-8000-00000000000f}}}}
  expect: {{receives: false}}
- as: authenticated
  claims: {{sub: {SUB}}}
  table: public.owner_only
  row: {{owner: 00000000-0000-4000-8000-00000000000f}}
  change: {{update: {{owner: {SUB}}}}}
  expect: {{receives: [id, title, owner, org, status, active]}}
- as: anon
  table: public.owner_only
  row: {{owner: {SUB}}}
  change: delete
  expect: {{receives: [id]}}
- as: anon
  table: public.no_grant
  row: {{}}
  change: insert
  expect: {{receives: error}}
"""


def set_up() -> str:
    """The SQL of all tables, to run once on either server."""
    statements = [f"CREATE TABLE public.{SENTINEL} (id bigint PRIMARY KEY)", f"GRANT SELECT ON {SENTINEL} TO PUBLIC"]
    for table, rules in SETS.items():
        statements += [f"CREATE TABLE public.{table} ({COLUMNS})", f"REVOKE ALL ON {table} FROM anon, authenticated"]
        statements += [f"GRANT ALL ON {table} TO service_role", *(rule.format(t=table) for rule in rules)]
    statements += [f"ALTER PUBLICATION {PUBLICATION} ADD TABLE {', '.join((SENTINEL, *SETS))}"]
    return ";\n".join(statements)


@pytest.fixture(scope="module")
def rehearsed() -> Iterator[Cursor]:
    """The embedded server with the tables."""
    declared = program.run(program.stack_config("dev"))
    with embedded_postgres() as conninfo, staged(declared, conninfo) as cursor:
        cursor.execute(set_up().encode())
        yield cursor


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A real stack with the tables."""
    limits = {f"realtime.{limit}": 10_000 for limit in ("max_events_per_second", "max_joins_per_second")}
    deployment = new_deployment(
        tmp_path_factory.mktemp("rehearsal") / "project",
        stack=unique_stack("rehearsal"),
        settings={**limits, "realtime.max_bytes_per_second": 10_000_000},
    )
    try:
        deployment.up()
        with deployment.database() as connection:
            connection.execute(set_up().encode())
        yield deployment
    finally:
        removed(deployment)


@dataclass(frozen=True)
class Arrived:
    """An event as it came."""

    event: Event
    record: Mapping[str, Any]
    old_record: Mapping[str, Any]
    error: str | None

    def tells_of(self, key: str | None) -> bool:
        return {**self.old_record, **self.record}.get("id") == key


class Listener:
    """One subscriber: the events of each table, in order."""

    def __init__(self) -> None:
        self.live = asyncio.Event()
        self.arrived: defaultdict[str, list[Arrived]] = defaultdict(list)
        self._changed = asyncio.Event()

    async def listen(self, socket: ClientConnection) -> None:
        async for message in socket:
            _, _, _, kind, payload = json.loads(message)
            if kind == "system" and payload.get("message") == LIVE:
                self.live.set()
            if kind == "postgres_changes":
                data = payload["data"]
                self.arrived[data["table"]].append(
                    Arrived(
                        Event(data["type"].lower()),
                        data.get("record") or {},
                        data.get("old_record") or {},
                        (data["errors"] or [None])[0],
                    )
                )
                self._changed.set()

    async def until_sentinel(self, number: int) -> None:
        async with asyncio.timeout(EVENT_SECONDS):
            while not any(arrived.record.get("id") == number for arrived in self.arrived[SENTINEL]):
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def listening(stack: Deployment, subject: Subject) -> AsyncIterator[Listener]:
    """A subscriber with the subject's claims to every table, from "Subscribed to PostgreSQL" on.

    Without a client library: those choke on some of the events that Realtime sends (no old record: null).
    """
    outputs = stack.outputs()
    secret = stack.pulumi("config", "get", "jwt.secret").stdout.strip()
    expires = jwt.decode(outputs["anon_key"], secret, algorithms=["HS256"])["exp"]
    token = jwt.encode({"role": subject.role.value, **subject.claims, "exp": expires}, secret, algorithm="HS256")
    changes = [{"event": "*", "schema": "public", "table": table} for table in (SENTINEL, *SETS)]
    join = {"config": {"postgres_changes": changes}, "access_token": token}
    listener = Listener()
    address = f"{outputs['realtime_url']}/websocket?vsn=2.0.0&apikey={outputs['anon_key']}"
    async with connect(address, max_size=None, ping_interval=None) as socket:
        await socket.send(json.dumps(["1", "1", "realtime:rehearsal", "phx_join", join]))
        reading = asyncio.create_task(listener.listen(socket))
        try:
            async with asyncio.timeout(SUBSCRIBE_SECONDS):
                await listener.live.wait()
            yield listener
        finally:
            reading.cancel()


@asynccontextmanager
async def all_listening(stack: Deployment, subjects: Sequence[Subject]) -> AsyncIterator[list[Listener]]:
    async with AsyncExitStack() as listeners:
        yield [await listeners.enter_async_context(listening(stack, subject)) for subject in subjects]


def mark(cursor: Cursor) -> int:
    """A change that everybody is told of; answers with its number."""
    cursor.execute(
        sql.SQL("INSERT INTO {table} SELECT coalesce(max(id), 0) + 1 FROM {table} RETURNING id").format(
            table=sql.Identifier(SENTINEL)
        )
    )
    row = cursor.fetchone()
    assert row is not None
    return int(row["id"])


async def everything_came(cursor: Cursor, listeners: Sequence[Listener]) -> None:
    """Awaits a change that comes after all others: events come in the order of their transactions."""
    number = mark(cursor)
    await asyncio.gather(*(listener.until_sentinel(number) for listener in listeners))


@pytest.fixture
def real(stack: Deployment) -> Iterator[Cursor]:
    with stack.database() as connection, connection.cursor(row_factory=dict_row) as cursor:
        yield cursor


def keyed(rows: Sequence[SampleRow]) -> list[dict[str, str | None]]:
    """The rows' values with distinct keys, so that an event says which row it is about."""
    return [{**sample.values, "id": str(uuid.uuid4())} for sample in rows]


def change(cursor: Cursor, table: Table, event: Event, values: Mapping[str, str | None]) -> None:
    """Make a change of a row as the database's owner. A published table without replica identity refuses some."""
    where = sql.SQL("id = {}").format(sql.Literal(values["id"]))
    row = trials.PlacedRow(table=table, key={}, place="")
    statements = {
        Event.INSERT: trials.insert(table, values),
        Event.UPDATE: trials.update(row, {"title": values["title"]}, where),
        Event.DELETE: trials.delete(row, where),
    }
    try:
        cursor.execute(statements[event])
    except psycopg.errors.ObjectNotInPrerequisiteState as refused:
        assert "replica identity" in str(refused)


def observed(
    table: Table, event: Event, arrived: Sequence[Arrived], values: Sequence[Mapping[str, str | None]]
) -> list[Delivery]:
    """What came of the event, row by row."""
    of_kind = [one for one in arrived if one.event is event]
    anonymous = [one for one in of_kind if not one.record and not one.old_record]
    deliveries = []
    for row in values:
        told = [one for one in of_kind if one.tells_of(row["id"])] or anonymous[:1]
        if told and not told[0].record and not told[0].old_record:
            anonymous = anonymous[1:]
        assert len(told) <= 1, f"{table} told of {row['id']} twice: {told}"
        if not told:
            deliveries.append(Delivery(received=False))
            continue
        deliveries.append(
            Delivery(
                received=True,
                record=tuple(name for name in table.column_names if name in told[0].record),
                old_record=tuple(name for name in table.column_names if name in told[0].old_record),
                error=told[0].error,
            )
        )
    return deliveries


def comparable(received: Received) -> Received:
    """Without the reasons, which a server does not give."""
    return replace(received, reason="")


def test_the_matrix_is_what_the_real_server_delivers(rehearsed: Cursor, stack: Deployment, real: Cursor) -> None:
    names = [("public", table) for table in SETS]
    matrix = try_tables(rehearsed, names, PUBLICATION)
    assert not matrix.untried
    catalog = Catalog(rehearsed, PUBLICATION)
    tables = {name: catalog.table("public", name) for name in SETS}
    rows = {name: sample_rows(rehearsed, table) for name, table in tables.items() if table}
    values = {name: keyed(of_table) for name, of_table in rows.items()}

    async def scene() -> dict[ApiRole, Listener]:
        async with all_listening(stack, ANYONE) as listeners:
            # Realtime asks for a row when it reads the change: one that is gone by then is not shown.
            for event in Event:
                for name, table in tables.items():
                    for row in values[name]:
                        assert table is not None
                        change(real, table, event, row)
                await everything_came(real, listeners)
            return {subject.role: listener for subject, listener in zip(ANYONE, listeners, strict=True)}

    listeners = asyncio.run(scene())
    wrong = []
    for row in matrix.rows:
        name = row.table.partition(".")[2]
        table = tables[name]
        assert table is not None
        for event, said in row.received.items():
            came = observed(table, event, listeners[row.role].arrived[name], values[name])
            seen = summary(table, list(zip(rows[name], came, strict=True)))
            if comparable(said) != comparable(seen):
                wrong.append(f"{name}, {row.role}, {event}:\n  said {comparable(said)}\n  came {comparable(seen)}")
    assert not wrong, "\n".join(wrong)
    # Every way in which an event may come, or not, was among them.
    extents = {received.extent for row in matrix.rows for received in row.received.values()}
    errors = {received.error for row in matrix.rows for received in row.received.values()}
    assert extents == set(Extent)
    assert errors == {None, UNAUTHORIZED, NO_PRIMARY_KEY}


def test_cases_come_true_on_the_real_server(rehearsed: Cursor, stack: Deployment, real: Cursor, tmp_path: Path) -> None:
    """Whose update takes a row out of sight, or into it, and what claims say: the same on both."""
    path = tmp_path / "access.yaml"
    path.write_text(CASES)
    cases = read_cases(path)
    assert [verdict.faults for verdict in try_cases(rehearsed, cases, PUBLICATION, path)] == [()] * len(cases)
    subjects = [Subject(role=case.as_, claims=case.claims) for case in cases]
    keys = [str(uuid.uuid4()) for _ in cases]

    async def scene() -> list[Listener]:
        async with all_listening(stack, subjects) as listeners:
            for case, key in zip(cases, keys, strict=True):
                values = {"id": key, "title": "a title", "active": True, **case.row}
                table = sql.Identifier(*case.table.split("."))
                real.execute(
                    sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                        table,
                        sql.SQL(", ").join(map(sql.Identifier, values)),
                        sql.SQL(", ").join(map(sql.Literal, values.values())),
                    )
                )
                if case.command == "update":
                    assert not isinstance(case.change, str)
                    ((column, value),) = case.change.update.items()
                    real.execute(
                        sql.SQL("UPDATE {} SET {} = {} WHERE id = {}").format(
                            table, sql.Identifier(column), sql.Literal(value), sql.Literal(key)
                        )
                    )
                elif case.command == "delete":
                    real.execute(sql.SQL("DELETE FROM {} WHERE id = {}").format(table, sql.Literal(key)))
            await everything_came(real, listeners)
            return listeners

    for case, listener, key in zip(cases, asyncio.run(scene()), keys, strict=True):
        table = case.table.partition(".")[2]
        of_kind = [one for one in listener.arrived[table] if one.event.value == case.command]
        told = [one for one in of_kind if one.tells_of(key)]
        match case.expect.receives:
            case "error":
                assert {one.error for one in of_kind} == {UNAUTHORIZED}, case
            case list(columns):
                (one,) = told
                assert sorted(one.old_record if case.command == "delete" else one.record) == sorted(columns), case
            case expected:
                assert bool(told) == expected, case


def test_a_policy_that_fails_loses_changes_for_everybody(rehearsed: Cursor, stack: Deployment, real: Cursor) -> None:
    """It does not hide a row from one role: what Realtime had read together with the row is lost to all."""
    break_it = (
        "DROP POLICY everything ON public.open; "
        "CREATE POLICY broken ON public.open FOR SELECT TO anon USING (1 / (length(title) - length(title)) = 1)"
    )
    with rehearsed.connection.transaction(force_rollback=True):
        rehearsed.execute(break_it.encode())
        matrix = try_tables(rehearsed, [("public", "open")], PUBLICATION)
    (anon,) = (row for row in matrix.rows if row.role is ApiRole.ANON)
    assert anon.received[Event.INSERT].extent is Extent.NONE
    assert "every subscriber of the stack: division by zero" in anon.received[Event.INSERT].reason
    (warning,) = (one for one in warnings(matrix) if one.kind == "policy-fails")
    assert warning.tables == ("public.open",)
    container = docker.from_env().containers.get(stack.container_name("realtime"))

    def failures() -> int:
        return bytes(container.logs()).count(b"division_by_zero")

    async def scene() -> Listener:
        async with all_listening(stack, ANYONE) as listeners:
            real.execute(break_it.encode())
            before = failures()
            with real.connection.transaction():
                for table in ("open", "rls_off"):
                    real.execute(
                        sql.SQL("INSERT INTO {} (id, title, active) VALUES (gen_random_uuid(), 'lost', true)").format(
                            sql.Identifier(table)
                        )
                    )
            async with asyncio.timeout(EVENT_SECONDS):
                while failures() == before:
                    await asyncio.sleep(0.2)
            async with asyncio.timeout(EVENT_SECONDS):
                while not listeners[-1].arrived[SENTINEL]:
                    mark(real)
                    await asyncio.sleep(0.5)
            return listeners[-1]

    service = asyncio.run(scene())
    assert service.arrived["open"] == []
    assert service.arrived["rls_off"] == []
