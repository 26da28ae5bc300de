"""In which order a stack is made: nothing before what it needs, along the path of one change.

    table row → publication → replication slot → Realtime (tenant) → Kong (key) → client

The same order, backwards, is the one in which a stack is destroyed.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.program.recorder import Program, label_of

PATH = (
    "Network network",
    "Container postgres",
    "ContainerReadiness postgres-ready",
    "DatabaseRoles roles",
    "Schema _realtime",
    "ApplicationMigrations migrations",
    "TableSecurity public.wells",
    "Grant service_role-select-insert-update-delete-public",
    "PublicationHandover handover",
    "Publication publication",
    "RealtimeTenant tenant",
    "Container gateway",
    "ContainerReadiness gateway-ready",
)


@pytest.mark.parametrize(("earlier", "later"), list(pairwise(PATH)))
def test_each_part_of_the_path_waits_for_the_one_before(earlier: str, later: str, program: Program) -> None:
    assert program.waits_for(later, earlier)
    assert not program.waits_for(earlier, later)


@pytest.mark.parametrize(
    ("later", "earlier", "why"),
    [
        ("Container postgres", "Volume postgres-data", "its rows survive it there"),
        ("Container postgres", "Volume postgres-keys", "pgsodium's root key survives it there"),
        ("Schema _realtime", "postgresql postgresql", "the provider makes it"),
        ("Schema realtime", "DatabaseRoles roles", "their owner may be one of them"),
        ("ApplicationMigrations migrations", "Schema realtime", "a migration may name Realtime's schemas"),
        ("ApplicationMigrations migrations", "DatabaseRoles roles", "a migration may name the API roles"),
        ("Grant anon-usage-public", "ApplicationMigrations migrations", "a migration may make the schema"),
        ("Publication publication", "TableSecurity public.wells", "else rows would be published unprotected"),
        ("Publication publication", "Grant anon-usage-public", "else a subscriber would get Error 401"),
        ("PublicationHandover handover", "TableSecurity public.wells", "a failure must leave the old publication"),
        ("Container realtime", "Schema _realtime", "it exits with 3F000 without"),
        ("ContainerReadiness realtime-ready", "Container realtime", "it is asked inside"),
        ("RealtimeTenant tenant", "ContainerReadiness realtime-ready", "its management API makes it"),
        ("RealtimeTenant tenant", "Publication publication", "a newer Realtime never looks for it again"),
        ("RealtimeTenant tenant", "Schema realtime", "its health call makes the tenant's functions there"),
        ("Container gateway", "RealtimeTenant tenant", "Realtime remembers for 30 s that a tenant was not there"),
        ("NetworkAlias alias", "Container realtime", "it is a name of it"),
        ("RealtimeTenant tenant", "NetworkAlias alias", "it stands for the whole server"),
        ("Container gateway", "NetworkAlias alias", "the gateway calls Realtime by it"),
    ],
)
def test_a_resource_waits_for_what_it_needs(later: str, earlier: str, why: str, program: Program) -> None:
    assert program.waits_for(later, earlier), why


def test_every_grant_on_a_table_comes_after_the_revoking_of_inherited_privileges(program: Program) -> None:
    grants = [r for r in program.resources if r.kind == "Grant" and r.inputs["objectType"] == "table"]
    assert grants
    for grant in grants:
        assert program.waits_for(label_of(grant), "TableSecurity public.wells"), grant.name


def test_the_publication_waits_for_every_grant(program: Program) -> None:
    for grant in program.resources:
        if grant.kind == "Grant":
            assert program.waits_for("Publication publication", label_of(grant)), grant.name


def test_the_program_declares_everything_in_an_order_in_which_it_can_be_made(program: Program) -> None:
    declared: set[str] = set()
    for resource in program.resources:
        assert resource.dependencies <= declared, resource.name
        declared.add(resource.urn)


def test_postgres_and_realtime_are_not_replaced_for_one_another(program: Program) -> None:
    """The containers know each other by name: an input from one to the other would replace both for either."""
    by_input = program.options("Container realtime").propertyDependencies
    depends = {urn for dependencies in by_input.values() for urn in dependencies.urns}
    assert depends == {program["Network network"].urn, program["PinnedImage realtime-image"].urn}
    of_image = program.options("PinnedImage realtime-image").propertyDependencies
    assert not [urn for dependencies in of_image.values() for urn in dependencies.urns]


@pytest.mark.parametrize("object_type", ["schema", "table"])
def test_grants_on_the_same_objects_come_one_after_another(object_type: str, program: Program) -> None:
    """Of two at once Postgres refuses one: `tuple concurrently updated`."""
    by_schema: dict[str, list[str]] = {}
    for grant in program.resources:
        if grant.kind == "Grant" and grant.inputs["objectType"] == object_type:
            by_schema.setdefault(grant.inputs["schema"], []).append(label_of(grant))
    assert {"public"} <= set(by_schema)
    for grants in by_schema.values():
        for earlier, later in pairwise(grants):
            assert program.waits_for(later, earlier)
