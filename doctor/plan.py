"""Which table a probe uses, who subscribes to it and who inserts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.errors import InsufficientPrivilege

from doctor.api_role import become, claims_of, resume
from doctor.catalog import Column, Connection, Table, UnusableTableError, read_table
from doctor.failures import UP, Cause, Failure, ProbeFailedError
from doctor.outputs import Outputs, PublishedTable
from doctor.removal import require_removable
from doctor.rendering import by_key, rendered, same, selectable
from doctor.sample_row import SampleRow, sample_row
from doctor.subscription import Change
from settings import ApiRole, Event

LACKING = """
    SELECT p.privilege || ' on ' || p.object
    FROM (SELECT %s::text AS role, to_regclass(%s) AS oid) AS t
    JOIN pg_class c ON c.oid = t.oid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN LATERAL (
        VALUES ('SELECT', c.oid::regclass::text, has_table_privilege(t.role, c.oid, 'SELECT')),
               ('INSERT', c.oid::regclass::text, has_table_privilege(t.role, c.oid, 'INSERT')),
               ('USAGE', 'schema ' || n.nspname, has_schema_privilege(t.role, n.oid, 'USAGE'))
    ) AS p (privilege, object, held)
    WHERE NOT p.held
"""
"""What a role has to hold to insert into a table and read it."""


@dataclass(frozen=True)
class Plan:
    """A declared table with a subscriber and a writer; ``note`` says what such a probe leaves out."""

    table: PublishedTable
    subscriber: ApiRole
    writer: ApiRole
    note: str | None = None


def plans(tables: Sequence[PublishedTable]) -> list[Plan]:
    """The plans for the declared tables, the one nearest to a browser with the anon key first."""
    found: list[Plan] = []
    published = [table for table in tables if Event.INSERT in table.events]
    for table in published:
        if ApiRole.ANON in table.read and ApiRole.ANON in table.write:
            found.append(Plan(table, ApiRole.ANON, ApiRole.ANON))
    for table in published:
        if ApiRole.ANON in table.read and ApiRole.ANON not in table.write:
            note = (
                f"{table.table}: no policy lets anon insert, so service_role inserts; "
                "the policies for writing are not probed"
            )
            found.append(Plan(table, ApiRole.ANON, ApiRole.SERVICE_ROLE, note))
    for table in published:
        if ApiRole.ANON not in table.read:
            note = (
                f"{table.table}: no policy lets anon read, so service_role subscribes and inserts; "
                "the table's policies are not probed"
            )
            found.append(Plan(table, ApiRole.SERVICE_ROLE, ApiRole.SERVICE_ROLE, note))
    return found


@dataclass(frozen=True)
class Chosen:
    """A plan that a trial insert has shown to work. ``columns`` are those that the subscriber is shown."""

    plan: Plan
    table: Table
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Written:
    """A row inserted in the transaction under way: its primary key as text, and what an event has to show.

    ``version`` is its xmin, which is not the transaction's number: it is written in a savepoint.
    """

    key: tuple[str, ...]
    expected: dict[str, object]
    transaction: str
    version: str


async def choose(
    connection: Connection, outputs: Outputs, rng: random.Random, among: Sequence[Plan] | None = None
) -> tuple[Chosen, list[str]]:
    """The first plan whose table takes a sample row and lets it go, tried in a transaction that is rolled back, and
    notes.

    ``among`` are the plans, by default those of the probe. A table that no sample row fits, or that keeps its rows, is
    passed over with a note.
    If every table that the writer was declared to write refuses it, that is a failure and no reason to write as
    somebody else. Raises ProbeFailedError.
    """
    notes: list[str] = []
    refusals: list[Failure] = []
    unusable: set[str] = set()
    for plan in plans(outputs.tables) if among is None else among:
        if refusals and plan.writer is not ApiRole.ANON:
            break
        if plan.table.table in unusable:
            continue
        try:
            table = await read_table(connection, plan.table.schema_name, plan.table.name)
            columns = await selectable(connection, table, plan.subscriber)
            chosen = Chosen(plan, table, columns)
            async with connection.transaction(force_rollback=True):
                written = await write(connection, chosen, await sample_row(connection, table, rng), outputs)
                await require_removable(connection, table, written)
        except UnusableTableError as unfit:
            unusable.add(plan.table.table)
            notes.append(str(unfit))
        except ProbeFailedError as refused:
            refusals.append(refused.failure)
        else:
            return chosen, [*notes, *([plan.note] if plan.note else [])]
    if refusals:
        raise ProbeFailedError(refusals[0])
    raise ProbeFailedError(
        Failure(
            cause=Cause.NO_TABLE,
            waited_for="a declared table that is published for inserts and takes a sample row",
            seen="; ".join(notes) or "none: the stack declares no table with the event insert",
            likely="declare one in the setting tables ({table: public.wells, read: [anon], write: [anon]}); " + UP,
        )
    )


async def write(connection: Connection, chosen: Chosen, row: SampleRow, outputs: Outputs) -> Written:
    """Inserts the row in the name of the plan's writer and reads it back as the connection's user; does not commit.

    Raises ProbeFailedError when the database refuses the writer, UnusableTableError when it refuses the row.
    """
    statement, values = row.insert_returning_key()
    claims = claims_of(key_of(outputs, chosen.plan.writer))
    # Opens the transaction, so that the block below is a savepoint of it and its end no commit.
    transaction = await (await connection.execute("SELECT pg_current_xact_id()::text")).fetchone()
    assert transaction is not None, "a function call has a row"
    try:
        async with connection.transaction():
            await become(connection, claims)
            answer = await (await connection.execute(statement, values)).fetchone()
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            await resume(connection)
    except InsufficientPrivilege as refused:
        raise ProbeFailedError(await _refusal(connection, row, claims, refused)) from None
    except (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.RaiseException) as unfit:
        raise UnusableTableError(
            f"{chosen.table}: refuses the sample row ({unfit.diag.message_primary}); declare another table"
        ) from None
    if answer is None:
        raise UnusableTableError(
            f"{chosen.table}: a trigger or rule of the table drops the insert; declare another table"
        )
    key = tuple(answer)
    expected = await rendered(connection, chosen.table, key, chosen.columns)
    query = sql.SQL("SELECT CAST(xmin AS text) FROM {} WHERE {}").format(chosen.table.quoted, by_key(chosen.table))
    version = await (await connection.execute(query, key)).fetchone()
    assert version is not None, "the row was there for the statement before"
    return Written(key, expected, transaction[0], version[0])


def key_of(outputs: Outputs, role: ApiRole) -> str:
    """The key of a role, from the stack's outputs."""
    return outputs.anon_key if role is ApiRole.ANON else outputs.service_role_key.get_secret_value()


def is_of(change: Change, written: Written, chosen: Chosen) -> bool:
    """Whether a change is the row written: by its primary key. One without columns cannot be told from another."""
    if not change.record:
        return bool(change.errors)
    return all(
        column.name in change.record and same(written.expected.get(column.name), change.record[column.name], column)
        for column in chosen.table.key_columns
    )


async def _refusal(
    connection: Connection, row: SampleRow, claims: Mapping[str, object], refused: InsufficientPrivilege
) -> Failure:
    """What the role lacks: a privilege, a policy to insert, or one to see the row afterwards."""
    table, role = row.table, claims["role"]
    message = refused.diag.message_primary or str(refused)
    if "row-level security" not in message:
        lacking = await (await connection.execute(LACKING, (role, table.identifier.as_string(connection)))).fetchall()
        privileges = " and ".join(privilege for (privilege,) in lacking)
        return Failure(
            cause=Cause.INSERT_REFUSED,
            waited_for=f"an insert into {table} by role {role}",
            seen=message,
            likely=f"{role} lacks {privileges or 'a privilege on what the insert needs, as a sequence'}; {UP}",
        )
    statement, values = row.insert()
    try:
        async with connection.transaction(force_rollback=True):
            await become(connection, claims)
            await connection.execute(statement, values)
    except InsufficientPrivilege:
        return Failure(
            cause=Cause.INSERT_REFUSED,
            waited_for=f"an insert into {table} by role {role}",
            seen=message,
            likely=f"no INSERT policy of {table} accepts the sample row from {role}; "
            f"{UP}, if the declared policies would",
        )
    return Failure(
        cause=Cause.UNREADABLE,
        waited_for=f"a row of {table} that {role} may read after inserting it",
        seen="an insert that succeeds, and a row that is hidden",
        likely=f"no SELECT policy of {table} lets {role} see the row, so that its subscribers hear nothing; "
        f"{UP}, if the declared policies would",
    )
