"""A dynamic resource that does nothing."""

from __future__ import annotations

from typing import Any

from pulumi.dynamic import CreateResult, DiffResult, ReadResult, Resource, ResourceProvider


class EmptyProvider(ResourceProvider):
    def create(self, _props: dict[str, Any]) -> CreateResult:
        return CreateResult(id_="empty", outs={})

    def read(self, id_: str, _props: dict[str, Any]) -> ReadResult:
        return ReadResult(id_=id_, outs={}, inputs={})

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        return DiffResult(changes=False)


class EmptyResource(Resource):
    """Costs what the engine takes for any dynamic resource, and nothing more."""

    def __init__(self, name: str) -> None:
        super().__init__(EmptyProvider(), name, {})
