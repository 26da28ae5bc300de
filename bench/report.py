"""Results as tables, on the terminal and in a document."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import BenchError


@dataclass(frozen=True)
class Result:
    """The results of one benchmark."""

    name: str
    command: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """A table, with the command that made it above and the notes below."""
        lines = [
            f"`{self.command}`",
            "",
            _line(self.columns),
            _line(["---", *["---:"] * (len(self.columns) - 1)]),
            *(_line(row) for row in self.rows),
        ]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def seconds(values: Sequence[float]) -> str:
    """Median and range, seconds."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    """The ratio of the medians."""
    return statistics.median(ours) / statistics.median(others)


def against(value: float, bound: float) -> str:
    """A value with its bound and whether it holds."""
    return f"{value:.2f} ({'within' if value <= bound else 'over'} {bound:g})"


def write(path: Path, result: Result) -> None:
    """Put the result between its markers in a document. Raises BenchError when they are not there."""
    start, end = f"<!-- {result.name} -->\n", f"<!-- /{result.name} -->"
    text = path.read_text()
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise BenchError(f"{path} has no place for {result.name}: add the lines {start.strip()} and {end}")
    path.write_text(before + start + result.markdown() + end + after)
