"""What the engine printed, one line a step of a resource."""

from __future__ import annotations

import re

STEP = re.compile(
    r"^ *(?P<sign>[-+~]+) +(?P<type>\S+:\S+) (?P<name>\S+) "
    r"(?P<done>created|updated|deleted|replaced|created replacement|deleted original)\b",
    re.MULTILINE,
)


def changed_resources(output: str, *, kind: str = "") -> list[str]:
    """Names of the resources of a type that an update made, changed or removed, each once, in order."""
    found = [step["name"] for step in STEP.finditer(output) if step["type"].startswith(kind)]
    return list(dict.fromkeys(found))
