"""The database objects of each stack: who may do what with the sample table, and how the objects come and go."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from plan.program import PROJECT, Resource, Secret
from settings import NAMESPACE
from tests.program.recorder import SECRETS, Program, overridden, run_program, stack_file, with_secrets

READ_WRITE = ["SELECT", "INSERT", "UPDATE", "DELETE"]
PRIVILEGES = {
    "dev": {"anon": READ_WRITE, "authenticated": READ_WRITE, "service_role": READ_WRITE},
    "staging": {"anon": ["SELECT"], "authenticated": READ_WRITE, "service_role": READ_WRITE},
    "prod": {"anon": ["SELECT"], "authenticated": ["SELECT", "INSERT", "UPDATE"], "service_role": READ_WRITE},
}


def short_form(read: list[str], write: list[str]) -> list[dict[str, Any]]:
    """The policies that `read` and `write` stand for."""
    return [
        {"name": "wells_select", "command": "select", "roles": read, "using": "true", "permissive": True},
        {"name": "wells_insert", "command": "insert", "roles": write, "check": "true", "permissive": True},
        {
            "name": "wells_update",
            "command": "update",
            "roles": write,
            "using": "true",
            "check": "true",
            "permissive": True,
        },
        {"name": "wells_delete", "command": "delete", "roles": write, "using": "true", "permissive": True},
    ]


POLICIES = {
    "dev": short_form(["anon", "authenticated"], ["anon", "authenticated"]),
    "staging": short_form(["anon", "authenticated"], ["authenticated"]),
    "prod": [
        {
            "name": "active wells are public",
            "command": "select",
            "roles": ["anon", "authenticated"],
            "using": "active",
            "permissive": True,
        },
        {
            "name": "staff see every well",
            "command": "select",
            "roles": ["authenticated"],
            "using": "true",
            "permissive": True,
        },
        {
            "name": "staff report wells",
            "command": "insert",
            "roles": ["authenticated"],
            "check": "depth_m IS NULL OR depth_m > 0",
            "permissive": True,
        },
        {
            "name": "staff correct wells",
            "command": "update",
            "roles": ["authenticated"],
            "using": "true",
            "check": "depth_m IS NULL OR depth_m > 0",
            "permissive": True,
        },
        {
            "name": "closed wells stay as they are",
            "command": "update",
            "roles": ["authenticated"],
            "using": "active",
            "check": "true",
            "permissive": False,
        },
    ],
}


def declared(resource: Resource) -> dict[str, Any]:
    """The inputs of a dynamic resource, without the code that makes it."""
    return {key: value for key, value in resource.inputs.items() if key != "__provider"}


def grants(program: Program, object_type: str) -> dict[tuple[str, str], Any]:
    """Privileges by role and schema, of the grants on schemas or on tables."""
    return {
        (resource.inputs["role"], resource.inputs["schema"]): resource.inputs["privileges"]
        for resource in program.of_type("postgresql:index/grant:Grant")
        if resource.inputs["objectType"] == object_type
    }


def test_the_roles_are_the_ones_without_which_every_join_fails(program: Program) -> None:
    assert declared(program["DatabaseRoles roles"]) == {"roles": ["anon", "authenticated", "service_role", "postgres"]}


@pytest.mark.parametrize("schema", ["_realtime", "realtime"])
def test_a_schema_of_realtime_is_adopted_where_it_exists(schema: str, program: Program) -> None:
    assert program[f"Schema {schema}"].inputs == {
        "name": schema,
        "database": "postgres",
        "owner": "supabase_admin",
        "ifNotExists": True,
        "dropCascade": True,
    }


def test_the_migrations_are_the_files_of_the_folder_with_their_checksums(program: Program) -> None:
    files = sorted(Path(PROJECT / "sql" / "migrations").glob("*.sql"))
    assert declared(program["ApplicationMigrations migrations"]) == {
        "folder": "sql/migrations",
        "files": {file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
    }


def test_the_rows_are_secured_as_the_stacks_file_says(stack: str, program: Program) -> None:
    assert declared(program["TableSecurity public.wells"]) == {
        "schema": "public",
        "table": "wells",
        "row_security": True,
        "force": False,
        "replica_identity": "default",
        "exclusive": True,
        "policies": POLICIES[stack],
        "privileges": PRIVILEGES[stack],
        "undeclared_privileges": {},
    }


def test_every_api_role_may_use_the_schemas_and_the_server_its_own(program: Program) -> None:
    assert grants(program, "schema") == {
        ("anon", "public"): ["USAGE"],
        ("authenticated", "public"): ["USAGE"],
        ("service_role", "public"): ["USAGE"],
        ("anon", "realtime"): ["USAGE"],
        ("authenticated", "realtime"): ["USAGE"],
        ("service_role", "realtime"): ["USAGE"],
        ("supabase_admin", "_realtime"): ["CREATE", "USAGE"],
    }


def test_the_privileges_on_the_table_follow_from_the_policies(stack: str, program: Program) -> None:
    assert grants(program, "table") == {(role, "public"): held for role, held in PRIVILEGES[stack].items()}
    for grant in program.of_type("postgresql:index/grant:Grant"):
        if grant.inputs["objectType"] == "table":
            assert grant.inputs["objects"] == ["wells"]


def test_nobody_may_truncate_which_row_level_security_does_not_stop(program: Program) -> None:
    for grant in program.of_type("postgresql:index/grant:Grant"):
        assert not {"TRUNCATE", "REFERENCES", "TRIGGER", "ALL"} & set(grant.inputs["privileges"])


def test_the_publication_publishes_the_declared_tables_and_events(stack: str, program: Program) -> None:
    assert program["Publication publication"].inputs == {
        "name": "supabase_realtime",
        "database": "postgres",
        "owner": "supabase_admin",
        "tables": ["public.wells"],
        "publishParams": ["insert", "update"] if stack == "prod" else ["insert", "update", "delete"],
    }


def test_an_existing_publication_gives_way_if_it_publishes_nothing_else(program: Program) -> None:
    assert declared(program["PublicationHandover handover"]) == {
        "publication": "supabase_realtime",
        "tables": ["public.wells"],
        "undeclared_extent": [],
    }


def test_the_tenant_knows_its_database_its_limits_and_its_slot(stack: str, program: Program) -> None:
    prod = stack == "prod"
    assert declared(program["RealtimeTenant tenant"]) == {
        "external_id": "supabase-realtime",
        "jwt_secret": Secret(SECRETS["jwt.secret"]),
        "jwt_jwks": {},
        "max_concurrent_users": 2000 if prod else 200,
        "max_events_per_second": 1000 if prod else 100,
        "max_bytes_per_second": 1_000_000 if prod else 100_000,
        "max_channels_per_client": 100,
        "max_joins_per_second": 100,
        "db_host": f"supabase-realtime-{stack}-postgres",
        "db_port": "5432",
        "db_name": "postgres",
        "db_user": "supabase_admin",
        "db_password": Secret(SECRETS["postgres.password"]),
        "region": "us-east-1",
        "poll_interval_ms": 25,
        "poll_max_changes": 100,
        "poll_max_record_bytes": 1_048_576,
        "publication": "supabase_realtime",
        "slot_name": "supabase_realtime_replication_slot",
        "ssl_enforced": False,
        "changed_secrets": [],
        "server": "(id of realtime)",
    }


def test_what_is_in_the_database_goes_with_the_volume_without_a_statement(program: Program) -> None:
    """So that a stack whose Postgres no longer answers can be destroyed."""
    volume = program["Volume postgres-data"].urn
    of_the_volume = {
        f"{resource.kind} {resource.name}"
        for resource in program.resources
        if program.requests[resource.urn].deletedWith == volume
    }
    in_the_database = {
        f"{resource.kind} {resource.name}"
        for resource in program.resources
        if resource.type.startswith("postgresql:")
        or resource.kind
        in (
            "DatabaseRoles",
            "ApplicationMigrations",
            "TableSecurity",
            "PublicationHandover",
            "RealtimeSchema",
            "RealtimeTenant",
        )
    }
    assert of_the_volume == in_the_database


def test_a_replaced_grant_on_tables_does_not_revoke_what_its_successor_granted(program: Program) -> None:
    for grant in program.of_type("postgresql:index/grant:Grant"):
        kept = program.options(f"Grant {grant.name}").retainOnDelete
        assert kept is (grant.inputs["objectType"] == "table"), grant.name


def with_tables(*tables: dict[str, Any]) -> Program:
    return run_program("dev", with_secrets(stack_file("dev")) | {f"{NAMESPACE}:tables": json.dumps(tables)})


def test_tables_with_the_same_privileges_share_a_grant() -> None:
    """Creation cost is quadratic in the number of resources."""
    program = with_tables(
        {"table": "public.wells", "read": ["anon"]},
        {"table": "public.pumps", "read": ["anon"]},
        {"table": "app.readings", "read": ["anon", "authenticated"], "write": ["authenticated"]},
        {"table": "app.notes", "read": ["authenticated"], "publish": False},
    )
    table_grants = {
        resource.name: resource.inputs["objects"]
        for resource in program.of_type("postgresql:index/grant:Grant")
        if resource.inputs["objectType"] == "table"
    }
    assert table_grants == {
        "anon-select-public": ["pumps", "wells"],
        "anon-select-app": ["readings"],
        "authenticated-select-insert-update-delete-app": ["readings"],
        "authenticated-select-app": ["notes"],
        "service_role-select-insert-update-delete-public": ["pumps", "wells"],
        "service_role-select-insert-update-delete-app": ["notes", "readings"],
    }
    assert {schema for _, schema in grants(program, "schema")} == {"public", "app", "realtime", "_realtime"}


def test_an_unpublished_table_is_secured_and_not_published() -> None:
    program = with_tables(
        {"table": "public.wells", "read": ["anon"]},
        {"table": "public.notes", "read": ["authenticated"], "publish": False},
    )
    assert program["Publication publication"].inputs["tables"] == ["public.wells"]
    assert program["TableSecurity public.notes"].inputs["row_security"] is True
    assert [table["table"] for table in program.outputs["tables"]] == ["public.wells"]


def test_a_stack_without_tables_has_a_publication_of_none() -> None:
    """Realtime refuses to start a subscription without the publication."""
    program = with_tables()
    assert program["Publication publication"].inputs["tables"] == []
    assert program.of_type("pulumi-python:dynamic/index:TableSecurity") == []
    assert grants(program, "table") == {}


def test_a_stack_without_migrations_declares_none() -> None:
    program = overridden(migrations="")
    assert program.of_type("pulumi-python:dynamic/index:ApplicationMigrations") == []
    assert program.waits_for("TableSecurity public.wells", "DatabaseRoles roles")


@pytest.mark.parametrize(("option", "value"), [("replica_identity", "full"), ("force", True), ("exclusive", False)])
def test_an_option_of_a_table_reaches_its_security(option: str, value: object) -> None:
    program = with_tables({"table": "public.wells", "read": ["anon"], option: value})
    assert program["TableSecurity public.wells"].inputs[option] == value
