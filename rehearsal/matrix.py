"""Who may do what with a table's rows, and who is told of it, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import psycopg
from psycopg import sql

from providers.connection import Cursor
from rehearsal import realtime, trials
from rehearsal.catalog import Catalog, Table
from rehearsal.realtime import Delivery
from rehearsal.sample_rows import SampleRow, sample_rows
from rehearsal.trials import ANYONE, Outcome, PlacedRow, Subject, UnusableTableError
from settings import ApiRole, Command, Event

ROW_COMMANDS = (Command.SELECT, Command.INSERT, Command.UPDATE, Command.DELETE)
FEATURE_NOT_SUPPORTED = "0A000"
"""TRUNCATE of a table that others refer to; the privilege was there."""


class Extent(StrEnum):
    """For which of the sample rows something holds."""

    ALL = "yes"
    OWN = "own rows"
    SOME = "some rows"
    NONE = "no"


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a role may do with a table, by one command."""

    extent: Extent
    columns: tuple[str, ...] = ()
    """Which columns alone, when not all of them."""
    reason: str = ""
    """Why not, or why not every row: the server's words where it gave some."""


@dataclass(frozen=True, kw_only=True)
class Received:
    """What a subscriber of a role is sent of one kind of event."""

    extent: Extent
    record: tuple[str, ...] = ()
    old_record: tuple[str, ...] = ()
    complete: bool = False
    """The record has all columns."""
    error: str | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the matrix."""

    table: str
    role: ApiRole
    access: Mapping[Command, Access]
    truncate: bool
    received: Mapping[Event, Received]
    blind: frozenset[Command] = frozenset()
    """Commands that change rows which the role cannot name, when it names none."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """The outcome of a rehearsal."""

    rows: Sequence[Row]
    tables: Sequence[Table]
    untried: Mapping[str, str] = field(default_factory=dict)
    """Tables of which no sample row can be made, and why."""


def try_tables(cursor: Cursor, names: Iterable[tuple[str, str]], publication: str) -> Matrix:
    """The matrix of these tables. In a transaction; leaves nothing in it.

    Raises UnusableTableError when there is no such table.
    """
    catalog = Catalog(cursor, publication)
    rows: list[Row] = []
    tables: list[Table] = []
    untried: dict[str, str] = {}
    for schema, name in names:
        table = catalog.table(schema, name)
        if table is None:
            raise UnusableTableError(f"{schema}.{name}: there is no such table; create it in a file of `migrations`")
        tables.append(table)
        ignore_foreign_keys(cursor, table)
        try:
            rows += _try_table(cursor, table)
        except UnusableTableError as unusable:
            untried[str(table)] = str(unusable)
    return Matrix(rows=rows, tables=tables, untried=untried)


def ignore_foreign_keys(cursor: Cursor, table: Table) -> None:
    """Let rows refer to rows that are not there: a trial needs one row, and not a world around it."""
    cursor.execute(
        """
        SELECT t.tgname FROM pg_trigger t JOIN pg_constraint c ON c.oid = t.tgconstraint
        WHERE t.tgrelid = c.conrelid AND c.contype = 'f' AND t.tgrelid = to_regclass(%s)
        """,
        [table.identifier.as_string(cursor)],
    )
    for trigger in cursor.fetchall():
        cursor.execute(
            sql.SQL("ALTER TABLE {} DISABLE TRIGGER {}").format(table.identifier, sql.Identifier(trigger["tgname"]))
        )


@dataclass(kw_only=True)
class _Tally:
    """What came of the trials of a subject, row by row."""

    access: dict[Command, list[tuple[SampleRow, Outcome]]]
    received: dict[Event, list[tuple[SampleRow, Delivery]]]
    truncate: bool = False
    blind: set[Command] = field(default_factory=set)


def _try_table(cursor: Cursor, table: Table) -> Iterator[Row]:
    tallies = {
        subject: _Tally(access={c: [] for c in ROW_COMMANDS}, received={e: [] for e in Event}) for subject in ANYONE
    }
    refused: psycopg.Error | UnusableTableError | None = None
    tried = 0
    for sample in sample_rows(cursor, table):
        try:
            with cursor.connection.transaction(force_rollback=True):
                _try_row(cursor, table, sample, tallies)
            tried += 1
        except (psycopg.Error, UnusableTableError) as impossible:
            # Constraints and triggers that no one looks into may refuse one of the contents.
            refused = impossible
    if not tried:
        raise UnusableTableError(
            f"{table}: no sample row is accepted ({str(refused).strip().splitlines()[0]}); "
            "try the table's policies in tests/access.yaml with rows of your own"
        )
    return (_row(table, subject, tally) for subject, tally in tallies.items())


def _try_row(cursor: Cursor, table: Table, sample: SampleRow, tallies: Mapping[Subject, _Tally]) -> None:
    attempts = [(subject, trials.insert(table, _given(table, sample, subject))) for subject in tallies]
    inserted = trials.run(cursor, attempts)
    # Whether they see more with the row than without it, where they cannot name it.
    before = trials.run(cursor, [(subject, _unnamed(table, subject)) for subject in tallies])
    row = trials.place(cursor, table, sample.values)
    plans = {subject: _attempts(row, sample, subject) for subject in tallies}
    outcomes = iter(
        trials.run(cursor, [(subject, statement) for subject, plan in plans.items() for statement in plan.values()])
    )
    for (subject, tally), insertion, absent in zip(tallies.items(), inserted, before, strict=True):
        done = {what: next(outcomes) for what in plans[subject]}
        if row.where(subject.role) is None:
            done = {what: _beyond(outcome, absent) for what, outcome in done.items()}
        tally.access[Command.INSERT].append((sample, insertion))
        for command in (Command.SELECT, Command.UPDATE, Command.DELETE):
            tally.access[command].append((sample, done.get(command.value) or _NOTHING_TO_CHANGE))
        truncated = done["truncate"]
        tally.truncate = truncated.code in (None, FEATURE_NOT_SUPPORTED)
        for event in Event:
            sent = realtime.delivery(table, event, subject.role, done.get("realtime"))
            tally.received[event].append((sample, sent))
        _try_blindly(cursor, row, sample, subject, tally)


_NOTHING_TO_CHANGE = Outcome(0, trials.INSUFFICIENT_PRIVILEGE, "the table has no column that an UPDATE could change")


def _given(table: Table, sample: SampleRow, subject: Subject) -> dict[str, str | None]:
    """The values that the role may give; the rest, if it needs any, is the server's to refuse."""
    allowed = table.privileges[subject.role].insert
    return {name: value for name, value in sample.values.items() if not allowed or name in allowed}


def _unnamed(table: Table, subject: Subject) -> sql.Composed:
    readable = table.privileges[subject.role].select or table.column_names
    return sql.SQL("SELECT {} FROM {} LIMIT 1000").format(
        sql.SQL(", ").join(map(sql.Identifier, readable)), table.identifier
    )


def _beyond(outcome: Outcome, absent: Outcome) -> Outcome:
    return Outcome(max(0, outcome.touched - absent.touched), outcome.code, outcome.message)


def _attempts(row: PlacedRow, sample: SampleRow, subject: Subject) -> dict[str, sql.Composed]:
    role, condition = subject.role, row.where(subject.role)
    changes = trials.harmless_update(row, sample.values, role)
    return {
        "select": trials.select(row, role),
        **({"update": trials.update(row, changes, condition)} if changes else {}),
        "delete": trials.delete(row, condition),
        "truncate": trials.truncate(row.table),
        **({"realtime": trials.seen_by_realtime(row)} if row.key else {}),
    }


def _try_blindly(cursor: Cursor, row: PlacedRow, sample: SampleRow, subject: Subject, tally: _Tally) -> None:
    """UPDATE and DELETE without a condition ask for no SELECT policy, and so may reach rows that nobody can name."""
    changes = trials.harmless_update(row, sample.values, subject.role)
    blind = {
        Command.UPDATE: trials.update(row, changes, None) if changes else None,
        Command.DELETE: trials.delete(row, None),
    }
    for command, statement in blind.items():
        named = tally.access[command][-1][1]
        unprivileged = named.refused or tally.access[Command.SELECT][-1][1].touched
        if statement is not None and not named.touched and not unprivileged:
            (outcome,) = trials.run(cursor, [(subject, statement)])
            if outcome.touched:
                tally.blind.add(command)


def _extent(verdicts: Sequence[tuple[SampleRow, bool]]) -> Extent:
    yes = [sample for sample, verdict in verdicts if verdict]
    if len(yes) == len(verdicts):
        return Extent.ALL
    if not yes:
        return Extent.NONE
    owned = [sample for sample, _ in verdicts if sample.own]
    return Extent.OWN if yes == owned else Extent.SOME


def _row(table: Table, subject: Subject, tally: _Tally) -> Row:
    held = table.privileges[subject.role]
    some: dict[Command, Callable[[], tuple[str, ...]]] = {
        Command.SELECT: lambda: held.select,
        Command.INSERT: lambda: held.insert,
        Command.UPDATE: lambda: held.update,
    }
    access = {}
    for command, tried in tally.access.items():
        extent = _extent([(sample, outcome.touched > 0) for sample, outcome in tried])
        columns = some[command]() if command in some and command.value.upper() not in held.table else ()
        access[command] = Access(
            extent=extent,
            columns=columns if extent is not Extent.NONE else (),
            reason=_reason(table, command, subject.role, [outcome for _, outcome in tried]),
        )
    return Row(
        table=str(table),
        role=subject.role,
        access=access,
        truncate=tally.truncate,
        received={event: summary(table, sent) for event, sent in tally.received.items()},
        blind=frozenset(tally.blind),
    )


def _reason(table: Table, command: Command, role: str, outcomes: Sequence[Outcome]) -> str:
    failed = [outcome for outcome in outcomes if not outcome.touched]
    if not failed:
        return ""
    if failed[0].message is not None:
        return failed[0].message
    if not any(policy.permissive and policy.applies_to(role, command.value) for policy in table.policies):
        return f"no policy for {command.value} applies to {role}"
    return f"the policies for {command.value} leave the row out"


def summary(table: Table, sent: Sequence[tuple[SampleRow, Delivery]]) -> Received:
    """What a subscriber receives of one kind of event, from what came of each row."""
    came = [delivery for _, delivery in sent if delivery.received]
    if not came:
        return Received(extent=Extent.NONE, reason=sent[0][1].reason)
    first = came[0]
    return Received(
        extent=_extent([(sample, delivery.received) for sample, delivery in sent]),
        record=first.record,
        old_record=first.old_record,
        complete=set(first.record) == set(table.column_names),
        error=first.error,
        reason=next((delivery.reason for _, delivery in sent if delivery.reason), ""),
    )
