"""What is read from the state, and how pending operations leave it."""

from typing import Any

from deploy.state import (
    CONTAINER,
    NETWORK,
    VOLUME,
    id_of,
    ids,
    names,
    pending_operations,
    resources,
    settled,
    unretained,
)

STACK = "urn:pulumi:dev::supabase-realtime::"
PUBLICATION_URN = STACK + "postgresql:index/publication:Publication::publication"
GRANT_URN = STACK + "postgresql:index/grant:Grant::anon-usage-public"


def resource(kind: str, label: str, identity: str | None = None, /, **inputs: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"urn": f"{STACK}{kind}::{label}", "type": kind, "inputs": {"__defaults": [], **inputs}}
    return entry if identity is None else {**entry, "id": identity}


def exported(*known: dict[str, Any], pending: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    deployment: dict[str, Any] = {"manifest": {"version": "v3.259.0"}, "resources": list(known)}
    if pending is not None:
        deployment["pending_operations"] = pending
    return {"version": 3, "deployment": deployment}


def creating(kind: str, label: str, /, **inputs: Any) -> dict[str, Any]:
    return {"resource": resource(kind, label, **inputs), "type": "creating"}


def test_a_stack_that_was_never_updated_knows_nothing() -> None:
    for state in ({"version": 3}, {"version": 3, "deployment": None}, {"version": 3, "deployment": {}}):
        assert resources(state) == []
        assert pending_operations(state) == []
        assert resources(settled(state)) == []


def test_objects_are_known_by_their_ids() -> None:
    state = exported(
        resource("pulumi:pulumi:Stack", "stack"),
        resource(NETWORK, "network", "n1", name="supabase-realtime-dev"),
        resource(CONTAINER, "postgres", "c1", name="supabase-realtime-dev-postgres"),
        {**resource(CONTAINER, "postgres", "c0", name="supabase-realtime-dev-postgres"), "delete": True},
    )
    assert ids(state, NETWORK) == {"n1"}
    assert ids(state, CONTAINER) == {"c0", "c1"}, "a container about to be deleted is the engine's to delete"
    assert id_of(state, CONTAINER, "supabase-realtime-dev-postgres") == "c1"
    assert id_of(state, CONTAINER, "supabase-realtime-dev-gateway") is None


def test_a_volume_is_the_states_also_when_its_creation_was_cut_short() -> None:
    data, keys = "supabase-realtime-dev-postgres", "supabase-realtime-dev-postgres-keys"
    state = exported(resource(VOLUME, "data", data, name=data), pending=[creating(VOLUME, "keys", name=keys)])
    assert names(state, VOLUME) == {data, keys}
    assert names(exported(resource(NETWORK, "network", "n1", name="n")), VOLUME) == frozenset()


def test_a_volume_is_kept_by_what_the_last_update_wrote_into_the_state() -> None:
    kept = {**resource(VOLUME, "data", "a", name="a"), "retainOnDelete": True}
    assert unretained(exported(kept), VOLUME) == []
    assert unretained(exported(kept, resource(VOLUME, "keys", "b", name="b")), VOLUME) == ["b"]


def test_an_interrupted_creation_leaves_the_state() -> None:
    network = resource(NETWORK, "network", "n1")
    state = settled(
        exported(network, pending=[creating(CONTAINER, "postgres"), creating("postgresql:index/grant:Grant", "g")])
    )
    assert resources(state) == [network]
    assert pending_operations(state) == []


def test_an_interrupted_update_or_deletion_keeps_the_resource_for_the_refresh_to_judge() -> None:
    known = resource(CONTAINER, "postgres", "c1")
    operations = [{"resource": known, "type": kind} for kind in ("updating", "deleting", "reading")]
    assert resources(settled(exported(known, pending=operations))) == [known]


def test_a_publication_cut_short_enters_as_if_it_existed_because_its_create_would_refuse_an_existing_one() -> None:
    operation = creating(
        "postgresql:index/publication:Publication",
        "publication",
        name="supabase_realtime",
        database="app",
        tables=["public.wells"],
    )
    state = settled(exported(pending=[operation]))
    (entered,) = resources(state)
    assert entered["urn"] == PUBLICATION_URN
    assert entered["id"] == "app.supabase_realtime"
    assert entered["outputs"] == {
        "id": "app.supabase_realtime",
        "name": "supabase_realtime",
        "database": "app",
        "tables": ["public.wells"],
    }
    assert entered["inputs"] == operation["resource"]["inputs"]


def test_a_publication_that_the_state_knows_already_is_not_doubled() -> None:
    known = resource("postgresql:index/publication:Publication", "publication", "app.supabase_realtime")
    operation = creating(
        "postgresql:index/publication:Publication", "publication", name="supabase_realtime", database="app"
    )
    assert resources(settled(exported(known, pending=[operation]))) == [known]


def test_the_rest_of_the_state_is_untouched_and_the_original_unchanged() -> None:
    before = exported(resource(NETWORK, "network", "n1"), pending=[creating(CONTAINER, "postgres")])
    after = settled(before)
    assert after["version"] == 3
    assert after["deployment"]["manifest"] == before["deployment"]["manifest"]
    assert len(before["deployment"]["pending_operations"]) == 1
