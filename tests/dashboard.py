"""The names of figures in the queries of a Grafana dashboard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

WORDS = frozenset({"and", "or", "unless", "group_left", "group_right", "bool", "offset"})
"""Words of PromQL that are neither functions nor names."""


def expressions(path: Path) -> Iterator[str]:
    """Every query of a dashboard's panels."""
    for panel in json.loads(path.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def names(expression: str) -> set[str]:
    """The figures that a query of PromQL asks for."""
    rest = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", " ", expression)
    rest = re.sub(r"\b(?:by|without|on|ignoring)\s*\([^)]*\)", " ", rest)
    found = re.findall(r"(?<![\w.:])[a-zA-Z_:][\w:]*(?!\w*\s*\()", rest)
    return {name for name in found if name not in WORDS}


def names_in(path: Path) -> set[str]:
    """The figures that a dashboard shows."""
    return {name for expression in expressions(path) for name in names(expression)}
