"""An examination as text for a person."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from doctor.checks import change
from doctor.checks.finding import Finding, Status
from doctor.examination import CHECKS, Examination

TITLES = {check.id: check.title for check in (*CHECKS, change.arrives)}
STYLES = {
    Status.OK: "green",
    Status.WARNING: "yellow",
    Status.FAILED: "bold red",
    Status.NOT_REACHED: "dim",
    Status.SKIPPED: "dim",
}


def show(examination: Examination, console: Console, *, verbose: bool) -> None:
    """What is wrong, the root first, each with cause, cure and page; with ``verbose`` every check and what it saw."""
    if verbose:
        console.print(_table(examination))
    troubles = (*examination.of(Status.FAILED), *examination.of(Status.WARNING))
    for number, finding in enumerate(troubles):
        _trouble(finding, console, root=number == 0)
    console.print(" ".join(_summary(examination)), soft_wrap=True)


def _trouble(finding: Finding, console: Console, *, root: bool) -> None:
    title = Text.assemble(
        (finding.status.value, STYLES[finding.status]), f"  {TITLES.get(finding.check, finding.check)}: no"
    )
    if root:
        title.append("  (look here first)", style="dim")
    console.print(title, soft_wrap=True)
    for word, text in (
        ("seen", finding.seen),
        ("cause", f"{finding.likely} [{finding.cause}]"),
        ("cure", finding.cure),
        ("page", finding.page),
    ):
        # Not wrapped by rich: a cure has to stay one line when it is copied.
        console.print(Text.assemble((f"  {word:6}", "dim"), text or ""), soft_wrap=True)
    console.print()


def _table(examination: Examination) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("check", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("seen", overflow="fold")
    for finding in examination.findings:
        table.add_row(finding.check, Text(finding.status.value, style=STYLES[finding.status]), Text(finding.seen))
    return table


def _summary(examination: Examination) -> Iterator[str]:
    counts = {status: len(examination.of(status)) for status in Status}
    words = {0: "healthy", 1: "works, with warnings", 2: "does not work", 3: "could not look"}
    yield f"{examination.setup}: {words[examination.exit_status]};"
    yield ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    yield f"in {examination.seconds:.1f} s"
    if counts[Status.SKIPPED] or counts[Status.NOT_REACHED]:
        yield "(--verbose says why)"
