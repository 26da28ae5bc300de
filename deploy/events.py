"""What the engine said that it did, from its event log: the steps, what the policy pack objects to, the errors.

The log's form: pulumi v3.259.0, sdk/go/common/apitype/events.go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SHOWN = ("create", "update", "replace", "delete")
"""Steps that change something; of a replacement the logical one, without its two halves."""
INTERNAL = ("pulumi:providers:", "pulumi:pulumi:Stack")
"""Types of resources that stand for no object in the world."""
SECRET = ("4dabf18193072939515e22adb298388d", "1b47061264138c4ac30d75fd1eb44270")
"""Key and value by which the engine marks a secret (sdk/go/common/resource/properties.go)."""
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
"""What stands for a text that only the update will know (sdk/go/common/resource/plugin/rpc.go)."""
HIDDEN = "[secret]"
NOTHING = "(nothing)"
KNOWN_AFTERWARDS = "(known after the update)"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One value that a step changes: as it is now, and as it is declared."""

    path: str
    now: str
    declared: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """What the engine would do to a resource, and the values because of which."""

    operation: str
    kind: str
    name: str
    differences: tuple[Difference, ...]

    @property
    def follows(self) -> bool:
        """Whether nothing differs but what another resource's step will bring."""
        return bool(self.differences) and all(one.declared == KNOWN_AFTERWARDS for one in self.differences)


@dataclass(frozen=True, kw_only=True)
class Objection:
    """What a policy says against a resource."""

    policy: str
    kind: str
    name: str
    words: str
    mandatory: bool


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one preview found out."""

    steps: tuple[Step, ...]
    objections: tuple[Objection, ...]
    warnings: tuple[str, ...]
    errors: tuple[str, ...]


def outcome(events: Iterable[Mapping[str, Any]]) -> Outcome:
    """The outcome that an event log tells, without what the engine says to its developers."""
    steps: dict[str, Step] = {}
    objections: list[Objection] = []
    said: dict[str, list[str]] = {"warning": [], "error": []}
    for event in events:
        if pre := event.get("resourcePreEvent"):
            metadata = pre["metadata"]
            if metadata["op"] in SHOWN and not metadata["type"].startswith(INTERNAL):
                steps[metadata["urn"]] = _step(metadata)
        elif policy := event.get("policyEvent"):
            objections.append(_objection(policy))
        elif (diagnostic := event.get("diagnosticEvent")) and diagnostic["severity"] in said:
            said[diagnostic["severity"]].append(" ".join(diagnostic["message"].split()))
    return Outcome(
        steps=tuple(steps.values()),
        objections=tuple(objections),
        warnings=tuple(dict.fromkeys(said["warning"])),
        errors=tuple(dict.fromkeys(said["error"])),
    )


def read_events(log: str) -> list[dict[str, Any]]:
    """The events of a log that matter here. A last line that was cut off is left out, as is all debugging."""
    events: list[dict[str, Any]] = []
    for line in log.splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if event.get("diagnosticEvent", {}).get("severity") != "debug":
            events.append(event)
    return events


def _named(urn: str) -> tuple[str, str]:
    """Last part of a resource's type, and its name."""
    *_, type_, name = urn.split("::")
    return type_.rpartition(":")[2], name


def _step(metadata: Mapping[str, Any]) -> Step:
    kind, name = _named(metadata["urn"])
    differences: list[Difference] = []
    old, new = metadata.get("old"), metadata.get("new")
    if old and new and metadata["op"] in ("update", "replace"):
        # Where a provider says which properties differ, it has compared what it read, which are the outputs; the
        # dynamic providers say that something does, and answer a refresh with what the inputs would be.
        told = metadata.get("diffs")
        names = told or sorted({*old["inputs"], *new["inputs"]})
        seen = {**old["inputs"], **(old["outputs"] if told else {})}
        for property_ in names:
            found = list(_differences(property_, _plain(seen.get(property_)), _plain(new["inputs"].get(property_))))
            # What differs and looks the same is a secret.
            differences += found or ([Difference(path=property_, now=HIDDEN, declared=HIDDEN)] if told else [])
    return Step(operation=metadata["op"], kind=kind, name=name, differences=tuple(differences))


def _objection(event: Mapping[str, Any]) -> Objection:
    kind, name = _named(event.get("resourceUrn") or "::")
    # The first line is the policy's description, which says the rule; the others, what breaks it.
    lines = [line.strip() for line in event["message"].splitlines() if line.strip()]
    return Objection(
        policy=event["policyName"],
        kind=kind,
        name=name,
        words=" ".join(lines[1:] or lines),
        mandatory=event["enforcementLevel"] == "mandatory",
    )


def _plain(value: Any) -> Any:
    """A value without the engine's own marks; a secret as ``[secret]``."""
    if isinstance(value, dict):
        if value.get(SECRET[0]) == SECRET[1]:
            return HIDDEN
        return {key: _plain(item) for key, item in value.items() if not key.startswith("__")}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return KNOWN_AFTERWARDS if value == UNKNOWN else value


def _differences(path: str, now: Any, declared: Any) -> Iterator[Difference]:
    """The smallest parts that differ: entries of a mapping by key, objects of a list by their name."""
    if isinstance(now, dict) and isinstance(declared, dict):
        for key in sorted({*now, *declared}):
            yield from _differences(f"{path}.{key}", now.get(key), declared.get(key))
    elif _by_name(now) is not None and _by_name(declared) is not None:
        before, after = _by_name(now) or {}, _by_name(declared) or {}
        for name in dict.fromkeys([*before, *after]):
            yield from _differences(f"{path}[{name}]", before.get(name), after.get(name))
    elif now != declared:
        yield Difference(path=path, now=_text(now), declared=_text(declared))


def _by_name(value: Any) -> dict[str, Any] | None:
    """The objects of a list by the name that each has; None for anything else."""
    if not isinstance(value, list) or not all(isinstance(item, dict) and "name" in item for item in value):
        return None
    return {item["name"]: item for item in value}


def _text(value: Any) -> str:
    if value is None:
        return NOTHING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
