"""What the engine printed: the steps of an update line by line, those of a preview as `--diff` shows them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

CHANGED = re.compile(
    r"^ *(?P<sign>[-+~]+) +(?P<type>\S+:\S+) (?P<name>\S+) "
    r"(?P<done>created|updated|deleted|replaced|created replacement|deleted original)\b",
    re.MULTILINE,
)
STEP = re.compile(r"^ {4}\S+ ?\S+:(?P<type>\w+): \((?P<operation>\w+)\)")
URN = re.compile(r"^ {8}\[urn=\S+::(?P<name>[^:\]]+)\]")
PROPERTY = re.compile(r"^ {6}[~+-] (?P<property>\w+) *:")


def changed_resources(output: str, *, kind: str = "") -> list[str]:
    """Names of the resources of a type that an update made, changed or removed, each once, in order."""
    found = [step["name"] for step in CHANGED.finditer(output) if step["type"].startswith(kind)]
    return list(dict.fromkeys(found))


@dataclass
class Step:
    """What the next update would do to a resource, and the properties because of which."""

    operation: str
    properties: set[str] = field(default_factory=set)


def steps(diff: str) -> dict[str, Step]:
    """The steps that the engine's `--diff` shows, by the resource's type and name.

    Without what the refresh shows: it reports every output that a provider reads anew, different or not.
    """
    found: dict[str, Step] = {}
    heading: re.Match[str] | None = None
    current: Step | None = None
    for line in diff.splitlines():
        if begun := STEP.match(line):
            heading, current = begun, None
        elif heading and heading["operation"] not in ("refresh", "same"):
            if named := URN.match(line):
                current = found[f"{heading['type']} {named['name']}"] = Step(heading["operation"])
            elif current and current.operation != "create" and (changed := PROPERTY.match(line)):
                current.properties.add(changed["property"])
    return found
