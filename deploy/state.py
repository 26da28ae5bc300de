"""What a stack's state says: which objects it knows, and which creations were cut short."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONTAINER = "docker:index/container:Container"
NETWORK = "docker:index/network:Network"
VOLUME = "docker:index/volume:Volume"
EXTERNAL_SERVER = "pulumi-python:dynamic/index:ExternalServer"
MIGRATIONS = "pulumi-python:dynamic/index:ApplicationMigrations"
PUBLICATION = "postgresql:index/publication:Publication"


def resources(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The resources of an exported state; none for a stack that was never updated."""
    return list((state.get("deployment") or {}).get("resources") or [])


def ids(state: Mapping[str, Any], kind: str) -> frozenset[str]:
    """The provider's ids of every resource of a type, those that are about to be deleted included."""
    return frozenset(r["id"] for r in resources(state) if r["type"] == kind and r.get("id"))


def names(state: Mapping[str, Any], kind: str) -> frozenset[str]:
    """The names that the resources of a type give to their objects, those whose creation was cut short included."""
    known = [*resources(state), *(operation["resource"] for operation in pending_operations(state))]
    return frozenset(r["inputs"]["name"] for r in known if r["type"] == kind)


def unretained(state: Mapping[str, Any], kind: str) -> list[str]:
    """The names of the objects of a type that the engine deletes with their resources: it asks the state alone."""
    return [r["inputs"]["name"] for r in resources(state) if r["type"] == kind and not r.get("retainOnDelete")]


def id_of(state: Mapping[str, Any], kind: str, name: str) -> str | None:
    """The provider's id of the resource that gives its object this name."""
    return next((r["id"] for r in resources(state) if r["type"] == kind and r["inputs"].get("name") == name), None)


def inputs_of(state: Mapping[str, Any], kind: str) -> dict[str, Any] | None:
    """The inputs of the one resource of a type, None when there is none."""
    return next((r["inputs"] for r in resources(state) if r["type"] == kind), None)


def pending_operations(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the engine was doing when it was killed."""
    return list((state.get("deployment") or {}).get("pending_operations") or [])


def publication_id(resource: Mapping[str, Any]) -> str:
    """The id under which the provider knows a publication.

    Source: cyrilgdn/terraform-provider-postgresql, postgresql/resource_postgresql_publication.go,
    generatePublicationID.
    """
    return f"{resource['inputs']['database']}.{resource['inputs']['name']}"


def settled(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state without pending operations, to be put back and refreshed.

    Whatever was being made is made again: every create of the stack adopts what exists, or what exists is cleared
    before. Only a publication's create refuses an existing one, so it enters the state as if it existed, with its
    inputs as outputs, and the refresh finds out. (``pulumi refresh --import-pending-creates`` does not do that:
    in 3.259.0 it drops the operation, pkg/cmd/pulumi/operations/refresh.go and pkg/backend/snapshot.go.)
    """
    deployment = dict(state.get("deployment") or {})
    deployment.pop("pending_operations", None)
    known = {r["urn"] for r in resources(state)}
    deployment["resources"] = resources(state)
    for operation in pending_operations(state):
        resource = operation["resource"]
        if operation["type"] == "creating" and resource["type"] == PUBLICATION and resource["urn"] not in known:
            inputs = {key: value for key, value in resource["inputs"].items() if not key.startswith("__")}
            identity = publication_id(resource)
            deployment["resources"].append({**resource, "id": identity, "outputs": {**inputs, "id": identity}})
    return {**state, "deployment": deployment}
