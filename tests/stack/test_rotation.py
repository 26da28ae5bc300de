"""Rotation of every secret on a stack that is up and has a client: the old one is refused, the client comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import docker
import httpx
import psycopg
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from settings import ROTATION
from tests.stack.conftest import Deployment, new_deployment, removed, unique_stack
from tests.stack.interruption import Moment, killed
from tests.stack.secret_search import leaked, leaked_by_logs, secret_values
from tests.stack.subscriber import subscribed
from tokens import bearer_token

CLOSE_SECONDS = 30


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A stack that is up, whose secrets the tests of this module change one after the other."""
    made = new_deployment(tmp_path_factory.mktemp("rotation"), stack=unique_stack("rotation"), settings={})
    try:
        made.up()
        yield made
    finally:
        removed(made)


def websocket_url(outputs: dict[str, Any]) -> str:
    """Where a client of the stack opens its websocket, with its key."""
    return f"{outputs['realtime_url']}/websocket?{urlencode({'apikey': outputs['anon_key'], 'vsn': '1.0.0'})}"


async def refusal(outputs: dict[str, Any]) -> int | None:
    """The HTTP status with which a client of the outputs is refused, None when it is let in."""
    try:
        async with connect(websocket_url(outputs)):
            return None
    except InvalidStatus as refused:
        return refused.response.status_code


async def receives_an_insert(deployment: Deployment, outputs: dict[str, Any]) -> bool:
    """Whether a subscriber with these outputs is told of an insert."""
    async with subscribed(outputs, "public.wells") as subscriber:
        with deployment.database() as connection:
            row = connection.execute("INSERT INTO public.wells (name) VALUES ('rotated') RETURNING id").fetchone()
        assert row is not None
        event = await subscriber.receives(lambda event: event.record.get("id") == row[0])
    return event.type == "INSERT"


def container_id(deployment: Deployment, part: str) -> str:
    return str(docker.from_env().containers.get(deployment.container_name(part)).id)


def assert_settled(deployment: Deployment) -> None:
    """Nothing is under way any more, and the world is as declared."""
    assert deployment.pulumi("config", "get", ROTATION, check=False).returncode != 0
    drift = deployment.drift()
    assert drift.returncode == 0, drift.stdout + drift.stderr


def test_a_client_of_the_old_keys_is_cut_off_and_comes_back_with_the_new_ones(deployment: Deployment) -> None:
    old = secret_values(deployment)

    async def watch() -> None:
        before = deployment.outputs()
        async with connect(websocket_url(before)) as client:
            rotated = await asyncio.to_thread(deployment.deploy, "rotate", "jwt")
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(client.recv(), CLOSE_SECONDS)
        after = deployment.outputs()
        assert after["anon_key"] != before["anon_key"]
        assert await refusal(before) in (401, 403)
        assert await receives_an_insert(deployment, after)
        printed = (rotated.stdout + rotated.stderr).encode()
        assert leaked(printed, old) + leaked(printed, secret_values(deployment)) == []

    asyncio.run(watch())
    assert_settled(deployment)


def test_a_password_whose_rotation_was_killed_in_the_middle_is_named_and_then_finished(deployment: Deployment) -> None:
    before, postgres = deployment.outputs(), container_id(deployment, "postgres")
    with deployment.database() as connection:
        connection.execute("INSERT INTO public.wells (name) VALUES ('from before')")
    half = Moment("Postgres knows the next password, the config does not", "postgres.password: Postgres knows")
    with killed(deployment, half, "rotate", "database-password"):
        drift = deployment.drift()
        assert drift.returncode == 7
        cure = f"make rotate SECRET=database-password STACK={deployment.stack}"
        assert f"the rotation of postgres.password is not finished; `{cure}` finishes it" in drift.stderr
        assert "the rotation of postgres.password is under way" in deployment.pulumi("preview").stdout
        deployment.up()
    after = deployment.outputs()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(
            host=before["database"]["host"],
            port=before["database"]["port"],
            dbname=before["database"]["name"],
            user=before["database"]["user"],
            password=before["database_password"],
        )
    assert after["anon_key"] == before["anon_key"]
    assert asyncio.run(receives_an_insert(deployment, before)), "the client's own key is the same"
    assert container_id(deployment, "postgres") == postgres
    with deployment.database() as connection:
        assert connection.execute("SELECT 1 FROM public.wells WHERE name = 'from before'").fetchone() is not None
    assert_settled(deployment)


def test_the_tenant_is_encrypted_with_the_next_key_and_still_works(deployment: Deployment) -> None:
    def encrypted() -> Any:
        with deployment.database() as connection:
            return connection.execute("SELECT jwt_secret FROM _realtime.tenants").fetchall()

    before = encrypted()
    deployment.deploy("rotate", "db-enc-key")
    assert encrypted() != before
    assert asyncio.run(receives_an_insert(deployment, deployment.outputs()))
    assert_settled(deployment)


def test_a_token_of_the_old_management_secret_is_refused(deployment: Deployment) -> None:
    config = secret_values(deployment)
    port = deployment.pulumi("config", "get", "realtime.host_port").stdout.strip()
    tenant = f"http://127.0.0.1:{port}/api/tenants/supabase-realtime"

    def answer(secret: str) -> int:
        return httpx.get(tenant, headers={"Authorization": f"Bearer {bearer_token(secret)}"}).status_code

    old = config["realtime.api_jwt_secret"]
    assert answer(old) == 200
    deployment.deploy("rotate", "management")
    assert answer(old) == 403
    assert answer(secret_values(deployment)["realtime.api_jwt_secret"]) == 200
    assert_settled(deployment)


def test_no_container_has_logged_a_secret_and_no_file_holds_one(deployment: Deployment) -> None:
    assert leaked_by_logs(deployment) == {}
    values = secret_values(deployment)
    files = [p for p in deployment.folder.rglob("*") if p.is_file() and ".venv" not in p.parts]
    found = {path.name: leaked(path.read_bytes(), values) for path in files}
    assert {name: names for name, names in found.items() if names} == {}
