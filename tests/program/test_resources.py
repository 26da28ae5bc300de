"""What a stack consists of: every resource by type and name, and nothing else."""

from __future__ import annotations

import base64
import pickletools

import pytest

from plan.program import Secret
from tests.program.recorder import DYNAMIC, Program, label_of

COMPONENT = "supabase-realtime:index:"
CONTAINER = "docker:index/container:Container"
NETWORK = "docker:index/network:Network"
VOLUME = "docker:index/volume:Volume"
SCHEMA = "postgresql:index/schema:Schema"
GRANT = "postgresql:index/grant:Grant"
PUBLICATION = "postgresql:index/publication:Publication"
POSTGRESQL = "pulumi:providers:postgresql"

OWN_DATABASE_OBJECTS = ("DatabaseRoles", "ApplicationMigrations", "TableSecurity", "PublicationHandover")

TABLE_GRANTS = {
    "dev": [
        "anon-select-insert-update-delete-public",
        "authenticated-select-insert-update-delete-public",
        "service_role-select-insert-update-delete-public",
    ],
    "staging": [
        "anon-select-public",
        "authenticated-select-insert-update-delete-public",
        "service_role-select-insert-update-delete-public",
    ],
    "prod": [
        "anon-select-public",
        "authenticated-select-insert-update-public",
        "service_role-select-insert-update-delete-public",
    ],
}


def test_a_stack_declares_these_resources_and_no_other(stack: str, program: Program) -> None:
    name = f"supabase-realtime-{stack}"
    assert sorted((resource.type, resource.name) for resource in program.resources) == sorted(
        [
            (f"{COMPONENT}RealtimeStack", name),
            (f"{COMPONENT}StackNetwork", name),
            (NETWORK, "network"),
            (f"{COMPONENT}PostgresServer", f"{name}-postgres"),
            (VOLUME, "postgres-data"),
            (VOLUME, "postgres-keys"),
            (f"{DYNAMIC}PinnedImage", "postgres-image"),
            (CONTAINER, "postgres"),
            (f"{DYNAMIC}ContainerReadiness", "postgres-ready"),
            (f"{COMPONENT}RealtimeDatabase", f"{name}-database"),
            (POSTGRESQL, "postgresql"),
            (f"{DYNAMIC}DatabaseRoles", "roles"),
            (SCHEMA, "_realtime"),
            (SCHEMA, "realtime"),
            (f"{DYNAMIC}ApplicationMigrations", "migrations"),
            (f"{DYNAMIC}TableSecurity", "public.wells"),
            (GRANT, "anon-usage-public"),
            (GRANT, "authenticated-usage-public"),
            (GRANT, "service_role-usage-public"),
            (GRANT, "anon-usage-realtime"),
            (GRANT, "authenticated-usage-realtime"),
            (GRANT, "service_role-usage-realtime"),
            (GRANT, "supabase_admin-usage-_realtime"),
            *((GRANT, grant) for grant in TABLE_GRANTS[stack]),
            (f"{DYNAMIC}PublicationHandover", "handover"),
            (PUBLICATION, "publication"),
            (f"{COMPONENT}RealtimeServer", f"{name}-realtime"),
            (f"{DYNAMIC}PinnedImage", "realtime-image"),
            (f"{DYNAMIC}RealtimeSchema", "realtime-schema"),
            (CONTAINER, "realtime"),
            (f"{DYNAMIC}ContainerReadiness", "realtime-ready"),
            (f"{DYNAMIC}NetworkAlias", "alias"),
            (f"{DYNAMIC}RealtimeTenant", "tenant"),
            (f"{COMPONENT}Gateway", f"{name}-gateway"),
            (f"{DYNAMIC}PinnedImage", "gateway-image"),
            (CONTAINER, "gateway"),
            (f"{DYNAMIC}ContainerReadiness", "gateway-ready"),
        ]
    )


@pytest.mark.parametrize(
    ("component", "parent", "children"),
    [
        (
            "RealtimeStack",
            None,
            {"StackNetwork", "PostgresServer", "RealtimeDatabase", "RealtimeServer", "Gateway"},
        ),
        ("StackNetwork", "RealtimeStack", {"network"}),
        (
            "PostgresServer",
            "RealtimeStack",
            {"postgres-data", "postgres-keys", "postgres-image", "postgres", "postgres-ready"},
        ),
        (
            "RealtimeServer",
            "RealtimeStack",
            {"realtime-image", "realtime-schema", "realtime", "realtime-ready", "alias", "tenant"},
        ),
        ("Gateway", "RealtimeStack", {"gateway-image", "gateway", "gateway-ready"}),
    ],
)
def test_a_component_holds_its_own_resources(
    component: str, parent: str | None, children: set[str], program: Program
) -> None:
    (own,) = program.of_type(f"{COMPONENT}{component}")
    by_urn = {resource.urn: resource.type.removeprefix(COMPONENT) for resource in program.resources}
    assert by_urn.get(own.parent) == parent
    held = [resource for resource in program.resources if resource.parent == own.urn]
    assert {r.name if r.custom else r.type.removeprefix(COMPONENT) for r in held} == children


def test_every_database_object_is_in_the_component_of_the_database(program: Program) -> None:
    (database,) = program.of_type(f"{COMPONENT}RealtimeDatabase")
    bridged = [r for r in program.resources if r.type.startswith("postgresql:") or r.type == POSTGRESQL]
    own = [r for r in program.resources if r.kind in OWN_DATABASE_OBJECTS]
    assert len(own) == len(OWN_DATABASE_OBJECTS)
    assert {resource.parent for resource in [*bridged, *own]} == {database.urn}


def test_docker_objects_have_the_stacks_name(stack: str, program: Program) -> None:
    names = {r.name: r.inputs["name"] for r in program.resources if r.type in (CONTAINER, NETWORK, VOLUME)}
    assert names == {
        "network": f"supabase-realtime-{stack}",
        "postgres-data": f"supabase-realtime-{stack}-postgres",
        "postgres-keys": f"supabase-realtime-{stack}-postgres-keys",
        "postgres": f"supabase-realtime-{stack}-postgres",
        "realtime": f"supabase-realtime-{stack}-realtime",
        "gateway": f"supabase-realtime-{stack}-gateway",
    }


def test_docker_objects_are_found_by_label_when_an_interrupted_update_left_them(stack: str, program: Program) -> None:
    for resource in program.resources:
        if resource.type in (CONTAINER, NETWORK, VOLUME):
            assert resource.inputs["labels"][:2] == [
                {"label": "com.pulumi.project", "value": "supabase-realtime"},
                {"label": "com.pulumi.stack", "value": stack},
            ], resource.name


def test_database_objects_go_through_the_stacks_own_provider(program: Program) -> None:
    provider = program["postgresql postgresql"]
    for resource in program.resources:
        if resource.type.startswith("postgresql:"):
            assert program.options(label_of(resource)).provider == f"{provider.urn}::(id of postgresql)", resource.name


def test_the_provider_connects_over_loopback_with_plain_host_and_port(program: Program, stack: str) -> None:
    """An Output as host or port would be unknown at a first preview, and the provider would be skipped."""
    port = {"dev": "54322", "staging": "54332", "prod": "54322"}[stack]
    plain = {
        key: value for key, value in program["postgresql postgresql"].inputs.items() if not isinstance(value, Secret)
    }
    assert plain == {
        "host": "127.0.0.1",
        "port": port,
        "database": "postgres",
        "username": "supabase_admin",
        "sslmode": "disable",
        "superuser": "true",
        "connectTimeout": "10",
    }


def test_a_dynamic_provider_is_in_the_state_by_name_so_that_editing_its_code_changes_no_resource(
    program: Program,
) -> None:
    for resource in program.resources:
        if resource.type.startswith(DYNAMIC):
            pickled = base64.b64decode(resource.inputs["__provider"].value)
            texts = [argument for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)]
            kind = resource.type.removeprefix(DYNAMIC)
            assert f"{kind}Provider" in texts
            assert any(text.startswith("providers.") for text in texts)
            assert len(pickled) < 200, f"{kind}Provider is pickled by value"
