"""What the program declares for a stack on a Postgres that somebody else runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from plan.program import PlanError, Secret
from tests.program.recorder import DYNAMIC, SECRETS, Program, label_of, overridden, variables
from tests.stack.external_postgres import Authority

HOST = "db.example.com"
OF_CONTAINERS = ("ContainerReadiness", "NetworkAlias", "PinnedImage")
NEWEST = "supabase/realtime:v2.129.8"


@pytest.fixture(scope="module")
def ca_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("tls") / "ca.pem"
    path.write_text(Authority().certificate)
    return str(path)


@pytest.fixture(scope="module")
def external(ca_file: str) -> Iterator[Program]:
    yield overridden(
        postgres__external__host=HOST,
        postgres__external__port="6432",
        postgres__external__ca_file=ca_file,
        postgres__database="app",
        realtime__image=NEWEST,
    )


def test_nothing_of_postgres_is_started(external: Program) -> None:
    made = {label_of(resource) for resource in external.resources if resource.type.startswith("docker:")}
    assert made == {"Network network", "Container realtime", "Container gateway"}
    assert not [resource for resource in external.resources if resource.kind == "PostgresServer"]


def test_nothing_is_made_before_the_server_was_found_fit(external: Program) -> None:
    for resource in external.resources:
        if resource.custom and resource.kind not in ("ExternalServer", "postgresql"):
            assert external.waits_for(label_of(resource), "ExternalServer external-postgres"), label_of(resource)


def test_the_server_is_asked_for_what_this_realtime_needs(external: Program) -> None:
    asked = {k: v for k, v in external["ExternalServer external-postgres"].inputs.items() if k != "__provider"}
    assert asked == {
        "host": HOST,
        "port": 6432,
        "database": "app",
        "slots": 2,
        "slot": "supabase_realtime_replication_slot",
        "publication": "supabase_realtime",
        "tables": ["public.wells"],
    }


def test_an_older_realtime_needs_one_slot() -> None:
    program = overridden(postgres__external__host=HOST, postgres__external__sslmode="disable")
    assert program["ExternalServer external-postgres"].inputs["slots"] == 1


def test_what_is_in_the_database_stays_at_the_end_without_a_statement(external: Program) -> None:
    """The server is left with the stack, and everything on it with the server."""
    server = external["ExternalServer external-postgres"].urn
    for resource in external.resources:
        if resource.type.startswith("postgresql:") or (
            resource.type.startswith(DYNAMIC) and resource.kind not in ("ExternalServer", *OF_CONTAINERS)
        ):
            assert external.options(label_of(resource)).deletedWith == server, label_of(resource)


def test_the_functions_of_auth_are_there_before_a_migration_or_a_policy_calls_them(external: Program) -> None:
    assert external["AuthSchema auth"].inputs["objects"] == [
        "auth.users",
        "auth.uid()",
        "auth.role()",
        "auth.email()",
        "auth.jwt()",
    ]
    assert external.waits_for("ApplicationMigrations migrations", "AuthSchema auth")
    assert external.waits_for("TableSecurity public.wells", "AuthSchema auth")


def test_the_provider_verifies_the_server(external: Program, ca_file: str) -> None:
    inputs = external["postgresql postgresql"].inputs
    plain = {key: value for key, value in inputs.items() if not isinstance(value, Secret)}
    assert plain == {
        "host": HOST,
        "port": "6432",
        "database": "app",
        "username": "supabase_admin",
        "sslmode": "verify-full",
        "sslrootcert": ca_file,
        "superuser": "true",
        "connectTimeout": "10",
    }


def test_realtime_verifies_the_server(external: Program, ca_file: str) -> None:
    container = external["Container realtime"]
    environment = variables(container).value
    wanted = {
        "DB_HOST": HOST,
        "DB_PORT": "6432",
        "DB_NAME": "app",
        "DB_PASSWORD": SECRETS["postgres.password"],
        "DB_SSL": "true",
        "DB_SSL_CA_CERT": "/tmp/postgres-ca.pem",
        "POSTGRES_CA": Path(ca_file).read_text(),
    }
    assert {key: environment[key] for key in wanted} == wanted
    assert container.inputs["readOnly"] is True
    assert container.inputs["entrypoints"][:4] == ["/usr/bin/tini", "-s", "-g", "--"]
    assert 'printf %s "$POSTGRES_CA" >/tmp/postgres-ca.pem && exec /app/run.sh "$@"' in container.inputs["entrypoints"]
    assert container.inputs["command"] == ["/app/bin/server"]


def test_the_tenant_is_reached_with_tls(external: Program) -> None:
    values = external["RealtimeTenant tenant"].values
    wanted = {"db_host": HOST, "db_port": "6432", "db_name": "app", "ssl_enforced": True}
    assert {key: values[key] for key in wanted} == wanted


def test_a_server_on_this_machine_is_reached_through_dockers_gateway() -> None:
    program = overridden(postgres__external__host="localhost", postgres__external__sslmode="disable")
    container = program["Container realtime"]
    assert container.inputs["hosts"] == [{"host": "host.docker.internal", "ip": "host-gateway"}]
    assert variables(container).value["DB_HOST"] == "host.docker.internal"
    assert program["postgresql postgresql"].inputs["host"] == "localhost"


def test_the_outputs_say_how_this_machine_reaches_the_database(external: Program, ca_file: str) -> None:
    assert external.outputs["database"] == {
        "host": HOST,
        "port": 6432,
        "name": "app",
        "user": "supabase_admin",
        "external": True,
        "sslmode": "verify-full",
        "ca_file": ca_file,
    }


def test_a_realtime_without_tls_is_refused_before_anything_is_declared(ca_file: str) -> None:
    with pytest.raises(PlanError, match=r"realtime\.image: supabase/realtime:v2\.32\.12 does not speak TLS"):
        overridden(postgres__external__host=HOST, postgres__external__ca_file=ca_file)
