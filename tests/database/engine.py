"""What the engine does to one resource of a dynamic provider, in the words and numbers of its protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pulumi.dynamic import ResourceProvider

from settings import Table

PROVIDER = "__provider"


class CheckFailedError(Exception):
    """What `pulumi preview` says and exits with."""


def on_the_wire(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Properties as a provider gets them: every number a float, nothing that is null, and its own code beside them."""

    def present(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: present(item) for key, item in value.items() if item is not None}
        return [present(item) for item in value] if isinstance(value, list) else value

    arrived = present(json.loads(json.dumps(properties), parse_int=float))
    return {**arrived, PROVIDER: "pickled"}


class Engine:
    """One resource and its state."""

    def __init__(self, provider: ResourceProvider) -> None:
        self.provider = provider
        self.id = ""
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] | None = None

    def up(self, inputs: Mapping[str, Any]) -> str:
        """`pulumi up` with these inputs: what it did, ``create``, ``update``, ``replace`` or ``same``."""
        news = self._checked(inputs)
        if self.outputs is None:
            return self._create(news, "create")
        olds = on_the_wire(self.outputs)
        diff = self.provider.diff(self.id, olds, news)
        if diff.replaces:
            old_id = self.id
            self._create(news, "replace")
            self.provider.delete(old_id, olds)
            return "replace"
        if not diff.changes:
            return "same"
        self.outputs = self.provider.update(self.id, olds, news).outs
        self.inputs = news
        return "update"

    def refresh(self) -> None:
        """`pulumi refresh`."""
        assert self.outputs is not None
        read = self.provider.read(self.id, on_the_wire(self.outputs))
        if not read.id:
            self.outputs, self.inputs = None, {}
            return
        assert read.inputs is not None, "without inputs, drift would stay invisible"
        self.outputs, self.inputs = read.outs, on_the_wire(read.inputs)

    def drift(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """`make drift`: the properties that are not as declared, as they are; the state stays as it is."""
        looking = Engine(self.provider)
        looking.id, looking.inputs, looking.outputs = self.id, self.inputs, self.outputs
        looking.refresh()
        if looking.outputs is None:
            return {"": "gone"}
        live = on_the_wire(looking.outputs)
        news = looking._checked(inputs)
        keys = {*news, *looking.inputs} - {PROVIDER}
        changed = {key: live.get(key) for key in keys if live.get(key) != news.get(key)}
        seen = self.provider.diff(looking.id, live, news).changes
        assert seen == bool(changed), "the provider's diff and the inputs disagree"
        return changed

    def destroy(self) -> None:
        """`pulumi destroy`."""
        assert self.outputs is not None
        self.provider.delete(self.id, on_the_wire(self.outputs))
        self.outputs = None

    def _checked(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        checked = self.provider.check(self.inputs, on_the_wire(inputs))
        if checked.failures:
            raise CheckFailedError("; ".join(failure.reason for failure in checked.failures))
        return checked.inputs

    def _create(self, news: dict[str, Any], done: str) -> str:
        created = self.provider.create(news)
        self.id, self.inputs, self.outputs = created.id, news, created.outs
        return done


def security_of(table: Table) -> dict[str, Any]:
    """The inputs of a table's TableSecurity, as the component RealtimeDatabase declares them."""
    return {
        "schema": table.schema_name,
        "table": table.name,
        "row_security": True,
        "force": table.force,
        "replica_identity": table.replica_identity.value,
        "exclusive": table.exclusive,
        "policies": [policy.model_dump(mode="json", exclude_none=True) for policy in table.row_policies],
        "privileges": {role.value: list(held) for role, held in table.privileges.items()},
        "undeclared_privileges": {},
    }
