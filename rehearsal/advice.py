"""What a rehearsal warns of: rules that work and are probably not what was meant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from rehearsal.catalog import Policy, Table
from rehearsal.matrix import Extent, Matrix, Row
from rehearsal.realtime import FAILS
from settings import SUBSCRIBING_ROLES, ApiRole, Command, Event

WRITES = (Command.INSERT, Command.UPDATE, Command.DELETE)


@dataclass(frozen=True, kw_only=True)
class Warning:
    """A fault of one or more tables, with cause and cure."""

    kind: str
    """A short name for programs."""
    tables: tuple[str, ...]
    cause: str
    cure: str


def warnings(matrix: Matrix) -> list[Warning]:
    """Everything to warn of, one entry for the tables that have the same fault."""
    rows: defaultdict[str, list[Row]] = defaultdict(list)
    for row in matrix.rows:
        rows[row.table].append(row)
    found: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    for table in matrix.tables:
        people = [row for row in rows[str(table)] if row.role in SUBSCRIBING_ROLES]
        for kind, cause, cure in (*_of_table(table), *_of_reading(table, people), *_of_writing(table, people)):
            found[kind, cause, cure].append(str(table))
    for name, reason in matrix.untried.items():
        found["untried", reason, ""].append(name)
    return [
        Warning(kind=kind, tables=tuple(tables), cause=cause, cure=cure)
        for (kind, cause, cure), tables in found.items()
    ]


def _of_table(table: Table) -> Iterator[tuple[str, str, str]]:
    if not table.row_security:
        yield (
            "row-level-security-off",
            "row level security is off, so every role reads and writes as its privileges allow, all rows",
            "declare the table in `tables`, which turns it on",
        )
    if not table.primary_key:
        yield (
            "no-primary-key",
            "no primary key: Realtime sends events without columns (Error 400), and Postgres refuses UPDATE and DELETE "
            "of a published table without replica identity",
            "add a primary key in a file of `migrations`",
        )
    changes = [event for event in (Event.UPDATE, Event.DELETE) if event in table.published]
    if changes and table.replica_identity == "default":
        yield (
            "old-record-has-key-only",
            f"the old record of {' and '.join(changes)} holds the primary key alone",
            "set `replica_identity: full` if subscribers need more; of a deleted row they get the key in any case",
        )


def _of_reading(table: Table, people: list[Row]) -> Iterator[tuple[str, str, str]]:
    if not people:
        return
    readers = [row.role for row in people if row.access[Command.SELECT].extent is not Extent.NONE]
    if table.published and not readers:
        yield (
            "published-but-unreadable",
            "published, but neither anon nor authenticated can read a row: every subscription is silent",
            "let a role read (`read: [authenticated]`, or a SELECT policy that shows some row), or `publish: false`",
        )
    if readers and not table.published:
        yield (
            "readable-but-unpublished",
            f"{' and '.join(readers)} can read it, but no change of it is published",
            "leave out `publish: false` if they should see changes live",
        )
    meant = [row for row in people if _is_meant_to_read(table, row.role)]
    errors = {row.role: received.error for row in meant for received in row.received.values() if received.error}
    for role, error in errors.items():
        if table.primary_key:
            yield (
                "events-without-columns",
                f"{role} may not read the primary key, so its subscribers are sent every INSERT and UPDATE, empty, "
                f"with “{error}”",
                f"grant {role} SELECT on the primary key, or leave the table out of `tables`",
            )
    failing = {
        access.reason
        for row in people
        for access in row.received.values()
        if access.extent is not Extent.ALL and access.reason.startswith(FAILS)
    }
    for reason in sorted(failing):
        yield ("policy-fails", reason, "correct the policy, or grant what it needs, before anybody subscribes")


def _is_meant_to_read(table: Table, role: str) -> bool:
    """The role holds SELECT on something, or a policy names it."""
    named = any(role in policy.roles and policy.command in ("all", "select") for policy in table.policies)
    return named or bool(table.privileges[role].select)


def _of_writing(table: Table, people: list[Row]) -> Iterator[tuple[str, str, str]]:
    for row in people:
        if row.truncate:
            yield (
                "truncate-open",
                f"{row.role} may TRUNCATE it, which row level security does not stop",
                f"REVOKE TRUNCATE from {row.role}; declaring the table in `tables` does",
            )
        written = [c.value for c in WRITES if row.access[c].extent is not Extent.NONE or c in row.blind]
        if written and row.access[Command.SELECT].extent is Extent.NONE:
            blindly = " (UPDATE and DELETE of all rows at once, since it cannot name one)" if row.blind else ""
            yield (
                "write-without-read",
                f"{row.role} may {' and '.join(written)}{blindly} but not read: "
                "`.insert().select()` of supabase-js fails, and a filter finds no row",
                f"add a SELECT policy for {row.role}, or take the writing away",
            )
    if open_policies := [policy for policy in table.policies if _opens_writing_to_anon(policy)]:
        yield (
            "anon-writes-all",
            f"anybody on the internet may change any row: {', '.join(f'“{p.name}”' for p in open_policies)} is `true` "
            "for anon",
            "leave anon out of `write`, or say in the policy which rows it may write",
        )


def _opens_writing_to_anon(policy: Policy) -> bool:
    return (
        policy.permissive
        and policy.command != "select"
        and bool({"public", ApiRole.ANON.value} & set(policy.roles))
        and "true" in policy.expressions
    )
