"""What comes of each case: tried on the database, and explained by the policy that decided."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from providers.connection import Cursor
from rehearsal import realtime, trials
from rehearsal.cases import Case, CaseFileError, Update
from rehearsal.catalog import Catalog, Policy, Table
from rehearsal.matrix import FEATURE_NOT_SUPPORTED, ignore_foreign_keys
from rehearsal.realtime import Delivery
from rehearsal.sample_rows import sample_rows
from rehearsal.trials import Outcome, PlacedRow, Subject, UnusableTableError
from settings import Event

SWALLOWED = "a trigger or rule swallows"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of a case."""

    case: Case
    faults: tuple[str, ...]
    """What was expected and did not come, with the policy that decided; empty when all is well."""


def try_cases(cursor: Cursor, cases: Sequence[Case], publication: str, path: Path) -> list[Verdict]:
    """What comes of each case. In a transaction; leaves nothing in it.

    Raises CaseFileError when a case names what the database does not have, or a row that it refuses.
    """
    catalog = Catalog(cursor, publication)
    return [_try(cursor, catalog, case, path) for case in cases]


def _try(cursor: Cursor, catalog: Catalog, case: Case, path: Path) -> Verdict:
    try:
        with cursor.connection.transaction(force_rollback=True):
            for given in case.given:
                other = _table(catalog, given.table, case, path)
                ignore_foreign_keys(cursor, other)
                trials.place(cursor, other, _row(cursor, other, given.row))
            table = _table(catalog, case.table, case, path)
            ignore_foreign_keys(cursor, table)
            return _Trial(cursor, table, case).verdict()
    except psycopg.Error as refused:
        raise CaseFileError(
            f"{path}:{case.line}: Postgres refuses the case's row: {str(refused).strip()}; correct it"
        ) from refused
    except UnusableTableError as unusable:
        raise CaseFileError(f"{path}:{case.line}: {unusable}") from unusable


def _table(catalog: Catalog, name: str, case: Case, path: Path) -> Table:
    schema, _, relation = name.partition(".")
    table = catalog.table(schema, relation)
    if table is None:
        raise CaseFileError(f"{path}:{case.line}: there is no table {name}; correct its name, or create it")
    return table


def _row(cursor: Cursor, table: Table, row: Mapping[str, Any]) -> dict[str, str | None]:
    """A case's values in their types' input syntax, and sample values for the rest."""
    values = dict(next(sample.values for sample in sample_rows(cursor, table) if not sample.own))
    unknown = [name for name in row if name not in table.column_names]
    if unknown:
        raise UnusableTableError(f"{table} has no column {', '.join(unknown)}; it has {', '.join(table.column_names)}")
    return values | _as_text(cursor, table, row)


def _as_text(cursor: Cursor, table: Table, values: Mapping[str, Any]) -> dict[str, str | None]:
    if not values:
        return {}
    cursor.execute(
        sql.SQL("SELECT {} FROM jsonb_populate_record(CAST(NULL AS {}), {}) AS r").format(
            sql.SQL(", ").join(
                sql.SQL("CAST({} AS text) AS {}").format(sql.Identifier("r", name), sql.Identifier(name))
                for name in values
            ),
            table.identifier,
            sql.Literal(json.dumps(values, default=_moment)),
        )
    )
    row = cursor.fetchone()
    assert row is not None
    return dict(row)


def _moment(value: object) -> str:
    """YAML has dates and times, JSON has not."""
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    raise TypeError(f"{value!r} has no text that Postgres could read")


class _Trial:
    """One case on its table."""

    def __init__(self, cursor: Cursor, table: Table, case: Case) -> None:
        self._cursor = cursor
        self._table = table
        self._case = case
        self._subject = Subject(role=case.as_, claims=case.claims)
        self._values = _row(cursor, table, case.row)
        self._changes = _as_text(cursor, table, case.change.update) if isinstance(case.change, Update) else {}

    def verdict(self) -> Verdict:
        faults = []
        expected = self._case.expect
        if expected.allowed is not None:
            outcome = self._attempt()
            if (outcome.touched > 0) != expected.allowed:
                faults.append(self._explained(outcome, self._case.command))
        if expected.receives is not None:
            faults += self._delivery_faults(expected.receives)
        return Verdict(case=self._case, faults=tuple(faults))

    def _attempt(self) -> Outcome:
        """What the subject itself achieves."""
        with self._cursor.connection.transaction(force_rollback=True):
            if self._case.command == "insert":
                given = {name: value for name, value in self._values.items() if self._is_given(name)}
                statement = trials.insert(self._table, given)
            else:
                statement = self._statement(trials.place(self._cursor, self._table, self._values))
            (outcome,) = trials.run(self._cursor, [(self._subject, statement)])
            if self._case.command == "truncate" and outcome.code in (None, FEATURE_NOT_SUPPORTED):
                return Outcome(1, None, None)
            return outcome

    def _is_given(self, name: str) -> bool:
        """What the case says, and sample values for the rest that the role may give and the server does not."""
        if name in self._case.row:
            return True
        column = self._table.column(name)
        allowed = self._table.privileges[self._subject.role].insert
        return not column.has_default and (column.required or not allowed or name in allowed)

    def _statement(self, row: PlacedRow) -> sql.Composed:
        condition = row.where(self._subject.role)
        match self._case.command:
            case "select":
                return trials.select(row, self._subject.role)
            case "update":
                return trials.update(row, self._changes, condition)
            case "delete":
                return trials.delete(row, condition)
            case _:
                return trials.truncate(self._table)

    def _changed(self) -> PlacedRow | None:
        """The row after the case's change, as the superuser makes it; None when a trigger swallows an UPDATE.

        Of a case that changes no values it is the row itself.
        """
        row = trials.place(self._cursor, self._table, self._values)
        return trials.change(self._cursor, row, self._changes) if self._changes else row

    def _delivery(self) -> Delivery:
        """What the subject is sent when the superuser makes the change."""
        with self._cursor.connection.transaction(force_rollback=True):
            row = self._changed()
            if row is None:
                return Delivery(received=False, reason=f"{SWALLOWED} the {self._case.command}")
            visible = None
            if row.key:
                (visible,) = trials.run(self._cursor, [(self._subject, trials.seen_by_realtime(row))])
            return realtime.delivery(self._table, Event(self._case.command), self._subject.role, visible)

    def _delivery_faults(self, expected: bool | str | list[str]) -> Iterator[str]:
        sent = self._delivery()
        columns = sent.old_record if self._case.command == "delete" else sent.record
        if isinstance(expected, list):
            if not sent.received:
                yield f"should receive {', '.join(expected)} and receives nothing: {self._why_silent(sent)}"
            elif sorted(columns) != sorted(expected):
                came = sent.error or ", ".join(columns) or "no columns"
                yield f"should receive {', '.join(expected)} and receives {came}"
        elif expected == "error":
            if sent.error is None:
                came = f"receives {', '.join(columns)}" if sent.received else f"receives nothing: {sent.reason}"
                yield f"should receive an event with an error alone, and {came}"
        elif expected and (not sent.received or sent.error is not None):
            yield f"should receive the event and does not: {sent.error or self._why_silent(sent)}"
        elif not expected and sent.received:
            reason = "deletions go to everybody" if self._case.command == "delete" else self._who_shows()
            yield f"should not receive the event and does: {sent.error or reason}"

    def _why_silent(self, sent: Delivery) -> str:
        if self._table.published and sent.reason.startswith("no SELECT policy"):
            return self._denial("select", Outcome(0, None, None))
        return sent.reason

    def _who_shows(self) -> str:
        return self._permission("select") if self._table.row_security else "row level security is off"

    def _explained(self, outcome: Outcome, command: str) -> str:
        if outcome.touched:
            return f"should not be allowed and is: {self._permission(command)}"
        return f"should be allowed and is not: {self._denial(command, outcome)}"

    def _permission(self, command: str) -> str:
        """Which policy lets the subject do it."""
        if command == "truncate":
            return "the role holds TRUNCATE, which row level security does not stop"
        if not self._table.row_security:
            return f"row level security is off, and {self._subject.role.value} holds the privilege"
        alone = [policy for policy in self._permissive(command) if self._passes_with(command, only=policy)]
        if not alone:
            return f"{self._subject.role.value} bypasses row level security"
        return f"{' and '.join(map(str, alone))} lets it"

    def _denial(self, command: str, outcome: Outcome) -> str:
        """Which policy, or what else, stands against the subject."""
        role = self._subject.role.value
        if outcome.message is not None and "row-level security" not in outcome.message:
            return outcome.message
        if command == self._case.command and self._is_swallowed(outcome):
            return f"{SWALLOWED} the {command}"
        permissive = self._permissive(command)
        if not permissive:
            return f"no policy for {command} applies to {role}"
        restrictive = [p for p in self._table.policies if not p.permissive and p.applies_to(role, command)]
        deciding = [policy for policy in restrictive if self._passes_with(command, without=policy)]
        if deciding:
            return f"{' and '.join(map(str, deciding))} forbids it"
        if command in ("update", "delete") and not self._passes_with("select"):
            return f"the row cannot be named, since {self._denial('select', Outcome(0, None, None))}"
        return f"{' and '.join(map(str, permissive))} does not let it"

    def _is_swallowed(self, outcome: Outcome) -> bool:
        """Whether a trigger or rule, and no policy, is why nothing was written."""
        if self._case.command == "insert":
            # A policy refuses it with an error.
            return outcome.message is None
        if not self._changes:
            return False
        with self._cursor.connection.transaction(force_rollback=True):
            return self._changed() is None

    def _permissive(self, command: str) -> list[Policy]:
        role = self._subject.role.value
        return [policy for policy in self._table.policies if policy.permissive and policy.applies_to(role, command)]

    def _passes_with(self, command: str, *, only: Policy | None = None, without: Policy | None = None) -> bool:
        """Whether the subject may do it with one permissive policy for the command, or without a restrictive one."""
        with self._cursor.connection.transaction(force_rollback=True):
            for policy in self._table.policies:
                beside = only is not None and policy.permissive and policy.applies_to(self._subject.role, command)
                if policy is without or (beside and policy is not only):
                    self._cursor.execute(
                        sql.SQL("DROP POLICY {} ON {}").format(sql.Identifier(policy.name), self._table.identifier)
                    )
            if command == self._case.command:
                return self._attempt().touched > 0
            row = self._changed()
            if row is None:
                return False
            (outcome,) = trials.run(self._cursor, [(self._subject, trials.select(row, self._subject.role))])
            return outcome.touched > 0
