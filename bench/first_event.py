"""From nothing to the first event: `pulumi up` against a plain script."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import psycopg
import yaml

from bench.measure import measure
from bench.projects import PROJECT, STACK_LABEL, Project, development_config, remove_docker_objects, stack_project
from bench.report import Result, against, ratio, seconds
from components.database import PUBLICATION
from components.external_postgres import DatabaseAddress
from components.gateway import gateway_environment, kong_config
from components.network import LOOPBACK
from components.postgres import CAPABILITIES, DATA_FOLDER, FIRST_START, SQL
from components.postgres import PORT as POSTGRES_PORT
from components.realtime import SLOT, realtime_environment
from doctor.subscription import Target, subscribed
from providers.tenant import LIMITS, tenant_document
from settings import ApiRole, Settings
from tokens import api_key, bearer_token, public_keys, tenant_secret

ROUNDS = 5
BOUND = 1.5
BY_HAND = PROJECT / "bench" / "by_hand.py"
SUBSCRIBE_SECONDS = 60.0
EVENT_SECONDS = 30.0
SCHEMA = """
CREATE SCHEMA IF NOT EXISTS _realtime AUTHORIZATION {user};
CREATE SCHEMA IF NOT EXISTS realtime AUTHORIZATION {user};
GRANT USAGE ON SCHEMA public, realtime TO anon, authenticated, service_role;
{migrations}
REVOKE ALL ON public.wells FROM anon, authenticated, service_role;
ALTER TABLE public.wells ENABLE ROW LEVEL SECURITY;
CREATE POLICY wells_select ON public.wells FOR SELECT TO anon, authenticated USING (true);
CREATE POLICY wells_insert ON public.wells FOR INSERT TO anon, authenticated WITH CHECK (true);
CREATE POLICY wells_update ON public.wells FOR UPDATE TO anon, authenticated USING (true) WITH CHECK (true);
CREATE POLICY wells_delete ON public.wells FOR DELETE TO anon, authenticated USING (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON public.wells TO anon, authenticated, service_role;
DROP PUBLICATION IF EXISTS {publication};
CREATE PUBLICATION {publication} FOR TABLE public.wells;
"""
"""What the development stack declares, as a person would write it."""


def run(work: Path, rounds: int) -> Result:
    """Alternate the two, each from no container, network or volume to one event at a subscriber."""
    client = docker.from_env()
    project = stack_project(work / "stack", program=PROJECT / "__main__.py", config=development_config())
    settings = project.settings()
    script = work / "by-hand"
    write_script_files(script, settings)
    empty_state = work / "empty-state"
    shutil.copytree(project.state, empty_state)

    def pulumi_up() -> None:
        project.up()

    def by_hand() -> None:
        measure([sys.executable, str(BY_HAND), str(script)], cwd=script, environ=project.engine.environ)

    made: dict[str, list[float]] = {"pulumi up": [], "script": []}
    first: dict[str, list[float]] = {"pulumi up": [], "script": []}
    ways: tuple[tuple[str, Callable[[], None]], ...] = (("pulumi up", pulumi_up), ("script", by_hand))
    for _ in range(rounds):
        for way, make in ways:
            remove_docker_objects(client, project.stack)
            _restore(project, empty_state)
            try:
                started = time.perf_counter()
                make()
                made[way].append(time.perf_counter() - started)
                asyncio.run(first_event(settings))
                first[way].append(time.perf_counter() - started)
            finally:
                remove_docker_objects(client, project.stack)
    found = ratio(first["pulumi up"], first["script"])
    return Result(
        name="first-event",
        command=f"python -m bench first-event --rounds {rounds}",
        columns=("from nothing, seconds", "until it returns", "until the first event", "ratio"),
        rows=(
            ("plain script", seconds(made["script"]), seconds(first["script"]), "1"),
            ("`pulumi up`", seconds(made["pulumi up"]), seconds(first["pulumi up"]), against(found, BOUND)),
        ),
    )


def _restore(project: Project, empty_state: Path) -> None:
    shutil.rmtree(project.state)
    shutil.copytree(empty_state, project.state)


async def first_event(settings: Settings) -> None:
    """Subscribe through the gateway as a browser does, insert one row as anon, and have its event."""
    target = Target(
        url=f"ws://{LOOPBACK}:{settings.gateway.port}/realtime/v1",
        key=api_key(settings.jwt, ApiRole.ANON),
        schema="public",
        table="wells",
    )
    name = secrets.token_hex(8)
    async with subscribed(target, timeout=SUBSCRIBE_SECONDS) as subscription:
        event = subscription.expect(lambda change: change.record.get("name") == name)
        async with await psycopg.AsyncConnection.connect(**connection_parameters(settings)) as connection:
            await connection.execute("SET LOCAL ROLE anon")
            await connection.execute("INSERT INTO public.wells (name) VALUES (%s)", [name])
        await asyncio.wait_for(event, EVENT_SECONDS)


def connection_parameters(settings: Settings) -> dict[str, Any]:
    """How this machine reaches the stack's Postgres."""
    return {
        "host": LOOPBACK,
        "port": settings.postgres.host_port,
        "dbname": settings.postgres.database,
        "user": settings.postgres.user,
        "password": settings.postgres.password.get_secret_value(),
    }


def write_script_files(folder: Path, settings: Settings) -> None:
    """What the author of the script would have written by hand, with this stack's settings and secrets."""
    folder.mkdir()
    postgres, realtime = settings.postgres, settings.realtime
    address = f"{settings.name}-postgres"
    password = postgres.password.get_secret_value()
    parameters = {
        "name": settings.name,
        "label": f"{STACK_LABEL}={settings.stack}",
        "database": connection_parameters(settings),
        "postgres_image": postgres.image,
        "postgres_memory": postgres.memory,
        "postgres_capabilities": CAPABILITIES,
        "tenant": realtime.tenant,
        "api_token": bearer_token(realtime.api_jwt_secret.get_secret_value()),
        "realtime_image": realtime.image,
        "realtime_memory": realtime.memory,
        "realtime_nofile": realtime.rlimit_nofile,
        "realtime_port": realtime.host_port,
        "gateway_image": settings.gateway.image,
        "gateway_memory": settings.gateway.memory,
        "gateway_port": settings.gateway.port,
    }
    tenant = tenant_document(
        {
            "external_id": realtime.tenant,
            "jwt_secret": tenant_secret(settings.jwt),
            "jwt_jwks": public_keys(settings.jwt),
            **{limit: getattr(realtime, limit) for limit in LIMITS},
            "db_host": address,
            "db_port": POSTGRES_PORT,
            "db_name": postgres.database,
            "db_user": postgres.user,
            "db_password": password,
            "region": "us-east-1",
            "poll_interval_ms": realtime.poll_interval_ms,
            "poll_max_changes": realtime.poll_max_changes,
            "poll_max_record_bytes": 1_048_576,
            "publication": PUBLICATION,
            "slot_name": SLOT,
            "ssl_enforced": False,
        }
    )
    keys = {role: api_key(settings.jwt, role) for role in (ApiRole.ANON, ApiRole.SERVICE_ROLE)}
    migrations = "\n".join(file.read_text() for file in sorted((PROJECT / (settings.migrations or "")).glob("*.sql")))
    (folder / "parameters.json").write_text(json.dumps(parameters))
    (folder / "tenant.json").write_text(json.dumps(tenant))
    (folder / "kong.yml").write_text(
        yaml.safe_dump(kong_config(settings.gateway, upstream=realtime.tenant, keys=keys), sort_keys=False)
    )
    (folder / "kong.yml").chmod(0o644)
    for file, source in FIRST_START.items():
        shutil.copy(SQL / source, folder / file)
    (folder / "schema.sql").write_text(
        SCHEMA.format(user=postgres.user, publication=PUBLICATION, migrations=migrations)
    )
    _write_environment(
        folder / "postgres.env",
        {
            "POSTGRES_USER": postgres.user,
            "POSTGRES_PASSWORD": password,
            "POSTGRES_DB": postgres.database,
            "PGDATA": DATA_FOLDER,
        },
    )
    _write_environment(
        folder / "realtime.env",
        realtime_environment(realtime, postgres=postgres, address=DatabaseAddress(address, POSTGRES_PORT)),
    )
    _write_environment(folder / "kong.env", gateway_environment(settings.gateway))


def _write_environment(path: Path, values: dict[str, str]) -> None:
    path.write_text("".join(f"{key}={value}\n" for key, value in values.items()))
