"""`make up` ends in a stack that delivers changes, to whom the policies let, on both versions of Realtime."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import docker
import httpx
import jwt
import psycopg
import pytest
from psycopg import sql

from tests.stack.conftest import WELLS, Deployment, image, new_deployment, removed, unique_stack
from tests.stack.engine_output import changed_resources, steps
from tests.stack.images import NEWEST, require_image
from tests.stack.secret_search import leaked_by_logs
from tests.stack.subscriber import Event, subscribed, user_token

PLAIN_POSTGRES = os.environ.get("POSTGRES_IMAGE_PLAIN")

NOTES = {"table": "public.staff_notes", "read": ["authenticated"], "write": ["authenticated"]}
READINGS = {
    "table": "public.readings",
    "policies": [
        {"name": "published readings", "command": "select", "roles": ["anon"], "using": "published"},
        {"name": "all readings", "command": "select", "roles": ["authenticated"], "using": "true"},
    ],
}
MIGRATION = """
CREATE TABLE public.staff_notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL);
CREATE TABLE public.readings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, value integer NOT NULL, published boolean NOT NULL
);
"""


@pytest.fixture(scope="module", params=["pinned", "newest"])
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A stack that is up, with a public table, one for staff alone, and one of which the public sees some rows."""
    realtime = image("REALTIME_IMAGE")
    if request.param == "newest":
        require_image(NEWEST, "REALTIME_IMAGE_NEWEST")
        realtime = NEWEST
    made = new_deployment(
        tmp_path_factory.mktemp("up") / request.param,
        stack=unique_stack(f"up-{request.param}"),
        settings={"tables": [WELLS, NOTES, READINGS]},
    )
    made.environ["REALTIME_IMAGE"] = realtime
    (made.folder / "sql" / "migrations" / "0002_staff.sql").write_text(MIGRATION)
    try:
        made.up()
        yield made
    finally:
        removed(made)


def container_ids(deployment: Deployment) -> set[str]:
    """Which containers the stack runs."""
    engine = docker.from_env()
    return {engine.containers.get(deployment.container_name(p)).id for p in ("postgres", "realtime", "gateway")}


def inserted(connection: psycopg.Connection[tuple[Any, ...]], table: str, **columns: Any) -> int:
    """Insert a row as the superuser; its id."""
    row = connection.execute(
        sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING id").format(
            sql.Identifier(*table.split(".")),
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            sql.SQL(", ").join(map(sql.Literal, columns.values())),
        )
    ).fetchone()
    assert row is not None
    return int(row[0])


def setting(deployment: Deployment, key: str) -> str:
    """A config value of the stack, decrypted."""
    return deployment.pulumi("config", "get", key).stdout.strip()


def staff_token(deployment: Deployment) -> str:
    """The token of a user who is logged in."""
    return user_token(deployment.outputs(), setting(deployment, "jwt.secret"))


# --- what `up` tells


def test_the_outputs_are_what_a_client_needs(deployment: Deployment) -> None:
    outputs = deployment.outputs()
    port = setting(deployment, "gateway.port")
    secret = setting(deployment, "jwt.secret")
    assert outputs["url"] == f"http://127.0.0.1:{port}"
    assert outputs["realtime_url"] == f"ws://127.0.0.1:{port}/realtime/v1"
    assert outputs["rest_url"] == f"http://127.0.0.1:{port}/realtime/v1/api"
    assert outputs["tenant"] == "supabase-realtime"
    anon = jwt.decode(outputs["anon_key"], secret, algorithms=["HS256"])
    service = jwt.decode(outputs["service_role_key"], secret, algorithms=["HS256"])
    assert (anon["role"], service["role"]) == ("anon", "service_role")
    assert datetime.fromisoformat(outputs["anon_key_expires"]).timestamp() == anon["exp"]
    assert outputs["tables"] == [
        {"table": "public.wells", "read": ["anon", "authenticated"], "write": ["anon", "authenticated"]}
        | {"events": ["insert", "update", "delete"]},
        {"table": "public.staff_notes", "read": ["authenticated"], "write": ["authenticated"]}
        | {"events": ["insert", "update", "delete"]},
        {"table": "public.readings", "read": ["anon", "authenticated"], "write": []}
        | {"events": ["insert", "update", "delete"]},
    ]


def test_the_database_is_reached_with_the_outputs(deployment: Deployment) -> None:
    with deployment.database() as connection:
        assert connection.execute("SELECT current_user").fetchone() == (deployment.outputs()["database"]["user"],)


def test_only_the_gateway_listens_beyond_loopback_and_only_when_told(deployment: Deployment) -> None:
    engine = docker.from_env()
    published = {
        binding["HostIp"]
        for part in ("postgres", "realtime", "gateway")
        for bindings in engine.containers.get(deployment.container_name(part)).ports.values()
        for binding in bindings or ()
    }
    assert published == {"127.0.0.1"}


def test_up_again_changes_nothing(deployment: Deployment) -> None:
    before = container_ids(deployment)
    again = deployment.up()
    assert changed_resources(again.stdout) == []
    assert container_ids(deployment) == before


def test_pulumi_by_hand_works_as_well_and_changes_nothing(deployment: Deployment) -> None:
    deployment.pulumi("preview", "--expect-no-changes")
    by_hand = deployment.pulumi("up", "--yes", "--skip-preview")
    assert changed_resources(by_hand.stdout) == []


def test_a_fresh_stack_has_no_drift(deployment: Deployment) -> None:
    drift = deployment.drift()
    assert drift.returncode == 0, drift.stdout + drift.stderr


# --- a subscriber


def test_an_insert_an_update_and_a_delete_reach_a_subscriber(deployment: Deployment) -> None:
    async def watch() -> list[Event]:
        async with subscribed(deployment.outputs(), "public.wells") as subscriber:
            with deployment.database() as connection:
                well = inserted(connection, "public.wells", name="deep", depth_m=12.5)
                insert = await subscriber.receives(lambda event: event.record.get("id") == well)
                connection.execute("UPDATE public.wells SET active = false WHERE id = %s", [well])
                update = await subscriber.receives(lambda event: event.type == "UPDATE")
                connection.execute("DELETE FROM public.wells WHERE id = %s", [well])
                delete = await subscriber.receives(lambda event: event.type == "DELETE")
        assert delete.old_record["id"] == well
        return [insert, update]

    insert, update = asyncio.run(watch())
    assert insert.type == "INSERT"
    assert insert.table == "public.wells"
    assert (insert.record["name"], float(insert.record["depth_m"]), insert.record["active"]) == ("deep", 12.5, True)
    assert update.record["active"] is False


def test_a_table_that_only_staff_reads_stays_hidden_from_the_public(deployment: Deployment) -> None:
    outputs, token = deployment.outputs(), staff_token(deployment)

    async def watch() -> tuple[int, Event, list[Event]]:
        async with (
            subscribed(outputs, "public.staff_notes", "public.wells", access_token=token) as staff,
            subscribed(outputs, "public.staff_notes", "public.wells") as public,
        ):
            with deployment.database() as connection:
                note = inserted(connection, "public.staff_notes", note="pump 3 is failing")
                connection.execute("UPDATE public.staff_notes SET note = note || '!' WHERE id = %s", [note])
                # Changes come in the order of their commits: after this one, the note would have come.
                last = inserted(connection, "public.wells", name="after the note")
                await public.receives(lambda event: event.record.get("id") == last)
                seen = await staff.receives(lambda event: event.table == "public.staff_notes")
                await staff.receives(lambda event: event.record.get("id") == last)
        return note, seen, public.events

    note, seen, public_events = asyncio.run(watch())
    assert seen.record == {"id": note, "note": "pump 3 is failing"}
    assert [event for event in public_events if "pump" in str(event)] == []
    assert [event for event in public_events if event.table == "public.staff_notes" and event.record] == []


def test_a_policy_decides_row_by_row_what_the_public_sees(deployment: Deployment) -> None:
    outputs, token = deployment.outputs(), staff_token(deployment)

    async def watch() -> tuple[list[int], list[int]]:
        async with (
            subscribed(outputs, "public.readings", access_token=token) as staff,
            subscribed(outputs, "public.readings") as public,
        ):
            with deployment.database() as connection:
                inserted(connection, "public.readings", value=1, published=False)
                inserted(connection, "public.readings", value=2, published=True)
                inserted(connection, "public.readings", value=3, published=False)
                inserted(connection, "public.readings", value=4, published=True)
            for subscriber in (staff, public):
                await subscriber.receives(lambda event: event.record.get("value") == 4)
        return values(staff.events), values(public.events)

    def values(events: list[Event]) -> list[int]:
        return [event.record["value"] for event in events]

    seen_by_staff, seen_by_public = asyncio.run(watch())
    assert seen_by_staff == [1, 2, 3, 4]
    assert seen_by_public == [2, 4]


# --- what is closed


def test_without_a_valid_key_the_gateway_refuses(deployment: Deployment) -> None:
    path = deployment.outputs()["url"] + "/realtime/v1/websocket"
    assert httpx.get(path).status_code == 401
    assert httpx.get(path, params={"apikey": "not-a-key"}).status_code == 401


@pytest.mark.parametrize("key", ["anon_key", "service_role_key"])
def test_no_client_key_opens_the_management_of_tenants(deployment: Deployment, key: str) -> None:
    outputs = deployment.outputs()
    bearer = {"Authorization": f"Bearer {outputs[key]}", "apikey": outputs[key]}
    through_the_gateway = httpx.get(outputs["rest_url"] + "/tenants/supabase-realtime", headers=bearer)
    assert through_the_gateway.status_code == 403
    port = setting(deployment, "realtime.host_port")
    on_loopback = httpx.get(f"http://127.0.0.1:{port}/api/tenants/supabase-realtime", headers=bearer)
    assert on_loopback.status_code == 403


def test_no_container_has_logged_a_secret(deployment: Deployment) -> None:
    assert leaked_by_logs(deployment) == {}


# --- other servers


def test_a_plain_postgres_gets_the_roles_it_lacks(fresh: Deployment) -> None:
    if PLAIN_POSTGRES is None:
        pytest.skip("POSTGRES_IMAGE_PLAIN names no plain Postgres with wal2json")
    require_image(PLAIN_POSTGRES, "POSTGRES_IMAGE_PLAIN")
    fresh.environ["POSTGRES_IMAGE"] = PLAIN_POSTGRES
    fresh.up()
    with fresh.database() as connection:
        roles = connection.execute(
            "SELECT rolname, rolbypassrls FROM pg_roles "
            "WHERE rolname IN ('anon', 'authenticated', 'service_role') ORDER BY 1"
        ).fetchall()
    assert roles == [("anon", False), ("authenticated", False), ("service_role", True)]
    assert fresh.drift().returncode == 0


def derived_image(base: str, name: str, *commands: str) -> str:
    """An image of this test's own, with the name, made from another by the commands of a Dockerfile."""
    dockerfile = "\n".join([f"FROM {base}", *commands]).encode()
    docker.from_env().images.build(fileobj=io.BytesIO(dockerfile), tag=name, rm=True)
    return name


@pytest.fixture
def own_images() -> Iterator[str]:
    """The repository of the images that a test makes, which are gone afterwards."""
    repository = unique_stack("supabase-realtime-test")
    yield repository
    engine = docker.from_env()
    tags = [tag for made in engine.images.list(repository) for tag in made.tags]
    for own in (tag for tag in tags if tag.startswith(f"{repository}:")):
        engine.images.remove(own)


def assert_refused(deployment: Deployment, *words: str) -> None:
    """`make up` and `pulumi preview` refuse, with the words, and every container stays."""
    before = container_ids(deployment)
    by_make, by_hand = deployment.up(check=False), deployment.pulumi("preview", check=False)
    assert by_make.returncode == 1, by_make.stdout + by_make.stderr
    assert by_hand.returncode != 0
    for word in words:
        assert word in by_make.stderr
        assert word in by_hand.stdout + by_hand.stderr
    assert container_ids(deployment) == before


def test_images_are_pinned_and_realtime_is_upgraded_in_place_and_not_taken_back(
    own_images: str, fresh: Deployment
) -> None:
    """One stack through its life: v2.32.12 with a subscriber, a moved tag, the newest, and what must be refused."""
    require_image(NEWEST, "REALTIME_IMAGE_NEWEST")
    engine = docker.from_env()
    engine.images.get(image("KONG_IMAGE")).tag(own_images, "kong")
    fresh.environ["KONG_IMAGE"] = f"{own_images}:kong"
    oldest = fresh.environ["REALTIME_IMAGE"]
    fresh.up()
    outputs = fresh.outputs()
    with fresh.database() as connection:
        well = inserted(connection, "public.wells", name="from before the upgrade")

    # A tag that names another image since is drift, and the next update goes over to that image.
    derived_image(image("KONG_IMAGE"), f"{own_images}:kong", "LABEL moved=yes")
    moved = fresh.drift()
    assert moved.returncode == 7
    named = {name: step.operation for name, step in steps(moved.stdout).items() if "image" in name or "Cont" in name}
    assert named["PinnedImage gateway-image"] == "update"
    assert {name for name, operation in named.items() if operation == "replace"} == {"Container gateway"}

    async def upgraded_under_a_subscriber() -> subprocess.CompletedProcess[str]:
        async with subscribed(outputs, "public.wells") as before:
            with fresh.database() as connection:
                inserted(connection, "public.wells", name="to the old version")
            await before.receives(lambda event: event.record.get("name") == "to the old version")
            fresh.environ["REALTIME_IMAGE"] = NEWEST
            done = await asyncio.to_thread(fresh.up)
        async with subscribed(outputs, "public.wells") as after:
            with fresh.database() as connection:
                inserted(connection, "public.wells", name="to the new version")
            await after.receives(lambda event: event.record.get("name") == "to the new version")
        return done

    upgraded = asyncio.run(upgraded_under_a_subscriber())
    assert sorted(changed_resources(upgraded.stdout, kind="docker:index:Container")) == ["gateway", "realtime"]
    assert fresh.outputs()["anon_key"] == outputs["anon_key"]
    with fresh.database() as connection:
        assert connection.execute("SELECT name FROM public.wells WHERE id = %s", [well]).fetchone() is not None
    running = {part: engine.containers.get(fresh.container_name(part)).image.id for part in ("realtime", "gateway")}
    assert running == {
        "realtime": engine.images.get(NEWEST).id,
        "gateway": engine.images.get(f"{own_images}:kong").id,
    }
    assert fresh.drift().returncode == 0

    fresh.environ["REALTIME_IMAGE"] = oldest
    assert_refused(fresh, "realtime.image: Realtime 2.32.12 cannot use this database any more: 2.101.0 or newer")
    fresh.environ["REALTIME_IMAGE"] = NEWEST

    postgres = fresh.environ["POSTGRES_IMAGE"]
    fresh.environ["POSTGRES_IMAGE"] = derived_image(
        postgres,
        f"{own_images}:postgres",
        "RUN printf '#!/bin/sh\\necho \"postgres (PostgreSQL) 17.2\"\\n' > /usr/local/sbin/postgres "
        "&& chmod +x /usr/local/sbin/postgres",
    )
    assert_refused(fresh, "is Postgres 17, and the data in volume", "is of Postgres 15, which it cannot read")
    fresh.environ["POSTGRES_IMAGE"] = postgres
    assert fresh.drift().returncode == 0
