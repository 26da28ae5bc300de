"""The three containers: what they run, what they are told, who reaches them and what they may use up."""

from __future__ import annotations

from pathlib import Path

import pytest

from plan.program import PROJECT, Resource, Secret
from tests.program.recorder import SECRETS, Program, label_of, overridden, variables

CONTAINERS = ("postgres", "realtime", "gateway")
PORTS = {
    "dev": {"postgres": ("127.0.0.1", 54322), "realtime": ("127.0.0.1", 4001), "gateway": ("127.0.0.1", 8000)},
    "staging": {"postgres": ("127.0.0.1", 54332), "realtime": ("127.0.0.1", 4011), "gateway": ("0.0.0.0", 8010)},
    "prod": {"postgres": ("127.0.0.1", 54322), "realtime": ("127.0.0.1", 4001), "gateway": ("127.0.0.1", 8000)},
}
INTERNAL_PORTS = {"postgres": 5432, "realtime": 4000, "gateway": 8000}
MEMORY = {
    "dev": {"postgres": 1024, "realtime": 512, "gateway": 256},
    "staging": {"postgres": 1024, "realtime": 512, "gateway": 256},
    "prod": {"postgres": 4096, "realtime": 1024, "gateway": 512},
}
LIMITS = {
    "dev": {"users": "200", "events": "100", "bytes": "100000", "files": "10000"},
    "staging": {"users": "200", "events": "100", "bytes": "100000", "files": "10000"},
    "prod": {"users": "2000", "events": "1000", "bytes": "1000000", "files": "65536"},
}
NEWER_VARIABLES = {
    "LOG_LEVEL": "info",
    "DB_SSL": "false",
    "DISABLE_HEALTHCHECK_LOGGING": "true",
    "REALTIME_IP_VERSION": "ipv4",
}


@pytest.fixture(params=CONTAINERS)
def container(request: pytest.FixtureRequest, program: Program) -> Resource:
    """A container of a stack; a test that takes it runs once for each."""
    return program[f"Container {request.param}"]


def test_postgres_gets_these_variables_all_secret(program: Program) -> None:
    assert variables(program["Container postgres"]) == Secret(
        {
            "POSTGRES_USER": "supabase_admin",
            "POSTGRES_PASSWORD": SECRETS["postgres.password"],
            "POSTGRES_DB": "postgres",
            "PGDATA": "/var/lib/postgresql/data",
        }
    )


def test_realtime_gets_these_variables_all_secret(stack: str, program: Program) -> None:
    limits = LIMITS[stack]
    assert variables(program["Container realtime"]) == Secret(
        {
            "APP_NAME": "realtime",
            "PORT": "4000",
            "DB_HOST": f"supabase-realtime-{stack}-postgres",
            "DB_PORT": "5432",
            "DB_USER": "supabase_admin",
            "DB_PASSWORD": SECRETS["postgres.password"],
            "DB_NAME": "postgres",
            # Not `realtime`: Realtime would not find its tenants.
            "DB_AFTER_CONNECT_QUERY": "SET search_path TO _realtime",
            "DB_ENC_KEY": SECRETS["realtime.db_enc_key"],
            "API_JWT_SECRET": SECRETS["realtime.api_jwt_secret"],
            "METRICS_JWT_SECRET": SECRETS["realtime.metrics_jwt_secret"],
            "SECRET_KEY_BASE": SECRETS["realtime.secret_key_base"],
            # Else it would delete and remake a tenant at every start.
            "SEED_SELF_HOST": "false",
            "RLIMIT_NOFILE": limits["files"],
            # Else a newer Realtime dies with every restart of Postgres.
            "CLUSTER_STRATEGIES": "DNS",
            "DNS_NODES": "''",
            "ERL_AFLAGS": "-proto_dist inet_tcp -logger level info -tzdata autoupdate disabled",
            "TENANT_MAX_CONCURRENT_USERS": limits["users"],
            "TENANT_MAX_EVENTS_PER_SECOND": limits["events"],
            "TENANT_MAX_BYTES_PER_SECOND": limits["bytes"],
            "TENANT_MAX_CHANNELS_PER_CLIENT": "100",
            "TENANT_MAX_JOINS_PER_SECOND": "100",
        }
    )


def test_kong_gets_these_variables_none_secret(stack: str, program: Program) -> None:
    assert variables(program["Container gateway"]) == {
        "KONG_DATABASE": "off",
        "KONG_DECLARATIVE_CONFIG": "/etc/kong/kong.yml",
        "KONG_PROXY_LISTEN": "0.0.0.0:8000",
        "KONG_STATUS_LISTEN": "0.0.0.0:8100",
        "KONG_ADMIN_LISTEN": "off",
        "KONG_PLUGINS": "acl,cors,key-auth,prometheus,request-termination",
        "KONG_NGINX_WORKER_PROCESSES": "2" if stack == "prod" else "1",
        # Else open websockets would hold a stopping Kong until it is killed.
        "KONG_NGINX_MAIN_WORKER_SHUTDOWN_TIMEOUT": "3s",
        "KONG_DNS_ORDER": "LAST,A,CNAME",
        "KONG_DNS_VALID_TTL": "2",
        "KONG_DNS_STALE_TTL": "0",
        # $uri has no query, and the query has the client's key.
        "KONG_NGINX_HTTP_LOG_FORMAT": "keyless '$remote_addr [$time_local] $request_method $uri $status $bytes_sent'",
        "KONG_PROXY_ACCESS_LOG": "/dev/stdout keyless",
        "KONG_PROXY_ERROR_LOG": "/dev/stderr",
        "KONG_STATUS_ERROR_LOG": "/dev/stderr",
        "KONG_LOG_LEVEL": "crit",
        "KONG_NGINX_MAIN_ERROR_LOG": "/dev/stderr error",
    }


@pytest.mark.parametrize(
    ("image", "added"),
    [
        ("supabase/realtime:v2.32.12", set()),
        ("supabase/realtime:v2.33.68", set()),
        ("supabase/realtime:v2.33.69", {"LOG_LEVEL"}),
        ("supabase/realtime:v2.41.6", {"LOG_LEVEL"}),
        ("supabase/realtime:v2.41.7", {"LOG_LEVEL", "DB_SSL"}),
        ("supabase/realtime:v2.71.5", {"LOG_LEVEL", "DB_SSL", "DISABLE_HEALTHCHECK_LOGGING"}),
        ("supabase/realtime:v2.129.8", set(NEWER_VARIABLES)),
        ("registry.example.com:5000/realtime:2.129.8", set(NEWER_VARIABLES)),
        # A version that cannot be told from the tag gets what every version takes.
        ("registry.example.com/realtime:main", set()),
    ],
)
def test_a_newer_realtime_gets_what_it_knows_beyond_the_oldest(image: str, added: set[str], dev: Program) -> None:
    newer = overridden(realtime__image=image)
    assert variables(newer["Container realtime"]).value == variables(dev["Container realtime"]).value | {
        name: NEWER_VARIABLES[name] for name in added
    }


def test_the_images_are_the_pinned_ones(program: Program) -> None:
    assert {name: program[f"Container {name}"].inputs["image"] for name in CONTAINERS} == {
        "postgres": "supabase/postgres:15.8.1.085",
        "realtime": "supabase/realtime:v2.32.12",
        "gateway": "kong:2.8.1",
    }


@pytest.mark.parametrize(
    ("variable", "container"),
    [("POSTGRES_IMAGE", "postgres"), ("REALTIME_IMAGE", "realtime"), ("KONG_IMAGE", "gateway")],
)
def test_an_image_is_overridden_for_one_run(variable: str, container: str, dev: Program) -> None:
    one_run = overridden({variable: "mirror.example.com/image:v3.2.1"})
    images = {name: one_run[f"Container {name}"].inputs["image"] for name in CONTAINERS}
    usual = {name: dev[f"Container {name}"].inputs["image"] for name in CONTAINERS}
    assert images == usual | {container: "mirror.example.com/image:v3.2.1"}


def test_only_the_gateway_is_reachable_from_other_machines_and_only_when_told(stack: str, program: Program) -> None:
    published = {}
    for name in CONTAINERS:
        (port,) = program[f"Container {name}"].inputs["ports"]
        assert port["internal"] == INTERNAL_PORTS[name]
        published[name] = (port["ip"], port["external"])
    assert published == PORTS[stack]


def test_kongs_status_is_published_on_loopback_alone_whatever_the_gateway_listens_on() -> None:
    ports = overridden(gateway__status_port="8100", gateway__host="0.0.0.0")["Container gateway"].inputs["ports"]
    assert [(port["ip"], port["internal"], port["external"]) for port in ports] == [
        ("0.0.0.0", 8000, 8000),
        ("127.0.0.1", 8100, 8100),
    ]


def test_a_container_uses_no_more_memory_than_told_and_no_swap(stack: str, program: Program) -> None:
    for name in CONTAINERS:
        inputs = program[f"Container {name}"].inputs
        assert (inputs["memory"], inputs["memorySwap"]) == (MEMORY[stack][name], MEMORY[stack][name]), name


def test_the_open_files_of_realtime_are_limited_as_it_is_told(stack: str, program: Program) -> None:
    files = int(LIMITS[stack]["files"])
    assert program["Container realtime"].inputs["ulimits"] == [{"name": "nofile", "soft": files, "hard": files}]


def test_every_container_of_the_program_keeps_thirty_megabytes_of_log(program: Program) -> None:
    """By type, so that a container that comes later does too."""
    containers = program.of_type("docker:index/container:Container")
    assert {container.name for container in containers} >= set(CONTAINERS)
    for container in containers:
        assert container.inputs["logDriver"] == "json-file", container.name
        assert container.inputs["logOpts"] == {"max-size": "10m", "max-file": "3"}, container.name


def test_a_container_starts_again_unless_somebody_stopped_it(container: Resource) -> None:
    assert container.inputs["restart"] == "unless-stopped"


def test_a_container_that_ends_at_once_fails_the_update(container: Resource) -> None:
    assert container.inputs["mustRun"] is True


def test_a_process_in_a_container_gains_no_privileges(container: Resource) -> None:
    assert container.inputs["securityOpts"] == ["no-new-privileges:true"]
    assert "privileged" not in container.inputs


def test_a_container_has_no_more_capabilities_than_its_entrypoint_needs(program: Program) -> None:
    """Realtime's entrypoint uses sudo, which does not work without them."""
    capabilities = {name: program[f"Container {name}"].inputs.get("capabilities") for name in CONTAINERS}
    assert capabilities == {
        "postgres": {
            "drops": ["ALL"],
            "adds": ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SETGID", "CAP_SETUID"],
        },
        "realtime": None,
        "gateway": {"drops": ["ALL"]},
    }


def test_the_file_system_of_realtime_is_read_only_but_for_tmp(program: Program) -> None:
    inputs = program["Container realtime"].inputs
    assert inputs["readOnly"] is True
    assert inputs["tmpfs"] == {"/tmp": "rw,mode=1777,size=64m"}


@pytest.mark.parametrize(
    ("name", "asks"),
    [
        # Over TCP: while it initialises, Postgres answers on its socket, and restarts.
        ("postgres", ["pg_isready", "-h", "127.0.0.1", "-U", "supabase_admin", "-d", "postgres"]),
        # Several answers in a row: newer versions answer, restart, and answer again.
        (
            "realtime",
            ["curl", "-fsS", "--fail-early", *["-o", "/dev/null", "http://127.0.0.1:4000/healthcheck"] * 3],
        ),
    ],
)
def test_what_depends_on_a_server_waits_until_it_is_healthy(name: str, asks: list[str], program: Program) -> None:
    container, ready = program[f"Container {name}"], program[f"ContainerReadiness {name}-ready"]
    assert container.inputs["healthcheck"]["tests"] == ["CMD", *asks]
    assert program.waits_for(label_of(ready), label_of(container))


def test_kong_is_healthy_when_its_status_listener_says_so(program: Program) -> None:
    inputs = program["Container gateway"].inputs
    command, flag, script = inputs["healthcheck"]["tests"][1:]
    assert (command, flag) == ("resty", "-e")
    assert 'connect("127.0.0.1", 8100)' in script
    assert "GET /status " in script


def test_a_health_check_forgives_failures_while_a_server_starts(container: Resource) -> None:
    timing = {key: value for key, value in container.inputs["healthcheck"].items() if key != "tests"}
    # A start interval of its own is more than an engine before Docker 25 takes.
    assert timing == {
        "interval": "2s",
        "timeout": "5s",
        "retries": 5,
        "startPeriod": "1m0s",
        "startInterval": "0s",
    }


def test_a_changed_container_replaces_the_one_whose_name_and_port_it_takes(program: Program) -> None:
    for name in CONTAINERS:
        options = program.options(f"Container {name}")
        assert options.deleteBeforeReplace, name
        assert "healthcheck" in options.replaceOnChanges, name
    # Kong keeps its old config silently when a reloaded one is broken.
    assert "uploads" in program.options("Container gateway").replaceOnChanges


def test_the_containers_share_a_network_of_their_own_on_which_realtime_has_the_tenants_name(program: Program) -> None:
    assert program["Network network"].inputs["driver"] == "bridge"
    networks = {name: program[f"Container {name}"].inputs["networksAdvanced"] for name in CONTAINERS}
    assert networks == {
        "postgres": [{"name": "(id of network)"}],
        "realtime": [{"name": "(id of network)", "aliases": ["supabase-realtime"]}],
        "gateway": [{"name": "(id of network)"}],
    }


def test_the_tenants_name_is_kept_on_the_network(program: Program) -> None:
    inputs = {key: value for key, value in program["NetworkAlias alias"].inputs.items() if key != "__provider"}
    assert inputs == {"container": "(id of realtime)", "network": "(id of network)", "alias": "supabase-realtime"}


def test_the_rows_are_in_a_volume_and_not_in_the_container(stack: str, program: Program) -> None:
    name = f"supabase-realtime-{stack}-postgres"
    assert program["Container postgres"].inputs["mounts"] == [
        {"type": "volume", "source": name, "target": "/var/lib/postgresql/data"},
        {"type": "volume", "source": f"{name}-keys", "target": "/etc/postgresql-custom"},
    ]


@pytest.mark.parametrize("volume", ["postgres-data", "postgres-keys"])
def test_a_protected_stack_leaves_its_volumes_when_it_is_destroyed(volume: str, stack: str, program: Program) -> None:
    assert program.options(f"Volume {volume}").retainOnDelete is (stack in ("staging", "prod"))


def test_postgres_runs_our_first_start_files_after_the_images_own(program: Program) -> None:
    assert program["Container postgres"].inputs["uploads"] == [
        {
            "file": "/docker-entrypoint-initdb.d/zz-realtime-1-server.sql",
            "content": Path(PROJECT / "sql" / "bootstrap.sql").read_text(),
        },
        {
            "file": "/docker-entrypoint-initdb.d/zz-realtime-2-auth.sql",
            "content": Path(PROJECT / "sql" / "auth.sql").read_text(),
        },
    ]


def test_postgres_has_time_to_write_its_last_checkpoint(program: Program) -> None:
    inputs = program["Container postgres"].inputs
    assert inputs["stopTimeout"] == 60
    assert inputs["destroyGraceSeconds"] == 60
