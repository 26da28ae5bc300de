"""A port that is taken is named, with who has it and what to do."""

import socket
from collections.abc import Iterator

import docker
import pytest

from components.network import labels
from deploy.docker_objects import Container, Published
from deploy.preflight import WantedPort, engine_is_local, port_faults


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def publishing(name: str, ip: str, port: int, owned: dict[str, str] | None = None) -> Container:
    return Container("c1", name, owned or {}, "running", frozenset({Published(ip, port)}))


def gateway(port: int, host: str = "127.0.0.1") -> list[WantedPort]:
    return [WantedPort("gateway.port", host, port)]


def test_free_ports_are_no_fault(free: int) -> None:
    assert port_faults("dev", gateway(free), [], local=True) == []
    assert port_faults("dev", gateway(free, "0.0.0.0"), [], local=True) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_a_process_listens_on_is_named_with_the_cure(taken: int, host: str) -> None:
    assert port_faults("dev", gateway(taken, host), [], local=True) == [
        f"gateway.port: port {taken} cannot be had on {host} (Address already in use); "
        f"`ss -ltnp 'sport = :{taken}'` shows who holds it; end that, "
        "or choose another with `pulumi config set gateway.port <port> --stack dev`"
    ]


def test_an_address_that_this_machine_has_not_got_is_named() -> None:
    (fault,) = port_faults("dev", gateway(8000, "192.0.2.1"), [], local=True)
    assert fault.startswith("gateway.port: port 8000 cannot be had on 192.0.2.1 (Cannot assign requested address)")


@pytest.mark.parametrize("ip", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_port_that_another_container_publishes_is_named_with_the_container(free: int, ip: str) -> None:
    assert port_faults("dev", gateway(free), [publishing("compose-kong-1", ip, free)], local=True) == [
        f"gateway.port: port {free} is held by container compose-kong-1; stop it with `docker stop compose-kong-1`, "
        "or choose another with `pulumi config set gateway.port <port> --stack dev`"
    ]


def test_another_containers_port_on_another_address_is_no_conflict(free: int) -> None:
    assert port_faults("dev", gateway(free), [publishing("kong", "192.168.1.5", free)], local=True) == []


@pytest.mark.parametrize(
    "own",
    [
        publishing("supabase-realtime-dev-gateway", "127.0.0.1", 1),
        publishing("renamed", "127.0.0.1", 1, labels("dev")),
    ],
)
def test_the_stacks_own_container_may_hold_its_port(taken: int, own: Container) -> None:
    holder = Container(own.id, own.name, own.labels, own.status, frozenset({Published("127.0.0.1", taken)}))
    assert port_faults("dev", gateway(taken), [holder], local=True) == []


def test_another_stacks_container_may_not(taken: int) -> None:
    holder = publishing("supabase-realtime-prod-gateway", "127.0.0.1", taken, labels("prod"))
    (fault,) = port_faults("dev", gateway(taken), [holder], local=True)
    assert "held by container supabase-realtime-prod-gateway" in fault


def test_every_taken_port_is_named_at_once(taken: int) -> None:
    wanted = [WantedPort("postgres.host_port", "127.0.0.1", taken), *gateway(taken)]
    assert [fault.partition(":")[0] for fault in port_faults("dev", wanted, [], local=True)] == [
        "postgres.host_port",
        "gateway.port",
    ]


def test_ports_of_an_engine_elsewhere_are_not_looked_for_here(taken: int) -> None:
    assert port_faults("dev", gateway(taken), [], local=False) == []


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("unix:///var/run/docker.sock", True),
        ("tcp://127.0.0.1:2375", True),
        ("tcp://docker.example:2375", False),
    ],
)
def test_whether_the_engine_is_on_this_machine(address: str, local: bool) -> None:
    client = docker.DockerClient(base_url=address, version="1.41")
    try:
        assert engine_is_local(client) is local
    finally:
        client.close()
