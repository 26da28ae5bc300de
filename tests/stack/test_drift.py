"""What somebody changed by hand is named by `make drift`, and undone by `make up`."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import docker
import httpx
import pytest
import yaml
from docker.models.containers import Container

from tests.stack.conftest import Deployment, image
from tests.stack.engine_output import Step, steps
from tokens import bearer_token

DRIFTED = 7
"""The engine's exit code for `--expect-no-changes` when there are changes."""
TENANT = "supabase-realtime"
DATABASE_SECURITY = "TableSecurity public.wells"
HANDOVER = "PublicationHandover handover"
PUBLICATION = "Publication publication"
ALL_PRIVILEGES = "Grant anon-select-insert-update-delete-public"


# --- the hand that changes things


def sql(statement: LiteralString) -> Callable[[Deployment], None]:
    """Somebody runs a statement as the database's superuser."""

    def run(stack: Deployment) -> None:
        with stack.database() as connection:
            connection.execute(statement)

    return run


def setting(stack: Deployment, key: str) -> str:
    """A config value of the stack, decrypted."""
    return stack.pulumi("config", "get", key).stdout.strip()


@contextmanager
def management_api(stack: Deployment) -> Iterator[httpx.Client]:
    """Realtime's management API, as somebody with its secret reaches it."""
    token = bearer_token(setting(stack, "realtime.api_jwt_secret"))
    with httpx.Client(
        base_url=f"http://127.0.0.1:{setting(stack, 'realtime.host_port')}/api/tenants",
        headers={"Authorization": f"Bearer {token}"},
        timeout=30,
        trust_env=False,
    ) as client:
        yield client


def tenant_deleted(stack: Deployment) -> None:
    with management_api(stack) as api:
        api.delete(f"/{TENANT}").raise_for_status()


def tenant_put(*, settings: Mapping[str, Any] | None = None, **columns: Any) -> Callable[[Deployment], None]:
    """Somebody PUTs the tenant with another value in one of its columns, or of its connection's settings."""

    def put(stack: Deployment) -> None:
        with management_api(stack) as api:
            stored = api.get(f"/{TENANT}").raise_for_status().json()["data"]
            (extension,) = stored["extensions"]
            connection = {
                **extension["settings"],
                "db_host": stack.container_name("postgres"),
                "db_port": "5432",
                "db_name": "postgres",
                "db_user": "supabase_admin",
                "db_password": setting(stack, "postgres.password"),
                **(settings or {}),
            }
            api.put(
                f"/{TENANT}",
                json={
                    "tenant": {
                        "name": TENANT,
                        "external_id": TENANT,
                        "jwt_secret": setting(stack, "jwt.secret"),
                        "extensions": [{"type": extension["type"], "settings": connection}],
                        **columns,
                    }
                },
            ).raise_for_status()

    return put


def container(stack: Deployment, part: str) -> Container:
    return docker.from_env().containers.get(stack.container_name(part))


def realtime_stopped(stack: Deployment) -> None:
    container(stack, "realtime").stop()


def realtime_removed(stack: Deployment) -> None:
    container(stack, "realtime").remove(force=True)


def gateway_removed(stack: Deployment) -> None:
    container(stack, "gateway").remove(force=True)


def gateway_replaced(stack: Deployment) -> None:
    """Somebody removes Kong and runs another in its place, on its name and port, that asks for no key."""
    old = container(stack, "gateway")
    environment, port = old.attrs["Config"]["Env"], int(setting(stack, "gateway.port"))
    old.remove(force=True)
    service = {
        "name": "open",
        "url": f"http://{TENANT}:4000/socket/",
        "routes": [{"name": "open", "paths": ["/realtime/v1/"]}],
    }
    new = docker.from_env().containers.create(
        image("KONG_IMAGE"),
        name=stack.container_name("gateway"),
        environment=environment,
        network=stack.name,
        ports={"8000/tcp": ("127.0.0.1", port)},
    )
    new.put_archive("/etc/kong", archive("kong.yml", yaml.safe_dump({"_format_version": "2.1", "services": [service]})))
    new.start()


def archive(name: str, content: str) -> bytes:
    """A tar archive with one file that everybody may read."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content.encode()), 0o644
        tar.addfile(member, io.BytesIO(content.encode()))
    return packed.getvalue()


def alias_lost(stack: Deployment) -> None:
    """Somebody takes Realtime off the network and puts it back, without the name that the gateway calls."""
    network = docker.from_env().networks.get(stack.name)
    network.disconnect(container(stack, "realtime"))
    network.connect(container(stack, "realtime"))


# --- what drift must say


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A change made by hand; the steps with which drift names it, and words that it must show."""

    name: str
    make: Callable[[Deployment], None]
    steps: Mapping[str, Step]
    shows: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


def update(*properties: str) -> Step:
    return Step("update", set(properties))


REALTIME_ANEW = {
    "ContainerReadiness realtime-ready": update("container"),
    "NetworkAlias alias": update("container"),
    "RealtimeTenant tenant": update("server"),
}
"""What follows another container of Realtime: it is waited for, its alias is looked after, and its tenant warmed up."""
GATEWAY_ANEW = {"ContainerReadiness gateway-ready": update("container")}

FAULTS = [
    Fault(
        name="a policy dropped",
        make=sql("DROP POLICY wells_delete ON public.wells"),
        steps={DATABASE_SECURITY: update("policies")},
        shows=('+ name : "wells_delete"',),
    ),
    Fault(
        name="a policy's expression altered",
        make=sql("ALTER POLICY wells_select ON public.wells USING (active)"),
        steps={DATABASE_SECURITY: update("policies")},
        shows=('~ using : "active" => "true"',),
    ),
    Fault(
        name="a policy's roles altered",
        make=sql("ALTER POLICY wells_select ON public.wells TO anon"),
        steps={DATABASE_SECURITY: update("policies")},
        shows=('[0]: "anon" + [1]: "authenticated"',),
    ),
    Fault(
        name="a permissive policy added",
        make=sql("CREATE POLICY everything ON public.wells TO PUBLIC USING (true)"),
        steps={DATABASE_SECURITY: update("policies")},
        shows=('- name : "everything"',),
    ),
    Fault(
        name="row level security disabled",
        make=sql("ALTER TABLE public.wells DISABLE ROW LEVEL SECURITY"),
        steps={DATABASE_SECURITY: update("row_security")},
        shows=("~ row_security : false => true",),
    ),
    Fault(
        name="the replica identity changed",
        make=sql("ALTER TABLE public.wells REPLICA IDENTITY FULL"),
        steps={DATABASE_SECURITY: update("replica_identity")},
        shows=('~ replica_identity : "full" => "default"',),
    ),
    Fault(
        name="the table taken out of the publication",
        make=sql("ALTER PUBLICATION supabase_realtime DROP TABLE public.wells"),
        steps={PUBLICATION: update("tables")},
        shows=('+ [0]: "public.wells"',),
    ),
    Fault(
        name="the table published in part",
        make=sql("ALTER PUBLICATION supabase_realtime SET TABLE public.wells (id, name) WHERE (id > 100)"),
        steps={HANDOVER: update("undeclared_extent")},
        shows=('- [0]: "TABLE public.wells (id, name) WHERE (id > 100)"',),
    ),
    Fault(
        name="every table published",
        make=sql("DROP PUBLICATION supabase_realtime; CREATE PUBLICATION supabase_realtime FOR ALL TABLES"),
        steps={HANDOVER: update("undeclared_extent"), PUBLICATION: update("publishParams", "tables")},
        shows=('- [0]: "ALL TABLES"',),
    ),
    Fault(
        name="the publication dropped",
        make=sql("DROP PUBLICATION supabase_realtime"),
        steps={PUBLICATION: Step("create")},
    ),
    Fault(
        name="the publication's events changed",
        make=sql("ALTER PUBLICATION supabase_realtime SET (publish = 'insert, delete')"),
        steps={PUBLICATION: update("publishParams")},
        shows=('+ [1]: "update"',),
    ),
    Fault(
        name="SELECT revoked",
        make=sql("REVOKE SELECT ON public.wells FROM anon"),
        steps={ALL_PRIVILEGES: update("privileges")},
        shows=('+ [0]: "SELECT"',),
    ),
    Fault(
        name="TRUNCATE granted to anon",
        make=sql("GRANT TRUNCATE ON public.wells TO anon"),
        steps={DATABASE_SECURITY: update("undeclared_privileges"), ALL_PRIVILEGES: update("privileges")},
        shows=('- anon: [ - [0]: "TRUNCATE"',),
    ),
    Fault(
        name="usage of the schema revoked",
        make=sql("REVOKE USAGE ON SCHEMA public FROM anon"),
        steps={"Grant anon-usage-public": update("privileges")},
        shows=('+ [0]: "USAGE"',),
    ),
    Fault(
        name="the tenant deleted",
        make=tenant_deleted,
        steps={"RealtimeTenant tenant": Step("create")},
    ),
    Fault(
        name="the tenant's limit changed",
        make=tenant_put(max_concurrent_users=3),
        steps={"RealtimeTenant tenant": update("max_concurrent_users")},
        shows=("~ max_concurrent_users : 3 => 200",),
    ),
    Fault(
        name="the tenant's poll interval changed",
        make=tenant_put(settings={"poll_interval_ms": 5000}),
        steps={"RealtimeTenant tenant": update("poll_interval_ms")},
        shows=("~ poll_interval_ms : 5000 => 25",),
    ),
    Fault(
        name="the tenant's secret changed",
        make=tenant_put(jwt_secret="a-secret-of-somebody-else-of-32-bytes"),
        steps={"RealtimeTenant tenant": update("changed_secrets")},
        shows=('- [0]: "jwt_secret"',),
    ),
    Fault(
        name="Realtime's container stopped",
        make=realtime_stopped,
        steps={"Container realtime": Step("replace", {"mustRun", "ports"}), **REALTIME_ANEW},
        shows=("~ mustRun: false => true",),
    ),
    Fault(
        name="Realtime's container removed",
        make=realtime_removed,
        steps={"Container realtime": Step("create"), **REALTIME_ANEW, "NetworkAlias alias": Step("create")},
    ),
    Fault(
        name="Kong's container removed",
        make=gateway_removed,
        steps={"Container gateway": Step("create"), **GATEWAY_ANEW},
    ),
    Fault(
        name="Kong's container replaced by one with another config",
        make=gateway_replaced,
        steps={"Container gateway": Step("create"), **GATEWAY_ANEW},
    ),
    Fault(
        name="Realtime's network alias lost",
        make=alias_lost,
        steps={"NetworkAlias alias": update("alias")},
        shows=('+ alias : "supabase-realtime"',),
    ),
]


def output(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def test_a_stack_that_nobody_touched_has_no_drift(live: Deployment) -> None:
    drift = live.drift()
    assert drift.returncode == 0, output(drift)
    assert steps(drift.stdout) == {}


def test_up_again_changes_nothing_whether_it_asks_the_world_or_only_the_state(live: Deployment) -> None:
    running = {part: container(live, part).id for part in ("postgres", "realtime", "gateway")}
    for asked in ((), ("--refresh", "--run-program")):
        live.pulumi("up", "--yes", "--skip-preview", "--expect-no-changes", *asked)
    assert {part: container(live, part).id for part in running} == running


@pytest.fixture
def nothing_displaced(live: Deployment) -> Iterator[None]:
    """Removes the containers that `up` moved out of the way of its own."""
    yield
    for moved in docker.from_env().containers.list(all=True, filters={"name": f"^/{live.name}-.+-displaced-"}):
        moved.remove(force=True)


@pytest.mark.usefixtures("nothing_displaced")
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_drift_names_and_up_repairs(fault: Fault, live: Deployment) -> None:
    try:
        fault.make(live)
        drift = live.drift()
    finally:
        repair = live.up(check=False)
    assert drift.returncode == DRIFTED, output(drift)
    assert steps(drift.stdout) == fault.steps, drift.stdout
    shown = " ".join(drift.stdout.split())
    for words in fault.shows:
        assert words in re.sub(r" +:", " :", shown), drift.stdout
    assert repair.returncode == 0, output(repair)
    again = live.drift()
    assert again.returncode == 0, output(again)
