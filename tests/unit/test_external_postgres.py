"""Settings of a Postgres that somebody else runs, and what of them is refused before anything is touched."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from components.external_postgres import external_faults
from deploy import preflight
from settings import NAMESPACE, PostgresSettings, Settings, SettingsError, SslMode, load, load_section
from tests.program.recorder import SECRETS
from tests.stack.external_postgres import Authority

HOST = "db.example.com"
EXTERNAL: dict[str, Any] = {"postgres.external.host": HOST, "postgres.external.ca_file": "ca.pem"}
NEW = {"realtime.image": "supabase/realtime:v2.129.8"}


def config_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{NAMESPACE}:{key}": value for key, value in {**SECRETS, **changes}.items()}


def loaded(changes: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
    return load(config_of(changes), stack="prod", environ=environ or {})


def faults_of(changes: Mapping[str, Any]) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        loaded(changes)
    return [fault.removeprefix(f"{NAMESPACE}:") for fault in refused.value.faults]


def test_without_a_host_the_stack_runs_its_own() -> None:
    assert loaded({}).postgres.external is None
    assert loaded({"postgres.external.host": "", "postgres.external.port": "5432"}).postgres.external is None


def test_a_host_and_a_ca_are_all_it_takes_and_the_certificate_is_verified() -> None:
    external = loaded(EXTERNAL).postgres.external
    assert external is not None
    assert (external.host, external.port, external.sslmode) == (HOST, 5432, SslMode.VERIFY_FULL)
    assert external.ca_file == "ca.pem"
    assert external.container_host == HOST


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.1.1"])
def test_a_server_on_this_machine_has_dockers_name_for_it_in_a_container(host: str) -> None:
    external = loaded({**EXTERNAL, "postgres.external.host": host}).postgres.external
    assert external is not None
    assert external.container_host == "host.docker.internal"


def test_containers_may_know_the_server_by_another_name() -> None:
    external = loaded({**EXTERNAL, "postgres.external.address_in_network": "db.internal"}).postgres.external
    assert external is not None
    assert (external.host, external.container_host) == (HOST, "db.internal")


def test_an_image_for_one_run_is_of_no_consequence_where_none_is_run() -> None:
    assert loaded(EXTERNAL, {"POSTGRES_IMAGE": "postgres:15.1"}) == loaded(EXTERNAL)


def test_a_dynamic_provider_reads_the_same_settings() -> None:
    config = config_of({**EXTERNAL, "postgres.external.port": 6432.0})
    expected = loaded({**EXTERNAL, "postgres.external.port": 6432}).postgres
    assert load_section("postgres", PostgresSettings, config.get) == expected


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        pytest.param(
            {**EXTERNAL, "postgres.image": "supabase/postgres:15.1.0.1"},
            "postgres.image: is for a Postgres that this stack runs, and postgres.external.host names db.example.com; "
            "`pulumi config rm postgres.image`, or `pulumi config rm postgres.external.host`",
            id="an-image-for-a-container-that-is-not-run",
        ),
        pytest.param(
            {**EXTERNAL, "postgres.host_port": 5433},
            "postgres.host_port: is for a Postgres that this stack runs, and postgres.external.host names "
            "db.example.com; `pulumi config rm postgres.host_port`, or `pulumi config rm postgres.external.host`",
            id="a-port-of-a-container-that-is-not-run",
        ),
        pytest.param(
            {**EXTERNAL, "postgres.memory": 4096},
            "postgres.memory: is for a Postgres that this stack runs, and postgres.external.host names db.example.com; "
            "`pulumi config rm postgres.memory`, or `pulumi config rm postgres.external.host`",
            id="memory-of-a-container-that-is-not-run",
        ),
        pytest.param(
            {**EXTERNAL, "postgres.protect": True},
            "postgres.protect: is for a Postgres that this stack runs, and postgres.external.host names "
            "db.example.com; `pulumi config rm postgres.protect`, or `pulumi config rm postgres.external.host`",
            id="a-volume-that-is-not-made",
        ),
        pytest.param(
            {"postgres.external.port": 6432, "postgres.external.ca_file": "ca.pem"},
            "postgres.external: has ca_file and port but no host; `pulumi config set postgres.external.host <host>`, "
            "or remove them",
            id="a-port-and-no-host",
        ),
        pytest.param(
            {"postgres.external.host": HOST},
            "postgres.external.ca_file: is missing, and sslmode verify-full compares the server's certificate with it; "
            "set it to the file with the CA's certificate that whoever runs the server gives out",
            id="nothing-to-verify-with",
        ),
        pytest.param(
            {**EXTERNAL, "postgres.external.sslmode": "require"},
            "postgres.external.ca_file: is set, and sslmode require compares no certificate with it; set "
            "postgres.external.sslmode to verify-full, or remove the file",
            id="a-ca-that-nobody-looks-at",
        ),
        pytest.param(
            {**EXTERNAL, "postgres.external.sslmode": "prefer"},
            "postgres.external.sslmode: is not one of 'disable', 'require', 'verify-ca' or 'verify-full'; "
            "use one of these",
            id="tls-if-the-server-feels-like-it",
        ),
        pytest.param(
            {**EXTERNAL, "postgres.external.host": "postgresql://db.example.com"},
            "postgres.external.host: 'postgresql://db.example.com' is neither a host name nor an IPv4 address; "
            "write it without scheme and port",
            id="a-url-for-a-host",
        ),
        pytest.param(
            {**EXTERNAL, "postgres.external.address_in_network": "localhost"},
            "postgres.external.address_in_network: is localhost, which in a container is the container; name the "
            "server as containers reach it: its DNS name, or host.docker.internal for this machine",
            id="loopback-of-a-container",
        ),
        pytest.param(
            {**EXTERNAL, "postgres.external.user": "admin"},
            "postgres.external.user: is not a setting; it is postgres.user, whoever runs the server: "
            "`pulumi config rm postgres.external.user`, then set postgres.user",
            id="a-second-key-for-the-user",
        ),
        pytest.param(
            {"postgres.external": '{"host": "db.example.com"}'},
            "postgres.external: holds a whole section, but every setting is a flat key; "
            "`pulumi config rm postgres.external`, then `pulumi config set postgres.external.<name> <value>` "
            "without --path",
            id="a-nested-section",
        ),
    ],
)
def test_settings_that_make_no_sense_together_are_named_with_the_cure(changes: dict[str, Any], fault: str) -> None:
    assert faults_of(changes) == [fault]


def test_the_gateway_may_have_the_port_that_a_postgres_of_the_stack_would_have() -> None:
    assert loaded({**EXTERNAL, "gateway.port": 54322}).gateway.port == 54322


def test_nothing_of_postgres_is_pulled_and_no_port_of_it_is_wanted() -> None:
    settings = loaded(EXTERNAL)
    assert set(preflight.images(settings)) == {"realtime.image", "gateway.image"}
    assert {port.key for port in preflight.wanted_ports(settings)} == {"realtime.host_port", "gateway.port"}


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        ("supabase/realtime:v2.32.12", "supabase/realtime:v2.32.12 does not speak TLS to Postgres; set it to v2.41.7"),
        ("supabase/realtime:v2.41.6", "supabase/realtime:v2.41.6 does not speak TLS to Postgres; set it to v2.41.7"),
        ("example.com/realtime:mine", "example.com/realtime:mine does not say its version, and before 2.41.7"),
    ],
)
def test_a_realtime_that_speaks_no_tls_is_refused(
    image: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {"postgres.external.host": HOST, "postgres.external.sslmode": "require", "realtime.image": image}
    (said,) = external_faults(loaded(changes))
    assert said.startswith(f"{NAMESPACE}:realtime.image: {fault}")
    assert "postgres.external.sslmode disable" in said
    assert external_faults(loaded({**changes, "postgres.external.sslmode": "disable"})) == []
    assert external_faults(loaded({**changes, "realtime.image": "supabase/realtime:v2.41.7"})) == []


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "ca.pem cannot be read (No such file or directory); name the file from the project's folder"),
        ("not a certificate\n", "ca.pem holds no certificate in PEM; name the CA's own"),
    ],
)
def test_a_file_without_a_ca_is_refused(
    content: str | None, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    assert external_faults(loaded({**EXTERNAL, **NEW})) == [f"{NAMESPACE}:postgres.external.ca_file: {fault}"]


def test_a_bundle_of_every_ca_is_too_much_for_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    certificate = Authority().certificate
    (tmp_path / "ca.pem").write_text(certificate * (100_000 // len(certificate) + 1))
    (said,) = external_faults(loaded({**EXTERNAL, **NEW}))
    assert said.endswith("name a file with the certificate of the server's own CA alone")
    (tmp_path / "ca.pem").write_text(certificate)
    assert external_faults(loaded({**EXTERNAL, **NEW})) == []


def state_of(*resources: dict[str, Any]) -> dict[str, Any]:
    return {"deployment": {"resources": list(resources)}}


def test_a_stack_does_not_trade_its_own_server_for_another_with_the_data_in_it() -> None:
    own = {"type": "docker:index/container:Container", "id": "c", "inputs": {"name": f"{NAMESPACE}-prod-postgres"}}
    (said,) = preflight.external_faults(loaded({**EXTERNAL, **NEW}), state_of(own))
    assert said.startswith("postgres.external.host: is set, and stack prod runs a Postgres of its own, whose data")
    assert "make destroy STACK=prod" in said


def test_a_stack_does_not_leave_an_external_server_for_one_of_its_own() -> None:
    server = {"type": "pulumi-python:dynamic/index:ExternalServer", "id": "1", "inputs": {"host": HOST}}
    (said,) = preflight.external_faults(loaded({}), state_of(server))
    assert said.startswith(f"postgres.external.host: is no longer set, and stack prod was made on {HOST}; set it back")


def test_a_stack_with_a_server_of_its_own_asks_nobody() -> None:
    assert preflight.external_faults(loaded({}), {}) == []


def test_a_server_that_does_not_answer_is_named_with_its_cure() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = taken.getsockname()[1]
        changes = {
            "postgres.external.host": "127.0.0.1",
            "postgres.external.port": port,
            "postgres.external.sslmode": "disable",
        }
        (said,) = preflight.external_faults(loaded(changes), {})
    assert said.startswith(
        f"the Postgres of postgres.external.host, 127.0.0.1:{port}, cannot be used yet:\n"
        f"  - Postgres on 127.0.0.1:{port} does not answer ("
    )
    assert said.endswith("or correct postgres.external.host and postgres.external.port")
    assert SECRETS["postgres.password"] not in said
