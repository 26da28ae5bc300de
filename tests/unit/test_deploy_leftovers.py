"""Which containers and networks an interrupted update left behind, and whose they are."""

from components.network import labels
from deploy.docker_objects import Container, Network, Published, container, leftovers

OURS = labels("dev")


def made(name: str, identity: str, owned: dict[str, str] | None = None) -> Container:
    return Container(id=identity, name=name, labels=owned or {}, status="running")


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
        }
    )
    assert listed == Container(
        id="c1",
        name="supabase-realtime-dev-gateway",
        labels={},
        status="running",
        published=frozenset({Published("127.0.0.1", 8011)}),
    )
