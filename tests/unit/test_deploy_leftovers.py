"""Which containers and networks an interrupted update left behind, and whose they are."""

from typing import Any

import pytest

from components.network import labels
from deploy.docker_objects import Container, Leftovers, Network, Published, container, leftovers
from deploy.errors import DeployError
from deploy.recovery import another_states, refuse_another_states

OURS = labels("dev")


def made(name: str, identity: str, owned: dict[str, str] | None = None, network: str = "bridge") -> Container:
    return Container(id=identity, name=name, labels=owned or {}, status="running", networks=frozenset({network} - {""}))


def test_what_the_state_knows_is_left_alone() -> None:
    found = leftovers(
        "dev", [made("supabase-realtime-dev-postgres", "c1", OURS)], [Network("n1", "supabase-realtime-dev", OURS)],
        known=frozenset({"c1", "n1"}),
    )  # fmt: skip
    assert (found.ours, found.foreign, found.networks) == ((), (), ())


def test_a_container_with_the_stacks_labels_is_the_stacks() -> None:
    left = made("supabase-realtime-dev-postgres", "c1", OURS)
    assert leftovers("dev", [left], [], known=frozenset()).ours == (left,)


def test_a_container_under_one_of_the_stacks_names_without_its_labels_is_somebody_elses() -> None:
    placed = made("supabase-realtime-dev-gateway", "c1", {"com.docker.compose.project": "mine"})
    found = leftovers("dev", [placed], [], known=frozenset())
    assert found.foreign == (placed,)
    assert found.ours == ()


def test_other_stacks_and_other_names_are_nobodys_business() -> None:
    others = [
        made("supabase-realtime-prod-postgres", "c1", labels("prod")),
        made("supabase-realtime-dev2-postgres", "c2", labels("dev2")),
        made("supabase-realtime-dev-gateway-displaced-20261123T180922", "c3"),
        made("my-postgres", "c4"),
        made("another-project", "c5", {"com.pulumi.project": "mine", "com.pulumi.stack": "dev"}),
    ]
    found = leftovers("dev", others, [Network("n1", "bridge", {})], known=frozenset())
    assert (found.ours, found.foreign, found.networks) == ((), (), ())


def test_a_network_is_the_stacks_by_its_labels_only() -> None:
    left = Network("n1", "supabase-realtime-dev", OURS)
    foreign = Network("n2", "supabase-realtime-dev", {})
    assert leftovers("dev", [], [left, foreign], known=frozenset()).networks == (left,)


def test_the_engines_listing_is_read() -> None:
    listed = container(
        {
            "Id": "c1",
            "Names": ["/other/alias", "/supabase-realtime-dev-gateway"],
            "Labels": None,
            "State": "running",
            "Ports": [
                {"IP": "127.0.0.1", "PrivatePort": 8000, "PublicPort": 8011, "Type": "tcp"},
                {"PrivatePort": 8100, "Type": "tcp"},
            ],
            "NetworkSettings": {"Networks": {"supabase-realtime-dev": {"NetworkID": "n1"}}},
        }
    )
    assert listed == Container(
        id="c1",
        name="supabase-realtime-dev-gateway",
        labels={},
        status="running",
        published=frozenset({Published("127.0.0.1", 8011)}),
        networks=frozenset({"n1"}),
    )


# --- whose they are, when they have the stack's labels

OTHER = Network("n9", "supabase-realtime-dev", OURS)
EMPTY: dict[str, Any] = {"version": 3, "deployment": {"manifest": {}}}
NETWORK = {"urn": "urn::network", "type": "docker:index/network:Network", "id": "n1", "inputs": {}}


def left(*ours: Container, networks: tuple[Network, ...] = ()) -> Leftovers:
    return Leftovers(ours=ours, foreign=(), networks=networks)


def state(*known: dict[str, Any], pending: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"version": 3, "deployment": {"resources": list(known), "pending_operations": list(pending)}}


@pytest.mark.parametrize("network", ["n9", "bridge", ""], ids=["in a network", "in another one", "in none"])
def test_what_a_state_that_knows_nothing_finds_was_made_with_another(network: str) -> None:
    running = made("supabase-realtime-dev-postgres", "c1", OURS, network)
    assert another_states(EMPTY, left(running)) == [running]


def test_a_container_in_a_network_that_the_state_does_not_know_was_made_with_another() -> None:
    """As after `pulumi up` by hand in a second checkout, which made a network of its own and failed at a name."""
    theirs, ours = made("supabase-realtime-dev-postgres", "c1", OURS, "n9"), made("x", "c2", OURS, "n1")
    assert another_states(state(NETWORK), left(theirs, ours, networks=(OTHER,))) == [theirs]


def test_what_an_interrupted_update_left_is_its_own() -> None:
    running = made("supabase-realtime-dev-postgres", "c1", OURS, "n1")
    created = made("supabase-realtime-dev-gateway", "c2", OURS, "")
    assert another_states(state(NETWORK), left(running, created)) == []
    creating = {"type": "creating", "resource": {"urn": "urn::network", "type": NETWORK["type"], "inputs": {}}}
    assert another_states(state(pending=(creating,)), left(networks=(OTHER,))) == []


def test_another_states_containers_are_named_with_what_to_do() -> None:
    found = left(made("supabase-realtime-dev-realtime", "c1", OURS), made("supabase-realtime-dev-gateway", "c2", OURS))
    with pytest.raises(DeployError) as refused:
        refuse_another_states("dev", EMPTY, found)
    assert refused.value.faults == (
        "stack dev is there already, made with another state than this one: supabase-realtime-dev-gateway "
        "supabase-realtime-dev-realtime; go on in that checkout, or with its PULUMI_BACKEND_URL; if that state is "
        "lost, `docker rm -f supabase-realtime-dev-gateway supabase-realtime-dev-realtime`, which keeps the volumes, "
        "and run this again",
    )
    refuse_another_states("dev", state(NETWORK), found)
