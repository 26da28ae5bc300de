"""A rehearsal's outcome for people (a terminal, Markdown) and for programs (JSON)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from plan.program import Resource
from rehearsal.advice import Warning
from rehearsal.case_trials import Verdict
from rehearsal.matrix import Access, Extent, Matrix, Received, Row
from settings import Command, Event

HEADINGS = (
    "table",
    "role",
    *(command.value for command in (Command.SELECT, Command.INSERT, Command.UPDATE, Command.DELETE)),
    "truncate",
    *(f"sees {event.value}" for event in Event),
)
COLOURS = {Extent.ALL.value: "green", Extent.NONE.value: "red"}


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """All that a rehearsal found."""

    stack: str
    matrix: Matrix
    warnings: Sequence[Warning]
    verdicts: Sequence[Verdict]
    skipped: int
    """Cases that are of other stacks."""
    not_made: Sequence[Resource]
    """What is declared and has no place in a database."""

    @property
    def failed(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.faults]


def lines(matrix: Matrix) -> Iterator[tuple[str, ...]]:
    """The matrix as text, one line a table and role, in the order of HEADINGS."""
    for row in matrix.rows:
        yield (
            row.table,
            row.role.value,
            *(_access(row, command) for command in row.access),
            "yes" if row.truncate else "no",
            *(_received(received, event) for event, received in row.received.items()),
        )


def _access(row: Row, command: Command) -> str:
    access = row.access[command]
    if command in row.blind and access.extent is Extent.NONE:
        return "unseen rows"
    return _with_columns(access.extent.value, access.columns)


def _received(received: Received, event: Event) -> str:
    if received.extent is Extent.NONE:
        return received.extent.value
    if received.error is not None:
        return f"{received.extent.value}: {received.error.partition(':')[0]}"
    if event is Event.DELETE:
        return _with_columns(received.extent.value, received.old_record or ("no columns",))
    return _with_columns(received.extent.value, () if received.complete else received.record)


def _with_columns(text: str, columns: Sequence[str]) -> str:
    return f"{text}: {', '.join(columns)}" if columns else text


def print_rehearsal(rehearsal: Rehearsal, console: Console) -> None:
    """The matrix as a table, then warnings, cases, and what was not made."""
    grid = Grid(*HEADINGS, title=f"Stack {rehearsal.stack}: who may do and see what", title_justify="left")
    table = ""
    for line in lines(rehearsal.matrix):
        if table and line[0] != table:
            grid.add_section()
        first = "" if line[0] == table else line[0]
        table = line[0]
        grid.add_row(first, line[1], *(Text(cell, style=_colour(cell)) for cell in line[2:]))
    console.print(grid)
    for warning in rehearsal.warnings:
        about = Text.assemble(("warning ", "yellow"), (", ".join(warning.tables), "bold"), f": {warning.cause}")
        console.print(about, soft_wrap=True)
        if warning.cure:
            console.print(Text(f"        {warning.cure}", style="dim"), soft_wrap=True)
    for verdict in rehearsal.failed:
        failed = Text.assemble(("failed  ", "red"), (f"line {verdict.case.line}, {verdict.case}", "bold"))
        console.print(failed, soft_wrap=True)
        for fault in verdict.faults:
            console.print(Text(f"        {fault}"), soft_wrap=True)
    console.print(Text(_count(rehearsal)), soft_wrap=True)
    console.print(Text(f"Declared and not made here: {_not_made(rehearsal)}", style="dim"), soft_wrap=True)


def _colour(cell: str) -> str:
    return COLOURS.get(cell, "yellow")


def _count(rehearsal: Rehearsal) -> str:
    passed = len(rehearsal.verdicts) - len(rehearsal.failed)
    skipped = f", {rehearsal.skipped} of other stacks left out" if rehearsal.skipped else ""
    return f"Cases: {passed} passed, {len(rehearsal.failed)} failed{skipped}"


def _not_made(rehearsal: Rehearsal) -> str:
    return ", ".join(f"{resource.kind} {resource.name}" for resource in rehearsal.not_made) or "nothing"


def markdown(rehearsal: Rehearsal) -> str:
    """The same as GitHub's Markdown."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *lines(rehearsal.matrix)]
    parts = ["\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in rows)]
    if rehearsal.warnings:
        parts.append(
            "\n".join(
                f"- **{', '.join(warning.tables)}**: {warning.cause}{f'. {warning.cure}' if warning.cure else ''}"
                for warning in rehearsal.warnings
            )
        )
    if rehearsal.failed:
        parts.append(
            "\n".join(
                f"- ❌ line {verdict.case.line}, {verdict.case}: {'; '.join(verdict.faults)}"
                for verdict in rehearsal.failed
            )
        )
    parts.append(_count(rehearsal))
    return "\n\n".join(parts) + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def document(rehearsal: Rehearsal) -> dict[str, Any]:
    """The same for json.dumps; the keys are an interface."""
    return {
        "stack": rehearsal.stack,
        "matrix": [
            {
                "table": row.table,
                "role": row.role.value,
                **{command.value: _access_document(access) for command, access in row.access.items()},
                "truncate": row.truncate,
                "unseen": sorted(command.value for command in row.blind),
                "receives": {event.value: _received_document(sent) for event, sent in row.received.items()},
            }
            for row in rehearsal.matrix.rows
        ],
        "warnings": [
            {"kind": one.kind, "tables": list(one.tables), "cause": one.cause, "cure": one.cure}
            for one in rehearsal.warnings
        ],
        "cases": [
            {"line": verdict.case.line, "name": str(verdict.case), "faults": list(verdict.faults)}
            for verdict in rehearsal.verdicts
        ],
        "not_made": [f"{resource.kind} {resource.name}" for resource in rehearsal.not_made],
    }


def _access_document(access: Access) -> dict[str, Any]:
    return {"extent": access.extent.value, "columns": list(access.columns), "reason": access.reason}


def _received_document(received: Received) -> dict[str, Any]:
    return {
        "extent": received.extent.value,
        "record": list(received.record),
        "old_record": list(received.old_record),
        "error": received.error,
        "reason": received.reason,
    }
